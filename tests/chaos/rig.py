"""One daemon under load with an observer beside it, and all that a fault may do to it.

What the harness does is written into its own file, the *deeds*, before it is done: when engines of a pool may end
and when they must live, kills, starts, and what it found wrong. The verdict rests on the files alone.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from poolmgr.client import CallError, Client
from poolmgr.testing.gguf import write_tiny_llama
from poolmgr.v1 import engine_pb2
from poolmgr.v1 import pool_pb2 as pb
from tests.chaos import procs, stranger
from tests.chaos.clients import Plan
from tests.chaos.design import SETTINGS, Design
from tests.chaos.journal import Line, Writer
from tests.chaos.live import Live
from tests.chaos.pools import SCRIPTED_SLOTS, PoolPlan, scripted_pool, steady
from tests.e2e.daemon import eventually, processes_of
from tests.e2e.engines import free_port

ROOT = Path(__file__).parents[2]
START_SECONDS = 30.0
READY_SECONDS = 60.0
SETTLE_SECONDS = 30.0
STOP_SECONDS = 30.0
CLIENTS_STOP_SECONDS = 60.0
REGISTERED_TTL_SECONDS = 10


class Rig:
    def __init__(self, design: Design, seed: str) -> None:
        self.design = design
        self.id = uuid.uuid4().hex
        self.rng = random.Random(seed)
        self.directory = Path(tempfile.mkdtemp(prefix="poolmgr-chaos-"))
        self.state = design.state or self.directory / "state"
        self.address = f"127.0.0.1:{free_port()}"
        self.deeds = Writer(self.directory / "deeds")
        self.model = self.directory / "tiny.gguf"
        self.daemon: subprocess.Popen[bytes] | None = None
        self.strangers: list[subprocess.Popen[bytes]] = []
        self._clients: subprocess.Popen[bytes] | None = None
        self._observer: subprocess.Popen[bytes] | None = None
        self._subjects = 0
        write_tiny_llama(self.model)
        self.pools = steady(self.id, self.model, llamas=design.llamas, scripted=design.scripted)
        self.registered = [f"told-{n}" for n in range(design.registered)]
        slots = {plan.pool_id: plan.slots for plan in self.pools} | dict.fromkeys(self.registered, SCRIPTED_SLOTS)
        self.deeds.write("rig", id=self.id, seed=seed, slots=slots)

    # Its life.

    def build(self) -> Rig:
        """Returns once all pools are READY and the clients are at work."""
        self._observer = self._python("tests.chaos.observer", self.id, self.directory / "observer", out=True)
        assert self._observer.stdout is not None and self._observer.stdout.readline() == b"looking\n"
        self.live = Live(self.directory / "observer")
        for n in range(2):
            self.stranger(f"bystander-{n}", {procs.ENGINE_VARIABLE: uuid.uuid4().hex} if n else {})
        self.start_daemon()
        with self.client(READY_SECONDS) as client:
            for plan in self.pools:
                client.create_pool(plan.pool_id, plan.spec)
        if not self.await_ready(self.pools, READY_SECONDS, rule="PRE-1"):
            raise AssertionError("the pools do not get ready")
        for plan in self.pools:
            self.must_live(plan.pool_id)
        for pool_id in self.registered:
            self._register(pool_id)
        self._clients = self._python("tests.chaos.clients", self.directory / "history", out=True)
        pools, beats = [p.pool_id for p in self.pools] + self.registered, self.registered
        load = Plan(self.address, pools, self.rng.getrandbits(32), beats=beats, **self.design.load)
        self.tell_clients(json.dumps(asdict(load)), answered=False)
        return self

    def _register(self, pool_id: str) -> None:
        """An engine that is a stranger to every daemon: it notes all signals, and answers 200 on its port."""
        port = free_port()
        engine = self.stranger(pool_id, {}, port)
        self.deeds.write("registered", pool=pool_id, pid=engine.pid, ports=[port])
        request = engine_pb2.RegisterEngineRequest(
            engine_id=pool_id,
            pool_id=pool_id,
            endpoint=f"127.0.0.1:{port}",
            engine=pb.ENGINE_LLAMACPP,
            slots_total=SCRIPTED_SLOTS,
            pid=engine.pid,
        )
        request.ttl.FromSeconds(REGISTERED_TTL_SECONDS)
        with self.client() as client:
            client.register_engine(request)

    def close(self) -> None:
        """Ends clients, engines, daemon and observer in order; what does not end well is a violation."""
        self._end_clients()
        self.may_end("")
        if not self.dead():
            with self.client() as client:
                client.shutdown(stop_engines=True)
            if self.daemon is not None and self.daemon.wait(STOP_SECONDS) != 0:
                self.fail("PROC-8", f"the daemon ended with {self.daemon.returncode} when told to stop its engines")
        for process in self.strangers:
            self.check_stranger(process)
        left = [process for process in processes_of(self.state) if process.pid != os.getpid()]
        if left:
            self.fail("PROC-8", f"{len(left)} processes are left after a shutdown with its engines", map(str, left))
        self._end_observer()
        self.deeds.close()

    def abandon(self) -> None:
        """After a run that could not go on: what was seen and heard so far is kept whole."""
        self.may_end("")
        for process in (self._clients, self._observer):
            if process is not None and process.stdin is not None:
                with suppress(subprocess.TimeoutExpired, BrokenPipeError):
                    process.stdin.close()
                    process.wait(CLIENTS_STOP_SECONDS)
        self.deeds.close()

    def destroy(self) -> None:
        """Whatever came of it: nothing of this rig runs on."""
        for process in [self.daemon, self._clients, self._observer, *self.strangers]:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout) if process is not None else ():
                if pipe is not None:
                    pipe.close()
        for left in processes_of(self.directory) + processes_of(self.state):
            with suppress(ProcessLookupError):
                os.kill(left.pid, signal.SIGKILL)
        for pid in procs.pids():
            if procs.environment(pid).get(procs.RIG_VARIABLE) == self.id:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.design.undo()

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end_clients(self) -> None:
        if self._clients is not None and self._clients.stdin is not None:
            self._clients.stdin.close()
            if self._clients.wait(CLIENTS_STOP_SECONDS) != 0:
                self.fail("LEASE-4", f"evidence is missing: the clients ended with {self._clients.returncode}")

    def _end_observer(self) -> None:
        assert self._observer is not None and self._observer.stdin is not None
        self.live.close()
        self._observer.stdin.close()
        self._observer.wait(STOP_SECONDS)

    def _python(self, module: str, *arguments: object, out: bool = False) -> subprocess.Popen[bytes]:
        with (self.directory / f"{module}.err").open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if out else errors,
                stderr=errors,
            )

    # What it says.

    def fail(self, rule: str, text: str, evidence: Iterable[object] = (), kind: str = "") -> None:
        self.deeds.write("violation", rule=rule, text=text, evidence=[str(e) for e in evidence], kind=kind)

    def may_end(self, pool_id: str) -> None:
        """From here on engines of the pool ("": of all) may end."""
        self.deeds.write("may-end", pool=pool_id)

    def must_live(self, pool_id: str) -> None:
        self.deeds.write("must-live", pool=pool_id)

    def expect(self, rule: str, holds: Callable[[], object], text: str, within: float = SETTLE_SECONDS) -> bool:
        """Whether it comes true in time; else that is a violation."""
        try:
            eventually(lambda: holds() or None, within)
        except AssertionError:
            self.fail(rule, f"not within {within:g} s: {text}", [self.tail()])
            return False
        return True

    def tail(self) -> str:
        """The end of the daemon's log, to read beside a violation; nothing is concluded from it."""
        path = self.directory / "daemon.log"
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""

    # The daemon.

    def dead(self) -> bool:
        return self.daemon is None or self.daemon.poll() is not None

    @property
    def pid(self) -> int:
        assert self.daemon is not None
        return self.daemon.pid

    def client(self, timeout: float = 10.0) -> Client:
        return Client(self.address, timeout=timeout)

    def launch_daemon(self, environment: Mapping[str, str] | None = None) -> None:
        """Returns as soon as it is executed."""
        argv = [*self.design.prefix, sys.executable, "-m", "poolmgr", "--addr", self.address]
        argv += ["--state-dir", str(self.state)]
        for key, value in {**SETTINGS, **self.design.settings}.items():
            argv += ["--set", f"{key}={value}"]
        path = os.pathsep.join([*(environment or {}).get("PYTHONPATH", "").split(), str(ROOT), str(ROOT / "ext")])
        env = {**os.environ, **self.design.environment, **(environment or {}), "PYTHONPATH": path}
        self.deeds.write("exec")
        with (self.directory / "daemon.log").open("ab") as log:
            self.daemon = subprocess.Popen(argv, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def await_serving(self, seconds: float = START_SECONDS) -> bool:
        """False when it ended first."""
        host, _, port = self.address.rpartition(":")

        def answers() -> bool:
            """It takes its address before it recovers: a connection says little."""
            try:
                socket.create_connection((host, int(port)), 1.0).close()
                with self.client() as client:
                    client.status()
            except (OSError, CallError):
                return self.dead()
            return True

        eventually(lambda: answers() or None, seconds, self.tail)
        if self.dead():
            return False
        self.deeds.write("serving", pid=self.pid)
        return True

    def start_daemon(self) -> None:
        self.launch_daemon()
        if not self.await_serving():
            raise AssertionError(f"the daemon does not start: {self.tail()}")

    def kill_daemon(self, phase: str) -> None:
        """SIGKILL; returns once it is reaped."""
        assert self.daemon is not None
        self.deeds.write("kill-daemon", phase=phase, pid=self.pid)
        self.daemon.kill()
        self.daemon.wait()

    def pause(self, least: float, most: float) -> None:
        """A random time: what comes at no particular moment finds what we did not think of."""
        length = self.rng.uniform(least, most)
        until = procs.now() + procs.seconds(length)
        eventually(lambda: procs.now() >= until, length + 5)

    # Its pools and engines.

    def tell_clients(self, order: str, answered: bool = True) -> None:
        assert self._clients is not None and self._clients.stdin is not None and self._clients.stdout is not None
        self._clients.stdin.write(order.encode() + b"\n")
        self._clients.stdin.flush()
        if answered and self._clients.stdout.readline().decode().strip() != order:
            raise AssertionError("the clients have ended")

    def subject(self, *flags: object, **fields: object) -> PoolPlan:
        """A pool that is not under load, of this run alone; not created yet."""
        self._subjects += 1
        return scripted_pool(self.id, f"subject-{self._subjects}", *flags, **fields)  # type: ignore[arg-type]

    def engine_of(self, pool_id: str) -> Line:
        """The one engine of the pool that the observer sees."""
        found = eventually(lambda: self.live.engines(pool_id) or None, SETTLE_SECONDS)
        assert len(found) == 1, found
        return found[0]

    def endpoint_of(self, engine: Line) -> str:
        """Where it listens, by the observer."""

        def ports() -> object:
            now = [line for line in self.live.engines(str(engine["pool"])) if line["pid"] == engine["pid"]]
            return now[0].get("ports") if now else None

        found = eventually(ports, SETTLE_SECONDS)
        return f"127.0.0.1:{found[0]}"  # type: ignore[index]

    def await_again(self, pool_id: str, engine: Line) -> bool:
        """Whether the pool is READY by another engine than that one, in time; else that is a violation."""

        def again() -> bool:
            with self.client() as client:
                return self.is_settled(client, pool_id) and self.engine_of(pool_id)["start"] != engine["start"]

        return self.expect("PROC-6", again, f"{pool_id} is READY again by another engine")

    def shim_of(self, engine: Line) -> int | None:
        """The pid of the engine's parent where that is a shim; None: it has none any more."""
        stat = procs.stat(int(engine["pid"]))  # type: ignore[call-overload]
        if stat is None:
            return None
        try:
            arguments = Path(f"/proc/{stat.parent}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):  # it was just ending
            return None
        return stat.parent if any(word.endswith(b"/shim") for word in arguments) else None

    def is_settled(self, client: Client, pool_id: str) -> bool:
        """READY, by the very engine that the observer sees, and it alone."""
        pool, seen = client.get_pool(pool_id), self.live.engines(pool_id)
        return pool.state == pb.Pool.READY and [pool.pid] == [line["pid"] for line in seen]

    def await_ready(self, plans: Sequence[PoolPlan], within: float = SETTLE_SECONDS, rule: str = "PROC-6") -> bool:
        with self.client() as client:
            states: dict[str, str] = {}

            def settled() -> bool:
                for plan in plans:
                    pool = client.get_pool(plan.pool_id)
                    states[plan.pool_id] = f"{pb.Pool.State.Name(pool.state)} pid {pool.pid} {pool.state_reason}"
                return all(self.is_settled(client, plan.pool_id) for plan in plans)

            try:
                eventually(lambda: settled() or None, within)
            except (AssertionError, CallError) as error:
                seen = {plan.pool_id: self.live.engines(plan.pool_id) for plan in plans}
                text = f"not every pool is READY by the engine that runs, {within:g} s after: {type(error).__name__}"
                self.fail(rule, text, [states, seen, error if isinstance(error, CallError) else "", self.tail()])
                return False
        return True

    def await_registered(self) -> None:
        """Those that tell of themselves serve, where they said."""

        def serve() -> bool:
            with self.client() as client:
                return all(client.get_pool(pool_id).state == pb.Pool.READY for pool_id in self.registered)

        if self.registered:
            self.expect("ENG-3", serve, f"{self.registered} are READY again by their heartbeats")

    # Strangers.

    def stranger(self, name: str, environment: Mapping[str, str], *arguments: object) -> subprocess.Popen[bytes]:
        """A process that the daemon has nothing to do with; it lives until the rig is closed, and hears no signal."""
        record = self.directory / f"stranger-{name}"
        argv = [sys.executable, "-I", "-S", str(Path(stranger.__file__)), str(record), *map(str, arguments)]
        process = subprocess.Popen(argv, env=dict(environment), cwd="/", start_new_session=True)
        self.strangers.append(process)
        process.record = record  # type: ignore[attr-defined]
        eventually(lambda: record.exists() and b"ready" in record.read_bytes(), 10)
        self.deeds.write("stranger", name=name, pid=process.pid)
        return process

    def check_stranger(self, process: subprocess.Popen[bytes]) -> None:
        heard = process.record.read_text().splitlines()[1:]  # type: ignore[attr-defined]
        if process.poll() is not None or heard:
            evidence = [f"exit status {process.poll()}", *heard]
            self.fail("PROC-3", f"the stranger with pid {process.pid} was signalled", evidence, "signal")
        if process.poll() is None:
            process.kill()
            process.wait()
        self.strangers = [other for other in self.strangers if other is not process]

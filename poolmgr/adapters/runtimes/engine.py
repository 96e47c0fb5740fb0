"""One engine of the process runtime: its directory, its shim, its tree, and the run that is on."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Collection, Sequence
from contextlib import suppress

from poolmgr.adapters.runtimes import procfs, shimlink
from poolmgr.adapters.runtimes.enginedir import EngineDirectory, exit_record, identity_of
from poolmgr.adapters.runtimes.life import Life
from poolmgr.adapters.runtimes.tree import Tree
from poolmgr.adapters.shim import wire
from poolmgr.errors import EnvironmentFault, InternalError, Reason
from poolmgr.model.engine import ExitRecord, LaunchSpec, ProcessIdentity, Usage
from poolmgr.ports import EngineListener, Workers

# A shim that was told to leave and does not (a stopped one) leaves when it sees that we hung up.
_QUIT_SECONDS = 3.0


class Engine:
    """`launch`: what `spec` says; None when it must be written before a start."""

    def __init__(self, directory: EngineDirectory, tree: Tree, launch: LaunchSpec | None, workers: Workers) -> None:
        self.directory = directory
        self._tree = tree
        self._launch = launch
        self._workers = workers
        self._link: shimlink.ShimLink | None = None
        self._shim: shimlink.ShimProcess | None = None
        self._life: Life | None = None
        self._listener: EngineListener | None = None
        self._childless = False
        self._awaited = ""
        self._answer: asyncio.Future[wire.Message] | None = None
        self._log_seen = self._log_total = self._read_total = 0

    # The engine's run.

    async def start(self, launch: LaunchSpec, listener: EngineListener, log_check_seconds: float) -> ProcessIdentity:
        """As `Runtime.start`. A respawn is one message and its answer."""
        if self.alive():
            raise InternalError(f"engine {launch.engine_id} is still running")
        self._listener = listener
        try:
            changed = launch != self._launch
            if changed:
                await self._workers.run(self._prepare, launch, log_check_seconds)
                self._launch = launch
            if self._tree.leaf is not None:
                self._tree.leaf.create()
            if self._link is None:
                await self._find_shim()
            if changed:
                self._send({"op": "reload"})
            self._send({"op": "start"})
            return identity_of((await self._answer_of("started"))["ident"])
        except OSError as error:
            await self._abandon()
            raise EnvironmentFault(
                Reason.SPAWN_FAILED,
                f"cannot start {launch.argv[0]}: {error.strerror}",
                numbers={"errno": error.errno or 0, "path": launch.argv[0]},
            ) from error

    def alive(self) -> bool:
        return self._tree.alive() if self._life is None else not self._life.gone

    def attach(self, identity: ProcessIdentity, listener: EngineListener, known: ExitRecord | None) -> None:
        """Watches a run that another daemon started; with `known` it is over and only what is left of it is watched."""
        pidfd = None if known is not None else procfs.open_pidfd(identity)
        self._life = Life(identity, pidfd, self.directory, self._tree, listener, known=known)
        connection = self.directory.connect()
        if connection is not None:
            self._open_link(connection)
        else:
            asyncio.get_running_loop().call_soon(self._life.shim_lost)

    def terminate(self) -> None:
        if self._life is not None:
            self._life.terminate()

    def kill_tree(self) -> None:
        """The leaf is killed as a whole; the shim kills what it descends to, which is all where there is no leaf."""
        if self._tree.leaf is not None or self._link is None:
            self._tree.kill()
        if not self._childless:
            self._send({"op": "kill"})

    async def rest(self) -> None:
        """Lets the shim go; the directory stays for its log and for the next start."""
        if self.alive():
            raise InternalError(f"engine {self.directory.path.name} still has processes")
        await self._dismiss_shim()
        if self._tree.leaf is not None:
            self._tree.leaf.remove()

    async def remove(self) -> None:
        await self.rest()
        await self._workers.run(self.directory.remove)

    def close(self) -> None:
        """Lets go of everything; engine and shim go on."""
        if self._life is not None:
            self._life.close()
        if self._link is not None:
            self._link.close()
        if self._shim is not None:
            self._shim.close()

    # What it uses.

    def usage(self) -> Usage:
        pids = self._tree.pids()
        read = procfs.read_bytes(pids)
        if read is not None:
            # A process that nobody has reaped yet counts nowhere; it must not look as if something had been unread.
            self._read_total = read = max(self._read_total, read)
        return Usage(self._log_written(), procfs.resident_bytes(pids), read)

    def holds_socket(self, inodes: Collection[int]) -> bool | None:
        """Whether one of its processes does; None when none of them is there to tell."""
        answers = {procfs.holds_socket(pid, inodes) for pid in self._tree.pids()}
        return True if True in answers else False if False in answers else None

    def _log_written(self) -> int:
        """The log's length, with what was cut off since we look."""
        with suppress(FileNotFoundError):
            size = os.stat(self.directory.log).st_size
            self._log_total += size - self._log_seen if size >= self._log_seen else size
            self._log_seen = size
        return self._log_total

    # The shim.

    def _prepare(self, launch: LaunchSpec, log_check_seconds: float) -> None:
        leaf = self._tree.leaf
        self.directory.create(launch, None if leaf is None else leaf.path, log_check_seconds)

    async def _find_shim(self) -> None:
        """The one that is there or, when there is none or it is just leaving, a new one. Raises OSError."""
        connection = self.directory.connect()
        if connection is not None:
            with suppress(ConnectionResetError):
                await self._greet(connection)
                return
        self._shim = shimlink.ShimProcess(shimlink.spawn(self.directory))
        connection = self.directory.connect()
        if connection is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the shim does not listen")
        await self._greet(connection)

    async def _greet(self, connection: socket.socket) -> None:
        self._open_link(connection)
        await self._answer_of("hello")

    def _open_link(self, connection: socket.socket) -> None:
        self._link = shimlink.ShimLink(connection, self._on_message, self._on_hang_up)

    def _send(self, message: wire.Message) -> None:
        if self._link is not None:
            self._link.send(message)

    async def _answer_of(self, event: str) -> wire.Message:
        if self._link is None:
            raise ConnectionResetError(errno.ECONNRESET, "the shim hung up")
        self._awaited = event
        self._answer = asyncio.get_running_loop().create_future()
        return await self._answer

    def _on_message(self, message: wire.Message, fds: Sequence[int]) -> None:
        match message["event"]:
            case "hello":
                self._on_hello(message)
                self._settle("hello", message)
            case "started":
                self._on_started(message, fds[0])
                self._settle("started", message)
            case "failed":
                self._settle("started", OSError(message["errno"], os.strerror(message["errno"])))
            case "exit" | "empty":
                self._on_end(message)

    def _on_hello(self, message: wire.Message) -> None:
        """A shim that we meet again knows how our engine is; one that knows another run watches nothing for us."""
        if self._life is None or self._life.gone:
            return
        if message["ident"] is None or identity_of(message["ident"]) != self._life.identity:
            self._life.shim_lost()
        else:
            self._on_end(message)

    def _on_started(self, message: wire.Message, pidfd: int) -> None:
        """Also when the caller of `start` has given up: the engine runs, so it is watched."""
        assert self._listener is not None
        self._read_total = 0
        self._childless = False
        self._life = Life(identity_of(message["ident"]), pidfd, self.directory, self._tree, self._listener)

    def _on_end(self, message: wire.Message) -> None:
        if self._life is None:
            return
        # Known before the exit is told: who hears of it kills what may be left.
        self._childless = message["event"] == "empty" or message["empty"]
        if message.get("exit") is not None:
            self._life.shim_said_exit(exit_record(message["exit"]))
        if self._childless:
            self._life.shim_said_empty()

    def _on_hang_up(self) -> None:
        self._link = None
        self._settle(self._awaited, ConnectionResetError(errno.ECONNRESET, "the shim hung up"))
        if self._life is not None and not self._life.gone:
            self._life.shim_lost()

    def _settle(self, event: str, outcome: wire.Message | OSError) -> None:
        """Gives the one who waits for `event` its answer; one who stopped waiting has left a cancelled future."""
        answer = self._answer
        if answer is None or answer.done() or event != self._awaited:
            return
        if isinstance(outcome, OSError):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    async def _dismiss_shim(self) -> None:
        if self._link is None and (connection := self.directory.connect()) is not None:
            self._open_link(connection)  # one of another daemon, that nobody attached to
        self._send({"op": "quit"})
        if self._link is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._link.closed.wait(), _QUIT_SECONDS)
        if self._shim is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._shim.gone.wait(), _QUIT_SECONDS)
        self.close()
        self._link = self._shim = None

    async def _abandon(self) -> None:
        """After a failed start: nothing of it stays but the directory. A shim that died may have started the engine."""
        if self._tree.alive():
            self._tree.kill()
            emptied = asyncio.Event()
            watch = self._tree.watch(emptied.set)
            await emptied.wait()
            watch.close()
        await self._dismiss_shim()
        self._life = None
        if self._tree.leaf is not None:
            self._tree.leaf.remove()

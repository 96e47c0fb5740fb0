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
from poolmgr.adapters.runtimes.faults import fault, state_faults
from poolmgr.adapters.runtimes.life import Life
from poolmgr.adapters.runtimes.tree import Tree
from poolmgr.adapters.shim import wire
from poolmgr.errors import InternalError, Reason
from poolmgr.model.engine import ExitRecord, LaunchSpec, ProcessIdentity, Usage
from poolmgr.ports import EngineListener, Workers


class Engine:
    """`launch`: what `spec` says; None when it must be written before a start.

    `patience`, in seconds: how long the shim may take to answer and to leave, and a tree that was killed to vanish.
    """

    def __init__(
        self, directory: EngineDirectory, tree: Tree, launch: LaunchSpec | None, workers: Workers, patience: float
    ) -> None:
        self.directory = directory
        self._tree = tree
        self._launch = launch
        self._workers = workers
        self._patience = patience
        self._link: shimlink.ShimLink | None = None
        self._shim: shimlink.ShimProcess | None = None
        self._life: Life | None = None
        self._killed: Life | None = None
        self._greeting: asyncio.TimerHandle | None = None
        self._listener: EngineListener | None = None
        self._childless = False
        self._undead = False
        self._awaited = ""
        self._answer: asyncio.Future[wire.Message] | None = None
        self._log_seen = self._log_total = self._read_total = 0

    # The engine's run.

    async def start(self, launch: LaunchSpec, listener: EngineListener, log_check_seconds: float) -> ProcessIdentity:
        """As `Runtime.start`. A respawn is one message and its answer."""
        with state_faults(self.directory.path):
            self._require_empty()
            changed = launch != self._launch
            if changed:
                self._launch = None
                await self._workers.run(self._prepare, launch, log_check_seconds)
                self._launch = launch
        self._listener = listener
        try:
            return await self._run(reload=changed)
        except OSError as error:
            raise fault(Reason.SPAWN_FAILED, f"cannot start {launch.argv[0]}", launch.argv[0], error) from error

    async def _run(self, *, reload: bool) -> ProcessIdentity:
        """Under a new shim when the one that is there hangs. Raises OSError."""
        try:
            try:
                return await self._ask_to_start(reload=reload)
            except TimeoutError:
                await self._abandon(hung=True)
                if self._undead:
                    raise
                return await self._ask_to_start(reload=False)
        except OSError as error:
            await self._abandon(hung=isinstance(error, TimeoutError))
            raise

    async def _ask_to_start(self, *, reload: bool) -> ProcessIdentity:
        if self._tree.leaf is not None:
            self._tree.leaf.create()
        if self._link is None:
            await self._find_shim()
        if reload:
            self._send({"op": "reload"})
        self._send({"op": "start"})
        return identity_of((await self._answer_of("started"))["ident"])

    def alive(self) -> bool:
        return self._tree.alive() if self._life is None else not self._life.gone

    def attach(self, identity: ProcessIdentity, listener: EngineListener, known: ExitRecord | None) -> None:
        """Watches a run that another daemon started; with `known` it is over and only what is left of it is watched."""
        with state_faults(self.directory.path):
            connection = self.directory.connect()
            try:
                pidfd = None if known is not None else procfs.open_pidfd(identity)
            except OSError:
                if connection is not None:
                    connection.close()
                raise
        self._life = Life(identity, pidfd, self.directory, self._tree, listener, known=known)
        loop = asyncio.get_running_loop()
        if connection is None:
            loop.call_soon(self._life.shim_lost)
        else:
            self._open_link(connection)
            self._greeting = loop.call_later(self._patience, self._life.shim_lost)

    def terminate(self) -> None:
        if self._life is not None:
            self._life.terminate()

    def kill_tree(self) -> None:
        """The leaf is killed as a whole; the shim kills what it descends to, which is all where there is no leaf."""
        asked = self._childless or self._send({"op": "kill"})
        if self._tree.leaf is not None or not asked:
            self._kill()
        life = self._life
        if life is not None and not life.gone and life is not self._killed:
            self._killed = life
            asyncio.get_running_loop().call_later(self._patience, self._kill_until_gone, life)

    def _kill_until_gone(self, life: Life) -> None:
        """What a shim that hangs did not kill, or we could not for want of a descriptor."""
        if not life.gone:
            self._kill()
            asyncio.get_running_loop().call_later(self._patience, self._kill_until_gone, life)

    def _kill(self) -> None:
        with suppress(OSError):  # EMFILE, mostly: whoever kills goes on until nothing is left
            self._tree.kill()

    async def rest(self) -> None:
        """Lets the shim go; the directory stays for its log and for the next start."""
        with state_faults(self.directory.path):
            self._require_empty()
            await self._dismiss_shim()
            if self._tree.leaf is not None:
                self._tree.leaf.remove()

    async def remove(self) -> None:
        await self.rest()
        with state_faults(self.directory.path):
            await self._workers.run(self.directory.remove)

    def _require_empty(self) -> None:
        """Raises InternalError: who asks has not been told that the tree is empty. OSError when that cannot be seen."""
        if not self.alive():
            self._undead = False
        elif self._undead:
            raise fault(
                Reason.SPAWN_FAILED,
                "processes of a start that failed do not end",
                str(self.directory.path),
                OSError(errno.EBUSY, os.strerror(errno.EBUSY)),
            )
        else:
            raise InternalError(f"engine {self.directory.path.name} still has processes")

    def close(self) -> None:
        """Lets go of everything; engine and shim go on."""
        if self._life is not None:
            self._life.close()
        self._let_go_of_shim()

    # What it uses.

    def usage(self) -> Usage:
        pids = self._pids()
        read = procfs.read_bytes(pids)
        if read is not None:
            # A process that nobody has reaped yet counts nowhere; it must not look as if something had been unread.
            self._read_total = read = max(self._read_total, read)
        return Usage(self._log_written(), procfs.resident_bytes(pids), read, self._tree.cpu_seconds(pids))

    def holds_socket(self, inodes: Collection[int]) -> bool | None:
        """Whether one of its processes does; None when none of them is there to tell."""
        answers = {procfs.holds_socket(pid, inodes) for pid in self._pids()}
        return True if True in answers else False if False in answers else None

    def _pids(self) -> list[int]:
        try:
            return self._tree.pids()
        except OSError:
            return []  # for what is asked here, those that cannot be seen are as good as none

    def _log_written(self) -> int:
        """The log's length, with what was cut off since we look."""
        with suppress(OSError):
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

    def _send(self, message: wire.Message) -> bool:
        return self._link is not None and self._link.send(message)

    async def _answer_of(self, event: str) -> wire.Message:
        """Raises OSError: TimeoutError for a shim that hangs."""
        if self._link is None:
            raise ConnectionResetError(errno.ECONNRESET, "the shim hung up")
        self._awaited = event
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        hung = TimeoutError(errno.ETIMEDOUT, "the shim does not answer")
        timer = loop.call_later(self._patience, self._settle, event, hung)
        try:
            return await self._answer
        finally:
            timer.cancel()

    def _on_message(self, message: wire.Message, fds: Sequence[int]) -> None:
        match message["event"]:
            case "hello":
                self._on_hello(message)
                self._settle("hello", message)
            case "started":
                self._on_started(message, fds)
            case "failed":
                self._settle("started", OSError(message["errno"], os.strerror(message["errno"])))
            case "exit" | "empty":
                self._on_end(message)

    def _on_hello(self, message: wire.Message) -> None:
        """A shim that we meet again knows how our engine is; one that knows another run watches nothing for us."""
        self._stop_waiting_for_hello()
        if self._life is None or self._life.gone:
            return
        if message["ident"] is None or identity_of(message["ident"]) != self._life.identity:
            self._life.shim_lost()
        else:
            self._on_end(message)

    def _on_started(self, message: wire.Message, fds: Sequence[int]) -> None:
        """Also when the caller of `start` has given up: the engine runs, so it is watched."""
        assert self._listener is not None
        identity = identity_of(message["ident"])
        try:
            # The kernel drops a descriptor that finds no place here (EMFILE).
            pidfd = fds[0] if fds else procfs.open_pidfd(identity)
        except OSError as error:
            self._send({"op": "kill"})
            self._settle("started", error)
            return
        self._read_total = 0
        self._childless = False
        self._life = Life(identity, pidfd, self.directory, self._tree, self._listener)
        self._settle("started", message)

    def _on_end(self, message: wire.Message) -> None:
        if self._life is None:
            return
        # Known before the exit is told: who hears of it kills what may be left.
        self._childless = message["event"] == "empty" or message["empty"]
        if message.get("exit") is not None:
            self._life.shim_said_exit(exit_record(message["exit"]))
        if self._childless:
            self._life.shim_said_empty()

    def _on_hang_up(self, error: OSError) -> None:
        self._link = None
        self._stop_waiting_for_hello()
        self._settle(self._awaited, error)
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

    def _stop_waiting_for_hello(self) -> None:
        if self._greeting is not None:
            self._greeting.cancel()
            self._greeting = None

    def _shim_process(self) -> shimlink.ShimProcess | None:
        """Our child, or the one of another daemon that wrote `ident`."""
        if self._shim is None and (identity := self.directory.shim()) is not None:
            pidfd = procfs.open_pidfd(identity)
            self._shim = None if pidfd is None else shimlink.ShimProcess(pidfd)
        return self._shim

    async def _dismiss_shim(self) -> None:
        """Tells it to leave; one that does not is killed. Raises OSError."""
        if self._link is None and (connection := self.directory.connect()) is not None:
            self._open_link(connection)  # one of another daemon, that nobody attached to
        process = self._shim_process()
        self._send({"op": "quit"})
        if process is not None:
            if not await process.left(self._patience):
                process.kill()
                await process.left(self._patience)
        elif self._link is not None:
            await shimlink.happens(self._link.closed, self._patience)
        self._let_go_of_shim()

    async def _kill_shim(self) -> None:
        """It hangs, and must not wake up later and do as it was told. Raises OSError."""
        if self._link is not None:
            self._link.close()
        process = self._shim_process()
        if process is not None:
            process.kill()
            await process.left(self._patience)
        self._let_go_of_shim()
        self.directory.hide_socket()

    def _let_go_of_shim(self) -> None:
        self._stop_waiting_for_hello()
        if self._link is not None:
            self._link.close()
        if self._shim is not None:
            self._shim.close()
        self._link = self._shim = None

    async def _abandon(self, *, hung: bool) -> None:
        """After a failed start: nothing of it stays but the directory. A shim that died or hung may have started it."""
        self._life, self._undead = None, True
        with suppress(OSError):  # the start's own error is told; who asks next meets what is left
            if hung:
                await self._kill_shim()
            if not await self._emptied():
                return
            self._undead = False
            await self._dismiss_shim()
            if self._tree.leaf is not None:
                self._tree.leaf.remove()

    async def _emptied(self) -> bool:
        """Whether no process is left, after killing what is. Raises OSError."""
        if not self._tree.alive():
            return True
        self._send({"op": "kill"})
        self._kill()
        emptied = asyncio.Event()
        watch = self._tree.watch(emptied.set)
        try:
            return await shimlink.happens(emptied, self._patience)
        finally:
            watch.close()

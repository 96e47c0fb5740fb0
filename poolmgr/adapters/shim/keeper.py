"""The shim: the parent of one engine. It starts it, reaps it, keeps its records, bounds its log; it decides nothing.

One thread, one epoll. Every wait is for an event but two chores: looking at the log's size while an engine runs, and
making records durable once nothing else is to be done.

The invariant of the records: the engine's pid is reaped only after `exit` is in place, so whoever finds the process of
`ident` gone finds how it ended. Both carry pid and start time; an `exit` of another life does not match.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import time
from collections.abc import Iterator

from . import launch, oom, procfs, records, trim, wire

_LISTENER_FD = 3
_QUIET = 0.05  # seconds without an event before records are made durable

_OOM_SECONDS = 30.0  # a process with hundreds of gigabytes takes that long to die
_SLACK = 5.0  # between the kill and the look at the log


def main(directory: str) -> None:
    """Serves the engine of `directory` until neither it nor a daemon is left."""
    os.chdir(directory)
    os.closerange(_LISTENER_FD + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(_LISTENER_FD, False)
    keeper = Keeper(socket.socket(fileno=_LISTENER_FD), launch.prepare())
    # A collection in the middle of a respawn would cost more than the garbage of a life.
    gc.disable()
    gc.freeze()
    keeper.run()


class Orders:
    """What `spec` says. One that cannot be read ends the shim: the daemon hears the hang-up and reports it."""

    __slots__ = ("launcher", "log_limit", "look_every", "oom_file")

    def __init__(self) -> None:
        spec = records.read(wire.SPEC)
        if spec is None:
            raise FileNotFoundError(wire.SPEC)
        self.launcher = launch.Launcher(spec["argv"], spec["env"], spec["cgroup"])
        self.oom_file = oom.counter_file(spec["cgroup"])
        self.log_limit: int = spec["log_limit_bytes"]
        self.look_every: float = spec["log_check_seconds"]


class Life:
    """One run of the engine."""

    __slots__ = ("ended", "gone", "ident")

    def __init__(self, ident: wire.Message) -> None:
        self.ident = ident
        self.ended: wire.Message | None = None
        self.gone = False


class Keeper:
    def __init__(self, listener: socket.socket, wakeup: int) -> None:
        self._listener = listener
        self._wakeup = wakeup
        self._daemon: socket.socket | None = None
        self._greeted = False
        self._life: Life | None = None
        self._killing = False
        self._quitting = False
        self._leaving = False
        self._undurable: set[str] = set()
        self._unwritten: dict[str, wire.Message] = {}
        self._trimming: Iterator[None] | None = None
        self._next_look = 0.0
        self._orders = Orders()
        self._oom_kills = 0
        self._last_oom = -_OOM_SECONDS
        self._epoll = select.epoll()
        self._epoll.register(listener, select.EPOLLIN)
        self._epoll.register(wakeup, select.EPOLLIN)
        self._boot_id = procfs.boot_id()
        self._engine_score = oom.score_of_engines()
        self._own_ticks = procfs.start_ticks(os.getpid())

    def run(self) -> None:
        while not self._leaving:
            ready = self._epoll.poll(self._patience())
            for fd, _ in ready:
                if fd == self._wakeup:
                    self._reap()
                elif fd == self._listener.fileno():
                    self._accept()
                elif self._daemon is not None and fd == self._daemon.fileno():
                    self._listen_to_daemon(self._daemon)
            self._chores(quiet=not ready)
        while self._undurable:
            self._make_durable(self._undurable.pop())

    # The daemon's side.

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if not wire.peer_is_us(connection):
            connection.close()
            return
        if self._daemon is not None:
            self._hang_up()  # its successor is here
        connection.setblocking(False)
        self._daemon, self._greeted = connection, False
        self._epoll.register(connection, select.EPOLLIN)

    def _hang_up(self) -> None:
        if self._daemon is not None:
            self._epoll.unregister(self._daemon)
            self._daemon.close()
            self._daemon = None

    def _listen_to_daemon(self, daemon: socket.socket) -> None:
        try:
            data = daemon.recv(wire.MESSAGE_BYTES)
            message = wire.decode(data) if data else {}
        except (OSError, ValueError):
            message = {}
        op = message.get("op")
        if op == "hello":
            self._greet(message)
        elif op is None or not self._greeted:
            self._hang_up()
            self._leave_if_idle()
        else:
            self._obey(op)

    def _obey(self, op: str) -> None:
        if op == "start":
            self._start()
        elif op == "reload":
            self._orders = Orders()
        elif op == "kill":
            self._killing = True
            self._kill_children()
        elif op == "quit":
            self._quitting = True
            self._leave_if_idle()

    def _greet(self, message: wire.Message) -> None:
        common = [version for version in wire.VERSIONS if version in message.get("versions", ())]
        if not common:
            self._hang_up()
            return
        self._greeted = True
        life = self._life
        self._tell(
            {
                "event": "hello",
                "version": common[0],
                "ident": life.ident if life else None,
                "exit": life.ended if life else None,
                "empty": self._idle(),
            }
        )

    def _tell(self, message: wire.Message, fds: tuple[int, ...] = ()) -> None:
        if self._daemon is None:
            return
        try:
            socket.send_fds(self._daemon, [wire.encode(message)], fds)
        except OSError:
            # It is gone or stuck. It watches the engine by itself, and greets us again when it wants more.
            self._hang_up()

    # The engine's side.

    def _idle(self) -> bool:
        return self._life is None or self._life.gone

    def _leave_if_idle(self) -> None:
        self._leaving = self._idle()

    def _start(self) -> None:
        if not self._idle():
            self._tell({"event": "failed", "errno": errno.EBUSY})
            return
        self._oom_kills, self._last_oom = oom.kills(self._orders.oom_file), -_OOM_SECONDS
        try:
            child = self._orders.launcher.begin()
        except OSError as error:
            self._tell({"event": "failed", "errno": error.errno})
            return
        oom.offer(child.pid, self._engine_score)
        ident = self._identify(child)
        self._record(wire.IDENT, ident)  # while the child is busy with execve
        failure = child.exec_errno()
        if failure:
            self._forget(wire.IDENT)
            self._tell({"event": "failed", "errno": failure})
        else:
            self._life, self._killing = Life(ident), False
            self._next_look = time.monotonic() + self._orders.look_every
            self._tell({"event": "started", "ident": ident}, (child.pidfd,))
        os.close(child.pidfd)

    def _identify(self, child: launch.Child) -> wire.Message:
        return {
            "boot_id": self._boot_id,
            "shim_pid": os.getpid(),
            "shim_start_ticks": self._own_ticks,
            "pid": child.pid,
            "start_ticks": procfs.start_ticks(child.pid),
            "pidfd_inode": procfs.pidfd_inode(child.pidfd, self._epoll.fileno()),
        }

    def _reap(self) -> None:
        """Reaps all that ended; the last child gone means that nothing is left, for orphans are our children too."""
        os.read(self._wakeup, 4096)
        life, ended, childless = self._life, False, False
        while not childless:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                childless = True
                continue
            if found is None:
                break
            if life is not None and found.si_pid == life.ident["pid"]:
                life.ended, ended = self._record_exit(life, found), True
            os.waitid(os.P_PID, found.si_pid, os.WEXITED)
        if life is not None and not life.gone:
            self._report(life, ended, childless)

    def _report(self, life: Life, ended: bool, childless: bool) -> None:
        life.gone = childless
        if ended:
            self._tell({"event": "exit", "exit": life.ended, "empty": childless})
        elif childless:
            self._tell({"event": "empty"})
        if childless and (self._quitting or self._daemon is None):
            self._leave_if_idle()
        elif self._killing:
            self._kill_children()

    def _record_exit(self, life: Life, found: os.waitid_result) -> wire.Message:
        exited = found.si_code == os.CLD_EXITED
        killed = not exited and found.si_status == signal.SIGKILL
        record = {
            "boot_id": self._boot_id,
            "pid": life.ident["pid"],
            "start_ticks": life.ident["start_ticks"],
            "exit_code": found.si_status if exited else None,
            "signal": None if exited else found.si_status,
            "oom_killed": killed and self._oom_killed() and self._was_victim(life),
        }
        self._record(wire.EXIT, record)
        return record

    def _kill_children(self) -> None:
        """SIGKILL to our children only: a pid that we have not reaped is nobody else's. Theirs become ours as they die,
        and each death brings us back here."""
        for pid in procfs.children(os.getpid()):
            os.kill(pid, signal.SIGKILL)

    def _record(self, name: str, record: wire.Message) -> None:
        """A full disk must not keep an engine down: without its record it is in doubt at the next recovery, so that is
        written as soon as there is room."""
        try:
            records.write(name, record, durable=False)
        except OSError:
            self._forget(name)
            self._unwritten[name] = record
        else:
            self._undurable.add(name)
            self._unwritten.pop(name, None)

    def _forget(self, name: str) -> None:
        self._undurable.discard(name)
        self._unwritten.pop(name, None)
        if os.path.exists(name):
            os.unlink(name)

    # Chores.

    def _patience(self) -> float | None:
        """How long the next wait may take, in seconds."""
        if self._trimming is not None:
            return 0
        if self._undurable:
            return _QUIET
        return None if self._idle() else max(0.0, self._next_look - time.monotonic())

    def _chores(self, *, quiet: bool) -> None:
        if self._trimming is not None:
            self._trim(self._trimming)
        elif quiet and self._undurable:
            self._make_durable(self._undurable.pop())
            gc.collect()
        elif not self._idle() and time.monotonic() >= self._next_look:
            self._look()

    def _trim(self, trimming: Iterator[None]) -> None:
        try:
            if next(trimming, self) is self:
                self._trimming = None
        except OSError:
            self._trimming = None  # the next look tries again

    def _make_durable(self, name: str) -> None:
        try:
            records.make_durable(name)
        except OSError:
            return  # gone, or a failing disk: what recovery then reads decides
        if name == wire.IDENT and self._life is not None and self._life.ended is None:
            # The last life's, which nobody needs now. Renaming over a file costs 0.1 ms more than to a free name: ext4
            # writes the data out (auto_da_alloc), and `exit` is written on the way to a restart.
            self._forget(wire.EXIT)

    def _oom_killed(self) -> bool:
        """Whether there was an OOM kill lately; others than the engine may die of it, so an old one proves nothing."""
        now, kills = time.monotonic(), oom.kills(self._orders.oom_file)
        if kills > self._oom_kills:
            self._oom_kills, self._last_oom = kills, now
        return now - self._last_oom < _OOM_SECONDS

    def _was_victim(self, life: Life) -> bool:
        """Where the kernel's log can be read it names the process; where it cannot, a kill in time has to do."""
        return oom.names_victim(life.ident["pid"], _OOM_SECONDS + _SLACK) is not False

    def _look(self) -> None:
        self._next_look = time.monotonic() + self._orders.look_every
        self._oom_killed()
        for name, record in list(self._unwritten.items()):
            self._record(name, record)
        if os.fstat(1).st_size > self._orders.log_limit:
            self._trimming = trim.trim(self._orders.log_limit)

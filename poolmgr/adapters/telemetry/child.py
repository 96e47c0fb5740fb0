"""The daemon's end of the telemetry process: starting it, talking to it, seeing it go."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from poolmgr.adapters.telemetry import process
from poolmgr.adapters.telemetry.process import wire

_PROCESS = str(Path(str(process.__file__)).parent)
_SOCKET_FD = 3
_PACKETS_AT_ONCE = 64  # before others have their turn on the loop
_LAST_WORDS = 2048  # bytes


class Child(Protocol):
    """A telemetry process, until it has gone."""

    @property
    def pid(self) -> int: ...
    @property
    def gone(self) -> asyncio.Event: ...
    def send(self, message: wire.Message) -> bool:
        """False when it has gone or does not read."""
        ...

    def hang_up(self) -> None:
        """It ends by itself; `on_end` is not told any more."""
        ...

    def kill(self) -> None:
        """Hangs up, and does not leave it to the process."""
        ...


class Spawned:
    """What a start leaves in the hands of whoever asked for it."""

    def __init__(self, extension: str, environment: Mapping[str, str]) -> None:
        """Starts the process. Blocks for a millisecond or two. Raises OSError.

        `extension`: the directory that has `poolmgr_ext`. It inherits nothing but three descriptors: what it prints
        comes to us, as its last words.
        """
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.words, printed = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with theirs:
                self.pid = os.posix_spawn(
                    sys.executable,
                    [sys.executable, "-I", "-S", _PROCESS, extension],
                    environment,
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_DUP2, printed, 1),
                        (os.POSIX_SPAWN_DUP2, printed, 2),
                        (os.POSIX_SPAWN_DUP2, theirs.fileno(), _SOCKET_FD),
                    ],
                    setsid=True,
                    setsigmask=[],
                    setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
                )
            self.pidfd = os.pidfd_open(self.pid)  # our child, which only we reap
        except OSError:
            self.socket.close()
            os.close(self.words)
            raise
        finally:
            os.close(printed)
        self.socket.setblocking(False)


class TelemetryChild:
    """`on_message` gets each message; `on_end` why it ended, once, unless it was hung up on."""

    def __init__(
        self, spawned: Spawned, on_message: Callable[[wire.Message], None], on_end: Callable[[str], None]
    ) -> None:
        self.pid = spawned.pid
        self.gone = asyncio.Event()
        self._socket, self._words, self._pidfd = spawned.socket, spawned.words, spawned.pidfd
        self._on_message, self._on_end = on_message, on_end
        self._assembly = wire.Assembly()
        self._said = b""
        self._listening = True
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._readable)
        self._loop.add_reader(self._words, self._overhear)
        self._loop.add_reader(self._pidfd, self._ended)

    def send(self, message: wire.Message) -> bool:
        try:
            for packet in wire.encode(message):
                self._socket.send(packet)
        except OSError:  # a process that does not read owes answers, which is seen
            return False
        return True

    def hang_up(self) -> None:
        self._listening = False
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def kill(self) -> None:
        self.hang_up()
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _readable(self) -> None:
        for _ in range(_PACKETS_AT_ONCE):
            try:
                packet = wire.receive(self._socket)
                message = self._assembly.add(packet) if packet else None
            except BlockingIOError:
                return
            except (OSError, ValueError) as error:
                self._end(f"the telemetry process says what makes no sense: {error}")
                return
            if not packet:  # why, is known when it is reaped
                self._loop.remove_reader(self._socket.fileno())
                return
            if message is not None:
                self._on_message(message)
            if not self._listening:
                return

    def _overhear(self) -> None:
        with suppress(BlockingIOError):
            heard = os.read(self._words, 65536)
            self._said = (self._said + heard)[-_LAST_WORDS:]
            if not heard:
                self._deafen()

    def _deafen(self) -> None:
        if self._words >= 0:
            self._loop.remove_reader(self._words)
            os.close(self._words)
            self._words = -1

    def _ended(self) -> None:
        status = None
        with suppress(ChildProcessError):
            status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        if self._words >= 0:
            self._overhear()
        self._deafen()
        self.gone.set()
        self._end(f"the telemetry process ended: {_cause(status)}{self._last_line()}")

    def _end(self, why: str) -> None:
        if self._listening:
            self.hang_up()
            self._on_end(why)

    def _last_line(self) -> str:
        lines = self._said.decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""


def _cause(status: os.waitid_result | None) -> str:
    if status is None:
        return os.strerror(errno.ECHILD)
    if status.si_code == os.CLD_EXITED:
        return f"exit code {status.si_status}"
    return f"signal {status.si_status}"

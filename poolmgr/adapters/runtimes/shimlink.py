"""The daemon's end of a shim: starting one, and talking to it."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from poolmgr.adapters import shim
from poolmgr.adapters.runtimes.enginedir import EngineDirectory
from poolmgr.adapters.shim import wire

_SHIM = str(Path(str(shim.__file__)).parent)
_LISTENER_FD = 3


def spawn(directory: EngineDirectory) -> int:
    """Starts a shim that listens in the directory at once, whenever it is up: a pidfd. Blocks; raises OSError.

    posix_spawn neither copies this process nor runs at-fork handlers. The shim gets a session of its own and nothing
    that outlives us but the log, as its stdout and stderr: the engine inherits them, and its own last words show there.
    """
    with directory.listen() as listener:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", _SHIM, str(directory.path)],
            {},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(directory.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, listener.fileno(), _LISTENER_FD),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        )
    return os.pidfd_open(pid)  # our child, which only we reap


class ShimLink:
    """One connection. `on_message` gets each message with its descriptors, `on_close` why it ended, exactly once."""

    def __init__(
        self,
        connection: socket.socket,
        on_message: Callable[[wire.Message, Sequence[int]], None],
        on_close: Callable[[OSError], None],
    ) -> None:
        self._socket = connection
        self._on_message = on_message
        self._on_close = on_close
        self.closed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection.fileno(), self._readable)
        self.send({"op": "hello", "versions": wire.VERSIONS})

    def send(self, message: wire.Message) -> bool:
        """False when the shim has gone, or has long stopped to read: `on_close` follows."""
        try:
            self._socket.send(wire.encode(message))
        except BlockingIOError:
            self.close()
            hung = TimeoutError(errno.ETIMEDOUT, "the shim does not read")
            self._loop.call_soon(self._on_close, hung)
            return False
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Hangs up without a word to `on_close`. The shim goes on."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self.closed.set()

    def _readable(self) -> None:
        while self._socket.fileno() >= 0:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, wire.MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
                message = wire.decode(data) if data else None
            except BlockingIOError:
                return
            except (OSError, ValueError):
                message = None
            if message is None:
                self.close()
                self._on_close(ConnectionResetError(errno.ECONNRESET, "the shim hung up"))
                return
            self._on_message(message, fds)


class ShimProcess:
    """A shim until it has gone and, when it is our child, is reaped. `pidfd` becomes its property."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self.gone = asyncio.Event()
        self._loop.add_reader(pidfd, self._ended)

    def kill(self) -> None:
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def left(self, seconds: float) -> bool:
        """Whether it has gone within that time."""
        return await happens(self.gone, seconds)

    def close(self) -> None:
        """Lets it go on without us."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _ended(self) -> None:
        with suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        self.close()
        self.gone.set()


async def happens(event: asyncio.Event, seconds: float) -> bool:
    """Whether it does within that time."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()

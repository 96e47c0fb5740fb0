"""The telemetry process: the only caller of the driver. It answers questions, samples, passes events on.

Threads: the main one has the socket and the kernel's log and never calls the driver, so that it sees the daemon go
whatever the driver does; one asks the driver what is asked; one waits for its events; one samples. The process ends
with its socket, at once: the driver may hold the other threads for ever.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
import traceback
from queue import SimpleQueue

from . import kernel_log, wire

TYPE_CHECKING = False  # as in `wire`
if TYPE_CHECKING:
    from collections.abc import Callable

    from poolmgr_ext.nvml import Library
    from poolmgr_ext.sampler import Sampler

_SOCKET_FD = 3
_MAX_QUESTIONS = 64
_EVENT_WAIT_MS = 1000
_EVENT_PAUSE = 1.0  # seconds after a wait that failed
_STACK_BYTES = 256 * 1024


def main() -> None:
    """Serves the daemon at the other end of descriptor 3 until that is closed."""
    os.closerange(_SOCKET_FD + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(_SOCKET_FD, False)
    threading.stack_size(_STACK_BYTES)
    threading.excepthook = _end_with
    service = Service(socket.socket(fileno=_SOCKET_FD))
    service.run()
    service.leave()
    os._exit(0)


def _end_with(failure: threading.ExceptHookArgs) -> None:
    """A thread less is a process that looks well and is not; the daemon reads why and starts another."""
    traceback.print_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
    os._exit(1)


class Outgoing:
    """The socket as the threads share it."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._turn = threading.Lock()

    def send(self, message: wire.Message) -> None:
        """Waits while the daemon does not read. When it has gone the main thread sees it, and that is the end."""
        try:
            packets = wire.encode(message)
        except ValueError as error:
            packets = wire.encode({"answer": message.get("answer"), "error": _told("FAILED", str(error))})
        with self._turn:
            try:
                for packet in packets:
                    self._socket.send(packet)
            except OSError:
                return


class Service:
    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._out = Outgoing(connection)
        self._assembly = wire.Assembly()
        self._questions: SimpleQueue[wire.Message] = SimpleQueue()
        self._log: kernel_log.KernelLog | None = None
        self._driver: Driver | None = None
        self._ring = ""

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._socket.fileno():
                    if not self._hear():
                        return
                    if self._log is not None:
                        poll.register(self._log.fd, select.POLLIN)
                elif self._log is not None:
                    self._pass_on(self._log)

    def leave(self) -> None:
        """A daemon that was killed removes no ring."""
        try:
            os.unlink(self._ring)
        except OSError:  # there was none, or the daemon did it
            return

    def _hear(self) -> bool:
        """False at the end of the conversation."""
        try:
            packet = wire.receive(self._socket)
            message = self._assembly.add(packet) if packet else {}
        except (OSError, ValueError):
            return False
        if message is None:
            return True
        if message.get("op") == "hello":
            return self._greet(message)
        if self._driver is None or "op" not in message:
            return False
        if message["op"] == "sample":
            self._ring = message["path"]
        if self._questions.qsize() >= _MAX_QUESTIONS:
            self._out.send({"answer": message["id"], "late": True})
        else:
            self._questions.put(message)
        return True

    def _greet(self, hello: wire.Message) -> bool:
        common = [version for version in wire.VERSIONS if version in hello["versions"]]
        if not common:
            return False
        if hello["kernel_log"]:
            try:
                self._log = kernel_log.KernelLog()
            except OSError:
                self._log = None
        self._out.send({"event": "hello", "version": common[0], "kernel_log": self._log is not None})
        self._driver = Driver(hello["library"], self._out, self._questions)
        threading.Thread(target=self._driver.run, name="questions", daemon=True).start()
        return True

    def _pass_on(self, log: kernel_log.KernelLog) -> None:
        for event in log.events_of(kernel_log.RECORDS_AT_ONCE):
            self._out.send({"event": "driver", **event})


class Driver:
    """The thread that asks, and the two that it starts."""

    def __init__(self, path: str, out: Outgoing, questions: SimpleQueue[wire.Message]) -> None:
        self._path = path
        self._out = out
        self._questions = questions
        self._library: Library | None = None
        self._sampling: tuple[Sampler, threading.Thread] | None = None
        self._heard_of: set[str] = set()
        self._present: set[str] = set()
        self._ask: dict[str, Callable[[wire.Message], wire.Message]] = {
            "discover": self._discover,
            "processes": self._processes,
            "memory": self._memory,
            "sample": self._sample,
        }

    def run(self) -> None:
        from poolmgr_ext.nvml import NvmlError  # dlopen is the driver's too: not before the daemon was greeted

        while True:
            question = self._questions.get()
            answer: wire.Message = {"answer": question["id"]}
            if time.clock_gettime(time.CLOCK_BOOTTIME) > question["deadline"]:
                answer["late"] = True
            else:
                try:
                    answer.update(self._ask[question["op"]](question))
                except NvmlError as error:
                    answer["error"] = _told(str(error.reason), str(error))
                except (OSError, ValueError) as error:
                    answer["error"] = _told("FAILED", str(error))
            self._out.send(answer)

    def _open(self) -> Library:
        from poolmgr_ext.nvml import Library

        library = Library(self._path)
        library.discover()
        self._library = library
        return library

    def _discover(self, question: wire.Message) -> wire.Message:
        library = self._library or self._open()
        found: wire.Message = library.discover()
        gpus = {device["device_id"] for device in found["devices"]}
        if gpus - self._heard_of:
            library.listen()
        if gpus and not self._heard_of:
            threading.Thread(target=self._listen, args=(library,), name="events", daemon=True).start()
        self._heard_of |= gpus
        if gpus != self._present and self._sampling is not None:
            # Handles of a device that was away are new, and what was not supported may be now (TEL-2).
            self._sampling[0].rediscovered()
        self._present = gpus
        return found

    def _processes(self, question: wire.Message) -> wire.Message:
        return {"devices": self._of_each(question["devices"], lambda library, name: library.processes(name))}

    def _memory(self, question: wire.Message) -> wire.Message:
        return {"devices": self._of_each(question["devices"], lambda library, name: library.memory(name)["free"])}

    def _of_each(self, names: list[str], ask: Callable[[Library, str], object]) -> dict[str, object]:
        """By device; without those that the driver does not answer for."""
        from poolmgr_ext.nvml import NvmlError

        answers: dict[str, object] = {}
        library = self._library or self._open()
        for name in names:
            try:
                answers[name] = ask(library, name)
            except (NvmlError, KeyError):
                continue
        return answers

    def _sample(self, question: wire.Message) -> wire.Message:
        from poolmgr_ext.sampler import Sampler

        if self._sampling is not None:
            sampler, thread = self._sampling
            self._sampling = None
            sampler.stop()
            thread.join()
        if self._library is None:
            raise ValueError("nothing was discovered yet")
        sampler = Sampler(
            self._library,
            question["path"],
            question["epoch"],
            rate_hz=question["rate_hz"],
            depth_seconds=question["depth_seconds"],
            max_bytes=question["max_bytes"],
        )
        thread = threading.Thread(target=self._run_sampler, args=(sampler,), name="sampler", daemon=True)
        self._sampling = (sampler, thread)
        thread.start()
        return {}

    def _run_sampler(self, sampler: Sampler) -> None:
        message = "it was not told to"
        try:
            sampler.run()
        except (RuntimeError, OSError, ValueError) as error:
            message = str(error)
        if self._sampling is not None and self._sampling[0] is sampler:
            self._out.send({"event": "sampler_ended", "message": message})

    def _listen(self, library: Library) -> None:
        from poolmgr_ext.nvml import NvmlError

        pause = threading.Event()
        while True:
            try:
                event = library.wait_event(_EVENT_WAIT_MS)
            except NvmlError:
                pause.wait(_EVENT_PAUSE)  # a device that was lost, or a driver without events: the next may differ
                continue
            if event is not None and event["kind"] != "OTHER":
                at = event.pop("at_ns") / 1e9
                self._out.send({"event": "driver", "source": "driver", "at": at, **event})


def _told(reason: str, message: str) -> wire.Message:
    return {"reason": reason, "message": message}

"""Questions to the telemetry process, until they are answered or their time is up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from poolmgr.adapters.telemetry.process import wire
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.ports import Clock, Timer

MAX_QUESTIONS = 64  # under way


@dataclass(slots=True)
class _Question:
    message: wire.Message
    answer: asyncio.Future[Mapping[str, Any]]
    timer: Timer | None = None
    sent: float | None = None


class Questions:
    """`send` gives a message to the process that runs now; False where there is none."""

    def __init__(self, clock: Clock, send: Callable[[wire.Message], bool]) -> None:
        self._clock = clock
        self._send = send
        self._open: dict[int, _Question] = {}
        self._last_id = 0
        self._heard = 0.0

    async def ask(self, op: str, timeout: float, /, **fields: object) -> Mapping[str, Any]:
        """The answer. A process that ends meanwhile is followed by one that is asked again.

        Raises EnvironmentFault(TELEMETRY_STALLED) when none came within `timeout` seconds.
        """
        if len(self._open) >= MAX_QUESTIONS:
            raise stalled(f"{len(self._open)} questions to the driver are not answered yet", timeout)
        self._last_id += 1
        number, deadline = self._last_id, self._clock.now() + timeout
        message = {"op": op, "id": number, "deadline": deadline, **fields}
        question = _Question(message, asyncio.get_running_loop().create_future())
        self._open[number] = question
        question.timer = self._clock.call_at(deadline, lambda: self._expire(question, timeout))
        self._put(question)
        try:
            return await question.answer
        finally:
            question.timer.cancel()
            if question.sent is None:
                self._open.pop(number, None)

    def answered(self, message: wire.Message) -> None:
        """Raises ValueError for an answer to what was not asked."""
        question = self._open.pop(message["answer"], None)
        if question is None:
            raise ValueError("an answer to no question")
        self._heard = self._clock.now()
        if not question.answer.done() and not message.get("late"):
            question.answer.set_result(message)

    def oldest(self) -> tuple[float, str] | None:
        """Since when the process owes an answer, and to what: they are asked of the driver one after the other."""
        for question in self._open.values():
            if question.sent is not None:
                return max(question.sent, self._heard), question.message["op"]
        return None

    def began(self) -> None:
        """Another process runs: what still waits is asked of it."""
        self.ended()
        for question in list(self._open.values()):
            self._put(question)

    def ended(self) -> None:
        """The process is gone: nobody waits for what is no longer wanted."""
        for number, question in list(self._open.items()):
            question.sent = None
            if question.answer.done():
                del self._open[number]

    def _put(self, question: _Question) -> None:
        if self._send(question.message):
            question.sent = self._clock.now()

    def _expire(self, question: _Question, timeout: float) -> None:
        if not question.answer.done():
            question.answer.set_exception(stalled("the driver did not answer in time", timeout))


def stalled(message: str, timeout: float) -> EnvironmentFault:
    return EnvironmentFault(Reason.TELEMETRY_STALLED, message, numbers={"timeout_seconds": timeout}, retry_after=1.0)

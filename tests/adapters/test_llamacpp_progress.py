"""What llama.cpp's /slots and /metrics tell of its work, as the server of the xllamacpp wheel and older ones say it."""

from __future__ import annotations

from typing import Any

import pytest

from poolmgr.adapters.engines.llamacpp import LlamaCppEngine
from poolmgr.adapters.engines.llamacpp_progress import progress_of
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.pool import EngineName, PoolSpec

SPEC = PoolSpec(EngineName.LLAMACPP)

pytestmark = pytest.mark.behaviour("LIVE-2")


def free(number: int = 0) -> dict[str, Any]:
    return {"id": number, "n_ctx": 2048, "speculative": False, "is_processing": False}


def busy(task: int = 2, processed: int = 0, decoded: int = 0, number: int = 1) -> dict[str, Any]:
    """As of build b0 of xllamacpp."""
    return {
        **free(number),
        "is_processing": True,
        "id_task": task,
        "n_prompt_tokens": 1504 + decoded,
        "n_prompt_tokens_processed": processed,
        "n_prompt_tokens_cache": 0,
        "next_token": [{"has_next_token": True, "has_new_line": False, "n_remain": 20, "n_decoded": decoded}],
    }


def metrics(decodes: int = 0, processing: int = 1) -> str:
    return (
        "# HELP llamacpp:n_decode_total Total number of llama_decode() calls\n"
        "# TYPE llamacpp:n_decode_total counter\n"
        f"llamacpp:n_decode_total {decodes}\n"
        f"llamacpp:requests_processing {processing}\n"
        f"llamacpp:n_busy_slots_per_decode {processing / 3}\n"
    )


def mark(slots: object, text: str = "") -> str:
    told = progress_of(slots, text)
    assert told is not None and told.mark is not None
    return told.mark


def test_slots_that_process_are_in_flight_and_the_others_free() -> None:
    told = progress_of([free(), busy(), free(2)], "")
    assert told is not None and (told.in_flight, told.free) == (1, 2)


@pytest.mark.parametrize(
    "later",
    [
        ([free(), busy(processed=512)], metrics()),
        ([free(), busy(decoded=1)], metrics()),
        ([free(), busy()], metrics(decodes=1)),
    ],
)
def test_a_batch_that_ended_makes_another_mark(later: tuple[list[Any], str]) -> None:
    assert mark([free(), busy()], metrics()) != mark(*later)


def test_a_request_that_comes_or_waits_is_no_work_done() -> None:
    before = mark([busy(number=0), busy(task=2)], metrics(processing=1))
    assert before == mark([busy(number=0), busy(task=9)], metrics(processing=2))


def test_without_metrics_another_request_on_the_slot_tells_that_the_last_one_ended() -> None:
    assert mark([busy(task=2)]) != mark([busy(task=3)])
    assert mark([busy(task=2)]) == mark([busy(task=2)])


def test_older_servers_say_it_in_other_places() -> None:
    one = {"id": 0, "is_processing": True, "id_task": 1, "next_token": {"n_decoded": 1}}
    two = {"id": 0, "is_processing": True, "id_task": 1, "n_past": 4, "n_decoded": 1}
    assert mark([one]) != mark([{**one, "next_token": {"n_decoded": 2}}])
    assert mark([two]) != mark([{**two, "n_past": 5}])


@pytest.mark.parametrize("answer", [None, {}, [], "slots", [1], {"error": {"code": 501}}, [{"is_processing": "yes"}]])
def test_an_answer_of_another_shape_says_nothing(answer: object) -> None:
    assert progress_of(answer, metrics()) is None


class Asked:
    """A server, and what it was asked."""

    def __init__(self, slots: list[Any], fault: str = "") -> None:
        self.slots, self.fault = slots, fault
        self.paths: list[tuple[str, float]] = []

    async def json(self, host: str, port: int, path: str, timeout: float) -> object:
        self.paths.append((path, timeout))
        return self.slots

    async def text(self, host: str, port: int, path: str, timeout: float) -> str:
        self.paths.append((path, timeout))
        if self.fault:
            raise EnvironmentFault(Reason.UNREACHABLE, self.fault)
        return metrics()


async def told(server: Asked) -> tuple[int, int | None]:
    progress = await LlamaCppEngine(server.json, get_text=server.text).progress(SPEC, 1, 3.0)
    assert progress is not None
    return progress.in_flight, progress.free


async def test_an_idle_server_is_asked_once_and_a_busy_one_for_its_counters_too_within_the_time() -> None:
    idle, working = Asked([free()]), Asked([free(), busy()])
    assert await told(idle) == (0, 1) and await told(working) == (1, 1)
    assert idle.paths == [("/slots", 1.5)] and working.paths == [("/slots", 1.5), ("/metrics", 1.5)]


async def test_a_server_that_does_not_show_its_metrics_is_known_by_its_slots() -> None:
    assert await told(Asked([busy()], "HTTP 501")) == (1, 0)

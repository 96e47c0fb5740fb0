"""What vLLM's /metrics tell of its work, as versions 0.32.0 and 0.33.0 show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolmgr.adapters.engines.vllm import VllmEngine
from poolmgr.adapters.engines.vllm_progress import progress_of
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.pool import EngineName, PoolSpec

SPEC = PoolSpec(EngineName.VLLM, slots=4)
PAGES = Path(__file__).parents[1] / "data" / "vllm"

pytestmark = pytest.mark.behaviour("LIVE-2")


def page(
    running: float = 0, waiting: float = 0, tokens: int = 10, prompt: int = 5, cache: float = 0.1, engines: int = 1
) -> str:
    lines = []
    for engine in range(engines):
        label = f'{{engine="{engine}",model_name="/models/a {{b}}"}}'
        lines += [
            "# HELP vllm:num_requests_running Number of requests in model execution batches.",
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{label} {running}",
            f"vllm:num_requests_waiting{label} {waiting}",
            f'vllm:num_requests_waiting_by_reason{{engine="{engine}",reason="capacity"}} {waiting}',
            f"vllm:kv_cache_usage_perc{label} {cache}",
            f"vllm:prompt_tokens_total{label} {float(prompt)}",
            f"vllm:prompt_tokens_created{label} 1.7953643953528892e+09",
            f"vllm:generation_tokens_total{label} {float(tokens)}",
            f"vllm:generation_tokens_by_hour{label} {running}",
        ]
    return "\n".join([*lines, 'http_requests_total{handler="/health"} 7.0', ""])


def mark(text: str) -> str:
    told = progress_of(text, 4)
    assert told is not None and told.mark is not None
    return told.mark


def test_running_and_waiting_requests_are_in_flight_and_the_other_slots_free() -> None:
    told = progress_of(page(running=1.0, waiting=2.0), 4)
    assert told is not None and (told.in_flight, told.free) == (3, 1)


def test_more_requests_than_slots_leave_none_free() -> None:
    told = progress_of(page(running=4.0, waiting=9.0), 4)
    assert told is not None and (told.in_flight, told.free) == (13, 0)


def test_requests_of_all_engine_processes_behind_one_server_count() -> None:
    told = progress_of(page(running=1.0, waiting=1.0, engines=2), 8)
    assert told is not None and (told.in_flight, told.free) == (4, 4)


@pytest.mark.parametrize("later", [page(1.0, tokens=11), page(1.0, prompt=6), page(1.0, cache=0.2)])
def test_a_token_a_prompt_and_a_part_of_a_prompt_each_make_another_mark(later: str) -> None:
    assert mark(page(1.0)) != mark(later)


def test_a_request_that_comes_waits_or_asks_for_health_is_no_work_done() -> None:
    later = page(2.0, waiting=3.0).replace("7.0", "8.0")
    assert mark(page(1.0)) == mark(later)


@pytest.mark.parametrize(
    "text", ["", "<html>", "vllm:num_requests_running NaN", "llamacpp:requests_processing 1", "x" * 9999]
)
def test_a_page_of_another_shape_says_nothing(text: str) -> None:
    assert progress_of(text, 4) is None


def test_a_gauge_of_any_length_is_read_in_no_time_or_not_at_all() -> None:
    assert progress_of("vllm:num_requests_running " + "9" * 100_000, 4) is None


def test_the_pages_of_a_real_engine_are_understood() -> None:
    idle, busy, later = ((PAGES / f"metrics-{name}.txt").read_text() for name in ("idle", "busy", "busy-later"))
    told = [progress_of(text, 4) for text in (idle, busy, later)]
    assert [(one.in_flight, one.free) for one in told if one] == [(0, 4), (1, 3), (1, 3)]
    assert len({mark(text) for text in (idle, busy, later)}) == 3


async def test_an_engine_is_asked_for_its_metrics_once_within_the_time() -> None:
    asked: list[object] = []

    async def get_json(*request: object) -> object:
        raise AssertionError(request)

    async def get_text(*request: object) -> str:
        asked.append(request)
        return page(running=1.0)

    told = await VllmEngine(get_json, get_text=get_text).progress(SPEC, 81, 3.0)
    assert told is not None and (told.in_flight, told.free) == (1, 3)
    assert asked == [("127.0.0.1", 81, "/metrics", 3.0)]
    assert await VllmEngine(get_json).progress(SPEC, 81, 3.0) is None


async def test_an_engine_that_does_not_answer_is_a_fault_and_no_guess() -> None:
    async def nobody(*request: object) -> str:
        raise EnvironmentFault(Reason.UNREACHABLE, "nobody there")

    with pytest.raises(EnvironmentFault):
        await VllmEngine(nobody, get_text=nobody).progress(SPEC, 81, 3.0)

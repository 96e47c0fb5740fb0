"""Timeouts under the oldest interpreter that we run on.

Python 3.11.2, Debian's, forgets to take back the cancellation by which a TaskGroup ended its own parent: a task that
has handled such a failure gets CancelledError from `asyncio.timeout` where TimeoutError is due, and so ends a pool's
work instead of going on. So the product uses neither; what it does use is tried here after such a failure.
"""

from __future__ import annotations

import ast
import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import poolmgr
from poolmgr.adapters.probe import NetworkProbe
from poolmgr.model.engine import ProbeOutcome, ProbeResult, ProbeTarget
from poolmgr.model.pool import EngineName, PoolSpec, PoolState
from tests.runtime.world import World

PRODUCT = sorted(path for path in Path(poolmgr.__file__).parent.rglob("*.py") if "v1" not in path.parts)
BANNED = {"timeout", "timeout_at", "TaskGroup", "Timeout"}


async def handle_a_failed_group() -> None:
    """Leaves the calling task as the interpreter leaves it."""

    async def fail() -> None:
        raise ValueError("one of the group")

    try:
        async with asyncio.TaskGroup() as group:  # waits at its end, which is where the cancellation is forgotten
            group.create_task(fail())
    except* ValueError:
        pass


def uses(source: str) -> Iterator[str]:
    """Names of asyncio that the product does without, as `asyncio.<name>` or imported from it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "asyncio":
            yield from BANNED & {node.attr}
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "asyncio":
            yield from BANNED & {alias.name for alias in node.names}


def test_the_product_uses_neither_asyncio_timeout_nor_task_groups() -> None:
    assert {path.name: found for path in PRODUCT if (found := list(uses(path.read_text())))} == {}
    assert len(PRODUCT) > 50


@pytest.mark.parametrize(
    "source", ["import asyncio\nasync def f():\n async with asyncio.timeout(1): pass", "from asyncio import TaskGroup"]
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert list(uses(source))


@pytest.mark.behaviour("PRE-2")
async def test_a_probe_times_out_as_a_failure_after_a_failed_task_group() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        await handle_a_failed_group()
        target = ProbeTarget("HTTP", "127.0.0.1", silent.getsockname()[1], "/health", timeout=0.05)
        result = await NetworkProbe()(target)
    assert result == ProbeResult(ProbeOutcome.FAILED, "no answer within 0.05 s")


@pytest.mark.behaviour("PRE-2", "LEASE-5")
async def test_waits_of_the_runtime_end_with_an_answer_after_a_failed_task_group() -> None:
    world = World()
    world.probe.result = ProbeResult(ProbeOutcome.LOADING)
    await world.facade.create_pool("a", PoolSpec(EngineName.COMMAND, command="/bin/engine"))

    async def wait_for_it() -> PoolState:
        await handle_a_failed_group()
        return (await world.facade.preload("a", 5.0)).view.state

    waiting = asyncio.ensure_future(wait_for_it())
    while not world.runtime.starts:
        await world.clock.advance(0.1)
    await world.clock.advance(6.0)
    assert await waiting is PoolState.STARTING
    await world.close()


async def test_wait_for_as_the_runtime_uses_it_times_out_after_a_failed_task_group() -> None:
    await handle_a_failed_group()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0.01)

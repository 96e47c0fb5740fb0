"""What the daemon asks of engines that serve, and what it makes of their answers (LIVE-2)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.engine import ProbeOutcome, ProbeResult, ProbeTarget, Progress, Usage
from poolmgr.model.pool import PoolSpec, PoolState
from poolmgr.testing.fakes import ScriptedKind, ScriptedProbe
from tests.runtime.gates import AnyGpu
from tests.runtime.world import World

WINDOW = 60.0
STUCK = Progress(1, "7", free=1)

pytestmark = pytest.mark.behaviour("LIVE-2")


@dataclass
class AskedKind(ScriptedKind):
    """Counts how often it was asked how it gets on, and for how long at most; `fault` is raised."""

    fault: EnvironmentFault | None = None
    timeouts: list[float] = field(default_factory=list)

    async def progress(self, spec: PoolSpec, port: int, timeout: float) -> Progress | None:
        self.timeouts.append(timeout)
        if self.fault is not None:
            raise self.fault
        return self.working


@dataclass
class SyntheticProbe(ScriptedProbe):
    """Health is as `result` says, a piece of work as `work` does."""

    work: ProbeResult = field(default_factory=lambda: ProbeResult(ProbeOutcome.OK))

    async def __call__(self, target: ProbeTarget) -> ProbeResult:
        answer = await super().__call__(target)
        return self.work if target.kind == "SYNTHETIC" else answer

    def requests(self) -> list[ProbeTarget]:
        return [target for target in self.asked if target.kind == "SYNTHETIC"]


async def serving(used: bool | None = None, **spec: object) -> tuple[World, AskedKind, SyntheticProbe]:
    """A world with one ready pool whose processes compute nothing. `used`: what is known of its GPU, if it has one."""
    kind, probe = AskedKind(), SyntheticProbe()
    world = World(kind=kind, probe=probe, gate=AnyGpu(used))
    world.runtime.used = Usage(cpu_seconds=1.0)
    await world.supervisor.recover()
    await world.ready_pool(**spec)
    return world, kind, probe


async def test_an_engine_that_serves_is_asked_how_it_gets_on_with_each_probe_within_its_time() -> None:
    world, kind, probe = await serving()
    before = len(probe.asked)
    await world.clock.advance(WINDOW)
    assert 10 <= len(kind.timeouts) == len(probe.asked) - before <= 14
    assert set(kind.timeouts) == {world.settings.supervision.health_check_timeout}


async def test_one_that_starts_or_fails_its_probe_is_not() -> None:
    world, kind, probe = await serving()
    assert not kind.timeouts
    probe.result = ProbeResult(ProbeOutcome.FAILED, "HTTP 500")
    await world.clock.advance(6.0)
    assert not kind.timeouts


@pytest.mark.behaviour("LIVE-3")
async def test_one_that_hangs_is_asked_to_end() -> None:
    world, kind, probe = await serving(slots=2, device_mask="none")
    kind.working = STUCK
    await world.clock.advance(WINDOW + 15.0)
    error = world.pool().last_error
    assert error is not None and error.reason == "HUNG" and not probe.requests()
    assert world.runtime.terminated


async def test_that_it_does_not_answer_proves_nothing() -> None:
    world, kind, probe = await serving(slots=2)
    kind.fault = EnvironmentFault(Reason.UNREACHABLE, "no answer")
    await world.clock.advance(10 * WINDOW)
    assert world.pool().state is PoolState.READY and not probe.requests()


async def test_one_with_a_gpu_that_nobody_reads_is_asked_for_a_piece_of_work_and_left_alone_when_it_answers() -> None:
    world, kind, probe = await serving(slots=2, device_mask="0")
    kind.working = STUCK
    await world.clock.advance(3 * WINDOW)
    assert world.pool().state is PoolState.READY
    assert [(target.path, target.timeout) for target in probe.requests()] == [("/verify", 60.0)] * 2


async def test_one_that_answers_wrongly_is_hung_after_as_many_wrong_answers_as_a_failed_health_check() -> None:
    world, kind, probe = await serving(slots=2, device_mask="0")
    kind.working = STUCK
    probe.work = ProbeResult(ProbeOutcome.FAILED, "HTTP 500")
    await world.clock.advance(WINDOW + 8.0)
    assert len(probe.requests()) == 1 and world.pool().state is PoolState.READY
    await world.clock.advance(15.0)
    assert len(probe.requests()) == 3
    error = world.pool().last_error
    assert error is not None and error.reason == "HUNG" and "HTTP 500" in error.message


@pytest.mark.parametrize(("busy", "hung"), [(True, False), (False, True)])
async def test_what_the_devices_say_of_its_gpu_counts(busy: bool, hung: bool) -> None:
    world, kind, _ = await serving(busy, slots=2, device_mask="0")
    kind.working = replace(STUCK, free=0)
    await world.clock.advance(WINDOW + 15.0)
    assert (world.pool().last_error is not None) is hung

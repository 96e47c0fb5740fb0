"""Places under pressure: asked for again and again, by many at once, for engines that are told what to take."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace

import pytest

from poolmgr.core.effects import Note, NoteName
from poolmgr.core.placement_explicit import in_ratio_order, stages_of
from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.claim import ProcessFacts, RunningEngine
from poolmgr.model.device import DeviceState
from poolmgr.model.device_health import DeviceNoteName
from poolmgr.model.engine import ExitRecord
from poolmgr.model.placement import PlacementQuery
from poolmgr.model.pool import EngineName, PoolSpec, PoolState, ReloadStrategy, SplitMode, SplitSpec
from poolmgr.runtime.bus import Noted
from poolmgr.runtime.leaving import Leaving
from poolmgr.runtime.places import Placed, Seeker
from poolmgr.testing.devices import GIB
from poolmgr.testing.fakes import InlineWorkers, ScriptedKind, settled
from tests.runtime.gates import AnyGpu
from tests.runtime.test_places import (
    FAST,
    SPEC,
    A,
    B,
    C,
    Host,
    Run,
    Served,
    a_pool,
    becomes_ready,
    gpu,
    host,
    predicted,
)
from tests.runtime.world import World

CRASH = ExitRecord(signal=11, source="shim")


class ToldKind(ScriptedKind):
    """An engine that takes of every device the share that it is told, as vLLM does."""

    def told_share(self, spec: PoolSpec, share: float) -> tuple[str, ...]:
        return ("--share", f"{share:.3f}")


def told_host(*gpus) -> Host:
    of = host(*gpus)
    of.estimates._outside.kinds[EngineName.VLLM] = ToldKind(EngineName.VLLM)
    return of


def told_pool(gib: float, **fields) -> PoolSpec:
    return replace(a_pool(gib, **fields), engine=EngineName.VLLM)


def layers_of(placed: Placed) -> dict[str, int]:
    assert placed.plan is not None
    return {one.device_id: one.last_layer - one.first_layer + 1 for one in placed.plan.assignments}


# A start is confirmed where it was chosen.


@pytest.mark.behaviour("SPLIT-2", "PLACE-1", "PRE-7")
@pytest.mark.parametrize("mask", ["auto", "0,1,2"])
@pytest.mark.parametrize("ratios", [(0.49, 0.01, 0.5), (1.0, 1e-9, 1e-9), (1e-9, 1.0, 1e-9)])
async def test_a_ratio_too_small_for_a_layer_sends_no_start_from_one_order_of_its_devices_to_the_next(mask, ratios):
    of = host(gpu(0), gpu(1), gpu(2))
    spec = replace(a_pool(4.0, mask), split=SplitSpec(SplitMode.EXPLICIT, ratios))
    async with of.desk:
        first = await of.find(spec)
        again = first
        for _ in range(3):
            again = await of.find(spec, before=again.devices)
            assert again.devices == first.devices and layers_of(again) == layers_of(first)


@pytest.mark.behaviour("SPLIT-2")
@pytest.mark.parametrize("ratios", [(0.49, 0.01, 0.5), (1.0, 2.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0, 1.0)])
def test_the_devices_of_a_choice_come_back_in_the_order_of_their_ratios(ratios):
    names = tuple("abcd"[: len(ratios)])
    used = [names[stage.device] for stage in stages_of(ratios, 8)]
    chosen = (*used, *(name for name in names if name not in used))
    assert in_ratio_order(ratios, 8, chosen) == names


@pytest.mark.behaviour("SPLIT-1", "PLACE-1", "PRE-7")
@pytest.mark.parametrize("seed", [51, 53, 58, 64, 81, 101, 115])
async def test_a_split_with_a_gpu_of_unknown_speed_is_confirmed_where_it_was_chosen(seed):
    """Which speed is taken for it depends on the others that are asked for; so does the order of the stages."""
    rng = random.Random(seed)
    kinds = [300e9, 900e9, 2e12, None]
    gpus = [gpu(n, rng.choice([16, 24, 40, 80]) * GIB, rng.choice(kinds)) for n in range(rng.randint(3, 6))]
    of = host(*gpus)
    async with of.desk:
        for n, one in enumerate(gpus):
            share = rng.choice([0.1, 0.25, 0.5, rng.random() * 0.6])
            of.desk.telemetry.hold(one.device_id, 900 + n, int(share * one.vram_total_bytes))
        spec = a_pool(rng.choice([20.0, 30.0, 50.0, 60.0]), mode=SplitMode.AUTO)
        first = await of.find(spec)
        again = await of.find(spec, before=first.devices)
        assert again.devices == first.devices
        kept = await of.find(spec, before=tuple(reversed(first.devices)))  # as an earlier version had chosen
        assert (await of.find(spec, before=kept.devices)).devices == kept.devices


@pytest.mark.behaviour("DEV-2", "MASK-1")
async def test_a_pool_that_may_use_all_devices_goes_on_without_the_one_that_has_gone():
    of = host(gpu(0), gpu(1))
    async with of.desk:
        of.desk.telemetry.show(gpu(1))
        assert (await of.find(a_pool(4.0, "all"), before=(A,))).devices == (B,)


# Engines that take what they are told.


@pytest.mark.behaviour("MEM-2", "PRE-6")
async def test_of_an_engine_that_takes_one_share_of_unequal_devices_that_share_is_set_aside_of_each():
    of = told_host(gpu(0, 16 * GIB), gpu(1, 80 * GIB, FAST))
    async with of.desk:
        of.desk.telemetry.hold(B, 999, 66 * GIB)
        fault = await of.refused(told_pool(20.0, mode=SplitMode.AUTO))
        assert fault.reason is Reason.INSUFFICIENT_MEMORY and fault.numbers["device_id"] == B
        of.desk.telemetry.hold(B, 999, 20 * GIB)
        placed = await of.find(replace(told_pool(20.0, mode=SplitMode.AUTO), device_mask="0,1"))
        if len(placed.devices) > 1:
            assert placed.reserved == {A: int(placed.share * 16 * GIB), B: int(placed.share * 80 * GIB)}


@pytest.mark.behaviour("MEM-2")
async def test_two_shares_on_unequal_devices_leave_of_the_larger_one_what_the_engine_leaves():
    of = told_host(gpu(0, 16 * GIB), gpu(1, 24 * GIB))
    async with of.desk:
        of.desk.telemetry.hold(B, 999, 2 * GIB)
        placed = await of.find(told_pool(26.0, mode=SplitMode.AUTO))
        assert set(placed.devices) == {A, B}
        assert placed.reserved == {A: int(placed.share * 16 * GIB), B: int(placed.share * 24 * GIB)}
        assert of.ledger.of("e1") == placed.reserved


@pytest.mark.behaviour("MEM-3", "SPLIT-6")
async def test_an_engine_that_takes_what_it_is_told_is_not_told_more_with_every_run():
    of, spec = told_host(gpu(0, 80 * GIB)), told_pool(20.0)
    async with of.desk:
        first = await of.find(spec)
        for _ in range(3):
            placed = await of.find(spec)
            assert placed == first
            await becomes_ready(of, spec, a=int(placed.share * 80 * GIB * 1.2))
            assert of.ledger.of("e1") == {}
            of.desk.telemetry.let_go(A, 50)
            of.desk.engines = []
        misses = [note for note in of.desk.notes if note.name is DeviceNoteName.MEMORY_MISS]
        assert len(misses) == 3, "that it took more is told all the same"


# Of what nobody knows how much it takes.


@pytest.mark.behaviour("PLACE-1")
async def test_an_engine_of_unknown_size_goes_where_most_is_left():
    of = host(gpu(0), gpu(1), gpu(2))
    async with of.desk:
        of.desk.telemetry.hold(A, 998, 20 * GIB)
        of.desk.telemetry.hold(C, 999, 24 * GIB)
        assert (await of.find(replace(SPEC, device_mask="auto"))).devices == (B,)


@pytest.mark.behaviour("SPLIT-1", "PRE-6")
@pytest.mark.parametrize("mask", ["auto", "0,1"])
async def test_a_start_of_a_declared_pool_that_splits_what_nobody_can_size_is_refused_for_good(mask):
    of = host(gpu(0), gpu(1))
    async with of.desk:
        with pytest.raises(ClientError) as refused:
            await of.find(replace(SPEC, device_mask=mask, split=SplitSpec(SplitMode.AUTO)))
        assert refused.value.reason is Reason.BAD_ARGUMENTS and of.ledger.of("e1") == {}


@pytest.mark.behaviour("PRE-6")
async def test_more_ratios_than_this_host_has_devices_are_refused_when_the_spec_is_taken():
    of = host(gpu(0), gpu(1))
    async with of.desk:
        spec = replace(a_pool(4.0), split=SplitSpec(SplitMode.EXPLICIT, (1.0, 1.0, 1.0)))
        with pytest.raises(ClientError) as refused:
            await of.places.check(spec)
        assert refused.value.reason is Reason.BAD_ARGUMENTS
        assert (refused.value.numbers["asked"], refused.value.numbers["devices"]) == (3, 2)


# Who is woken.


@dataclass
class Woken:
    of: Host
    times: int = 0

    def __post_init__(self) -> None:
        self.of.ledger.on_freed = self.wake

    def wake(self) -> None:
        self.times += 1


@pytest.mark.behaviour("MEM-2")
async def test_a_start_that_moves_frees_what_was_set_aside_for_it():
    of = host(gpu(0, bandwidth=FAST), gpu(1))
    async with of.desk:
        woken = Woken(of)
        await of.find(a_pool(14.0))
        assert (await of.find(a_pool(14.0), before=(A,))).devices == (A,) and woken.times == 0
        of.desk.telemetry.hold(A, 999, 12 * GIB)
        assert (await of.find(a_pool(14.0), before=(A,))).devices == (B,) and woken.times == 1


@pytest.mark.behaviour("MEM-3")
@pytest.mark.parametrize(("took", "times"), [(1.0, 0), (1.2, 0), (0.8, 1)])
async def test_an_engine_that_serves_wakes_those_who_wait_only_where_it_took_less_than_was_thought(took, times):
    of, spec = host(gpu(0)), a_pool(10.0)
    async with of.desk:
        woken = Woken(of)
        await of.find(spec)
        await becomes_ready(of, spec, a=int(predicted(10.0) * took))
        assert of.ledger.of("e1") == {} and woken.times == times


@pytest.mark.behaviour("MEM-2")
async def test_an_engine_that_was_ready_and_starts_again_before_it_was_measured_keeps_what_is_set_aside_for_it():
    of, spec = host(gpu(0)), a_pool(10.0)
    async with of.desk:
        await of.find(spec)
        of.desk.engines = [RunningEngine("e1", "pool-e1", 50, (A,), 1.0)]
        of.desk.table.facts[50] = ProcessFacts(50, 1, engine_id="e1")
        of.desk.telemetry.hold(A, 50, predicted(10.0))
        of.desk.telemetry.stall(0.5, "call")
        of.desk.registry.flows_again()  # nobody has noticed yet: the question stays open
        of.desk.bus.note(Noted(Served(spec, Run()), Note(NoteName.POOL_READY)))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        of.places.give_back("e1")
        of.places.resume("e1", "pool-e1", {A: predicted(10.0)})
        of.desk.telemetry.flow()
        await settled()
        assert of.ledger.of("e1") == {A: predicted(10.0)}


# Many at once.


@dataclass
class Counting:
    """How often the driver is asked for free memory, and how many of these at once."""

    inner: object
    asked: int = 0
    now: int = 0
    most: int = 0
    answers: asyncio.Event = field(default_factory=asyncio.Event)

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    async def free_memory(self, devices, timeout):
        self.asked, self.now = self.asked + 1, self.now + 1
        self.most = max(self.most, self.now)
        try:
            seen = await self.inner.free_memory(devices, timeout)
            await self.answers.wait()
            return seen
        finally:
            self.now -= 1


@pytest.mark.behaviour("MEM-2", "DEV-5")
async def test_many_starts_at_once_ask_the_driver_one_look_after_the_other_and_share_it():
    of = host(gpu(0), gpu(1))
    async with of.desk:
        driver = Counting(of.desk.telemetry)
        of.ledger._telemetry = driver
        finding = [asyncio.ensure_future(of.find(a_pool(0.1), f"e{n}")) for n in range(80)]
        await settled()
        late = asyncio.ensure_future(of.find(a_pool(2.0), "late"))
        driver.answers.set()
        placed = await asyncio.gather(*finding, late)
        assert driver.most == 1 and driver.asked <= 4
        by_device = [sum(one.reserved.get(device, 0) for one in placed) for device in (A, B)]
        assert max(by_device) <= 24 * GIB


@pytest.mark.behaviour("MEM-2")
async def test_who_waits_for_the_look_of_somebody_that_goes_away_gets_one_of_its_own():
    of = host(gpu(0))
    async with of.desk:
        driver = Counting(of.desk.telemetry)
        of.ledger._telemetry = driver
        first, leader, other = (asyncio.ensure_future(of.placement.look()) for _ in range(3))
        await settled()
        leader.cancel()
        other_too = asyncio.ensure_future(of.placement.look())
        await settled()
        driver.answers.set()
        for reading in (await first, await other, await other_too):
            assert reading.free == {A: 24 * GIB}
        assert leader.cancelled() and driver.most == 1
        gone = asyncio.ensure_future(of.placement.look())
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert (await of.placement.look()).free == {A: 24 * GIB}


@pytest.mark.behaviour("MEM-2")
async def test_a_look_that_began_before_it_was_asked_for_is_not_shared():
    of = host(gpu(0))
    async with of.desk:
        driver = Counting(of.desk.telemetry)
        of.ledger._telemetry = driver
        early = asyncio.ensure_future(of.placement.look())
        await settled()
        of.desk.telemetry.hold(A, 999, 12 * GIB)
        late = asyncio.ensure_future(of.placement.look())
        await settled()
        driver.answers.set()
        assert ((await early).free[A], (await late).free[A]) == (24 * GIB, 12 * GIB)


@pytest.mark.behaviour("PLACE-4", "STATE-1")
async def test_of_two_that_share_a_look_one_gets_the_trial_on_a_device_on_probation():
    of = host(gpu(0), gpu(1))
    async with of.desk:
        await of.desk.registry.cordon(B, "new fan")
        of.desk.xid(A)
        await of.desk.clock.advance(3600.5)
        assert of.desk.registry.device(A).view.state is DeviceState.PROBATION
        driver = Counting(of.desk.telemetry)
        of.ledger._telemetry = driver
        before = asyncio.ensure_future(of.placement.look())
        await settled()
        finding = [asyncio.ensure_future(of.find(a_pool(4.0), name)) for name in ("e1", "e2")]
        await settled()
        driver.answers.set()
        first, second = await asyncio.gather(*finding, return_exceptions=True)
        await before
        assert driver.asked == 2
    assert isinstance(first, Placed) and first.devices == (A,)
    assert isinstance(second, EnvironmentFault) and second.reason is Reason.DEVICE_UNAVAILABLE


@dataclass
class Elsewhere(InlineWorkers):
    """Remembers what it was given to do."""

    given: list[str] = field(default_factory=list)

    async def run(self, function, *args):
        self.given.append(getattr(function, "__name__", ""))
        return await super().run(function, *args)


@pytest.mark.behaviour("PLACE-5")
async def test_a_place_that_a_client_asks_for_is_looked_for_beside_the_event_loop():
    of = host(gpu(0))
    async with of.desk:
        of.placement._workers = workers = Elsewhere()
        answer = await of.placement.plan_placement(PlacementQuery("auto", bytes_per_device=30 * GIB, evict=True))
        assert answer.refusal is not None and workers.given == ["_place"]


@pytest.mark.behaviour("PLACE-4", "PLACE-1")
async def test_to_choose_among_sound_devices_puts_their_memory_down_to_its_holders_once():
    of = host(*(gpu(n) for n in range(8)))
    async with of.desk:
        reading = await of.placement.look()
        calls = 0

        def engines():
            nonlocal calls
            calls += 1
            return []

        of.desk.registry.engines = engines
        of.placement._candidates(reading)
        assert calls <= 3


# Pools that wait, and pools that leave.


@pytest.mark.behaviour("MEM-2", "PROC-3")
async def test_a_pool_that_waits_for_memory_starts_as_soon_as_an_engine_has_ended_and_its_memory_is_back():
    world = await World(gate=AnyGpu(held=asyncio.Event())).recovered()
    Leaving(world.supervisor, lambda device_id: "")
    await world.ready_pool("a", device_mask="0")
    world.gate.fault = EnvironmentFault(Reason.INSUFFICIENT_MEMORY, "no room")
    await world.facade.create_pool("b", replace(SPEC, device_mask="0"))
    await world.facade.preload("b", 0.0)
    await settled()
    assert world.pool("b").state is PoolState.BACKOFF
    await world.facade.stop("a", 0.0, 0.0)
    await world.obey()
    world.gate.fault = None
    assert world.pool("b").state is PoolState.BACKOFF, "the driver still shows what the other one held"
    world.gate.held.set()
    await settled()
    assert world.pool("b").engine is not None, "and no time has passed"
    await world.close()


@pytest.mark.behaviour("STATE-1", "DRN-2")
async def test_an_engine_that_a_reload_has_brought_onto_a_device_that_is_to_be_left_leaves_it():
    @dataclass
    class Moves(AnyGpu):
        """The next engine gets the second GPU."""

        async def find(self, seeker: Seeker) -> Placed:
            placed = await super().find(seeker)
            return placed if seeker.generation == 1 else Placed(("GPU-1",))

    world = await World(gate=Moves(room=True)).recovered()
    reasons: dict[str, str] = {}
    leaving = Leaving(world.supervisor, lambda device_id: reasons.get(device_id, ""))
    await world.ready_pool("a", device_mask="0")
    await world.facade.reload_pool("a", None, ReloadStrategy.AUTO, None, 0.0)
    assert world.pool().beside is not None
    reasons["GPU-1"] = "cordoned"
    leaving.move_away("GPU-1", "cordoned")
    for _ in range(5):
        await world.clock.advance(1.0)
        await world.obey()
    assert world.pool().reload is None and world.pool().generation == 2
    drained = [note.note.fields for note in world.noted if note.note.fields.get("new_state") == "DRAINING"]
    assert "device GPU-1: cordoned" in [fields["reason"] for fields in drained]
    await world.close()

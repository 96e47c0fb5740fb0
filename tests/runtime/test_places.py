"""Which devices a start gets, and how much of them is set aside for it; over a real registry, estimator and planner."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from poolmgr.core import split_search
from poolmgr.core.effects import Note, NoteName
from poolmgr.core.estimate import estimate
from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.claim import ClaimKind, ProcessFacts, RunningEngine
from poolmgr.model.device import Absence
from poolmgr.model.device_health import DeviceNoteName
from poolmgr.model.memory import MemoryQuestion
from poolmgr.model.pool import EngineName, ModelSpec, PoolSpec, SplitMode, SplitSpec
from poolmgr.model.shape import LayerShape, ModelFormat, ModelShape
from poolmgr.runtime.estimates import Estimates, Learning, Lesson
from poolmgr.runtime.ledger import Ledger
from poolmgr.runtime.placement import Placement, Seekers
from poolmgr.runtime.places import DevicePlaces, Means, Placed, Seeker
from poolmgr.testing.devices import GIB, a_gpu, an_instance
from poolmgr.testing.fakes import InlineWorkers, ScriptedKind, settled
from tests.runtime.test_device_registry import Desk, TextMemory

A, B, C = (a_gpu(n).device_id for n in range(3))
SLOW, FAST = 300e9, 900e9
SPEC = PoolSpec(EngineName.COMMAND, command="/bin/engine")


def a_model(gib: float, layers: int = 8) -> ModelShape:
    """Of so many GiB, in equal layers; its cache is small."""
    layer = LayerShape(int(gib * GIB / layers), query_width=64, key_width=64, value_width=64, feed_forward=128)
    return ModelShape(
        ModelFormat.GGUF, "llama", (layer,) * layers, embedding_length=64, vocabulary=300, heads=4, kv_heads=4,
        context_limit=256,
    )  # fmt: skip


class Models:
    """A reader of the models `/m/<GiB>`."""

    def read(self, path: str) -> ModelShape:
        if path == "/m/bad":
            raise ClientError(Reason.MODEL_INVALID, "no model at all", numbers={"path": path})
        return a_model(float(path.removeprefix("/m/")))


class Reference:
    def search(self, request):
        return split_search.search(request)


def gpu(number: int, total: int = 24 * GIB, bandwidth: float = SLOW):
    return replace(a_gpu(number), vram_total_bytes=total, vram_free_bytes=total, memory_bandwidth_bytes=bandwidth)


@dataclass
class Host:
    desk: Desk
    learned: TextMemory = field(default_factory=TextMemory)
    shunned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        desk = self.desk
        kinds = {EngineName.LLAMACPP: ScriptedKind(EngineName.LLAMACPP), EngineName.COMMAND: ScriptedKind()}
        self.ledger = Ledger(desk.registry, desk.telemetry, desk.clock)
        learning = Learning(kinds, Models(), self.learned, InlineWorkers())
        self.estimates = Estimates(learning, desk.clock, desk.tasks)
        self.placement = Placement(
            desk.registry, desk.telemetry, Seekers(self.ledger, self.estimates, Reference(), InlineWorkers())
        )
        means = Means(
            desk.registry, self.ledger, self.estimates, self.placement, lambda pool, generation: frozenset(self.shunned)
        )
        self.places = DevicePlaces(means, desk.bus, desk.tasks)

    async def find(self, spec: PoolSpec, engine_id: str = "e1", before: tuple[str, ...] = ()) -> Placed:
        return await self.places.find(Seeker(spec, engine_id, f"pool-{engine_id}", 1, before))

    async def refused(self, spec: PoolSpec, engine_id: str = "e9") -> EnvironmentFault:
        with pytest.raises(EnvironmentFault) as refused:
            await self.find(spec, engine_id)
        assert self.ledger.of(engine_id) == {}
        return refused.value


def host(*gpus, **fields) -> Host:
    return Host(Desk(*gpus), **fields)


def a_pool(gib: float | str, mask: str = "auto", mode: SplitMode = SplitMode.NONE, **fields: object) -> PoolSpec:
    model = ModelSpec(f"/m/{gib}", context_length=256)
    return PoolSpec(EngineName.LLAMACPP, model, device_mask=mask, split=SplitSpec(mode), **fields)  # type: ignore[arg-type]


def predicted(gib: float, factor: float = 1.0) -> int:
    question = MemoryQuestion(f"/m/{gib}", 256)
    return estimate(a_model(gib), question, factor).one_device_bytes


@pytest.mark.behaviour("SPLIT-1", "MASK-1")
async def test_auto_takes_the_fastest_single_device_on_which_the_model_fits():
    of = host(gpu(0), gpu(1, bandwidth=FAST), gpu(2, 8 * GIB, bandwidth=2 * FAST))
    async with of.desk:
        assert (await of.find(a_pool(12.0))).devices == (B,)
        assert (await of.find(a_pool(4.0), "e2")).devices == (C,)


@pytest.mark.behaviour("SPLIT-1")
async def test_a_mask_is_what_may_be_used_and_no_more_than_it_takes_is():
    of = host(gpu(0), gpu(1, bandwidth=FAST), gpu(2, bandwidth=2 * FAST))
    async with of.desk:
        placed = await of.find(a_pool(12.0, "0,1"))
        assert (placed.devices, set(placed.reserved)) == ((B,), {B})


@pytest.mark.behaviour("MEM-2", "PLACE-2")
async def test_two_that_ask_at_once_never_get_the_same_memory():
    of = host(gpu(0), gpu(1))
    async with of.desk:
        placed = await asyncio.gather(*(of.find(a_pool(14.0), f"e{n}") for n in (1, 2)))
        assert {one.devices for one in placed} == {(A,), (B,)}
        fault = await of.refused(a_pool(14.0))
    assert fault.reason is Reason.INSUFFICIENT_MEMORY
    need = predicted(14.0)
    assert fault.numbers["missing_bytes"] == need - (24 * GIB - need)


@pytest.mark.behaviour("MEM-2")
async def test_what_is_given_back_is_free_again_and_somebody_hears_of_it():
    of = host(gpu(0))
    async with of.desk:
        freed: list[int] = []
        of.ledger.on_freed = lambda: freed.append(1)
        await of.find(a_pool(14.0))
        await of.refused(a_pool(14.0))
        assert freed == []
        of.places.give_back("e1")
        assert freed == [1]
        assert (await of.find(a_pool(14.0), "e2")).devices == (A,)


@pytest.mark.behaviour("MEM-2", "SIM-4")
async def test_a_stranger_that_comes_between_the_choice_and_the_start_moves_the_start_elsewhere():
    of = host(gpu(0, bandwidth=FAST), gpu(1))
    async with of.desk:
        spec = a_pool(14.0)
        first = await of.find(spec)
        assert first.devices == (A,)
        of.desk.telemetry.hold(A, 999, 12 * GIB)
        assert (await of.find(spec, before=first.devices)).devices == (B,)
        of.desk.telemetry.hold(B, 998, 12 * GIB)
        fault = await of.refused(spec, "e1")
        assert fault.reason is Reason.INSUFFICIENT_MEMORY and "by strangers" in fault.message
        of.desk.telemetry.let_go(A, 999)
        assert (await of.find(spec)).devices == (A,)


@pytest.mark.behaviour("PLACE-4", "STATE-1")
async def test_a_start_leaves_a_device_that_takes_no_work_and_stays_where_it_was_otherwise():
    of = host(gpu(0), gpu(1, bandwidth=FAST))
    async with of.desk:
        spec = a_pool(4.0)
        assert (await of.find(spec, before=(A,))).devices == (A,), "though the other is faster"
        of.desk.xid(A)
        assert (await of.find(spec, before=(A,))).devices == (B,)
        of.desk.xid(B)  # one of two is out: the budget keeps this one in
        assert (await of.find(spec)).devices == (B,)
        await of.desk.registry.cordon(B, "new fan")
        fault = await of.refused(spec)
    assert fault.reason is Reason.DEVICE_UNAVAILABLE
    assert "quarantined" in fault.message and "cordoned" in fault.message


@pytest.mark.behaviour("RST-3")
async def test_a_device_on_which_this_generation_has_failed_is_the_last_to_be_tried_again():
    of = host(gpu(0, bandwidth=FAST), gpu(1), shunned={A})
    async with of.desk:
        assert (await of.find(a_pool(4.0), before=(A,))).devices == (B,)
        of.desk.telemetry.hold(B, 999, 23 * GIB)
        assert (await of.find(a_pool(4.0))).devices == (A,)


@pytest.mark.behaviour("SPLIT-1", "SPLIT-6")
async def test_a_model_that_is_split_gets_all_devices_of_the_plan_or_none():
    of = host(gpu(0), gpu(1))
    async with of.desk:
        spec = a_pool(30.0, mode=SplitMode.AUTO)
        placed = await of.find(spec)
        assert set(placed.devices) == {A, B} == set(placed.reserved)
        assert placed.plan is not None
        assert [one.device_id for one in placed.plan.assignments] == list(placed.devices)
        of.places.give_back("e1")
        of.desk.telemetry.hold(B, 999, 20 * GIB)
        assert (await of.refused(spec)).reason is Reason.INSUFFICIENT_MEMORY
        assert of.desk.registry.claims(A) == []


@pytest.mark.behaviour("PRE-6")
async def test_what_would_not_fit_on_the_empty_host_is_refused_when_the_spec_is_taken():
    of = host(gpu(0), gpu(1))
    async with of.desk:
        of.desk.telemetry.hold(A, 999, 20 * GIB)
        await of.places.check(a_pool(20.0))
        with pytest.raises(ClientError) as refused:
            await of.places.check(a_pool(30.0))
        assert refused.value.reason is Reason.INSUFFICIENT_MEMORY
        assert refused.value.numbers["missing_bytes"] == predicted(30.0) - 24 * GIB
        await of.places.check(a_pool(30.0, mode=SplitMode.AUTO))
        with pytest.raises(ClientError):
            await of.places.check(a_pool(60.0, mode=SplitMode.AUTO))


@pytest.mark.behaviour("PRE-6")
async def test_a_model_that_cannot_be_read_is_refused_by_its_own_reason():
    of = host(gpu(0))
    async with of.desk:
        with pytest.raises(ClientError) as refused:
            await of.places.check(a_pool("bad"))
        assert refused.value.reason is Reason.MODEL_INVALID


@pytest.mark.behaviour("SPLIT-1")
async def test_a_split_of_what_nobody_can_size_is_refused_and_a_mask_of_it_taken_as_it_stands():
    of = host(gpu(0), gpu(1))
    async with of.desk:
        with pytest.raises(ClientError) as refused:
            await of.places.check(replace(SPEC, device_mask="0,1", split=SplitSpec(SplitMode.AUTO)))
        assert refused.value.reason is Reason.BAD_ARGUMENTS
        assert (await of.find(replace(SPEC, device_mask="1,0"))).devices == (B, A)
        auto = await of.find(replace(SPEC, device_mask="auto"), "e2")
        assert len(auto.devices) == 1


@pytest.mark.behaviour("DEV-5", "MEM-2")
async def test_while_the_driver_hangs_nothing_is_placed_by_guess_and_what_was_named_still_starts():
    of = host(gpu(0), gpu(1))
    async with of.desk:
        of.desk.telemetry.stall(3.0, "call")
        finding = asyncio.ensure_future(of.refused(a_pool(4.0)))
        await settled()
        await of.desk.clock.advance(10.0)
        fault = await finding
        assert fault.reason in (Reason.TELEMETRY_STALLED, Reason.DEVICE_UNAVAILABLE)
        assert (await of.find(replace(SPEC, device_mask="0"))).devices == (A,)
        of.desk.telemetry.flow()
        assert (await of.find(a_pool(4.0))).devices == (A,)


# What is seen of it.


@pytest.mark.behaviour("MEM-3")
async def test_what_is_set_aside_is_a_claim_of_its_own_until_the_engine_runs_and_part_of_its_claim_then():
    of = host(gpu(0))
    async with of.desk:
        placed = await of.find(a_pool(4.0))
        (claim,) = of.desk.registry.claims()
        assert (claim.kind, claim.holder, claim.engine_id) == (ClaimKind.RESERVATION, "pool-e1", "e1")
        assert claim.reserved_bytes == placed.reserved[A] == predicted(4.0) and claim.measured_bytes is None
        of.desk.engines = [RunningEngine("e1", "pool-e1", 50, (A,), 1.0, of.ledger.of("e1"))]
        (claim,) = of.desk.registry.claims()
        assert (claim.kind, claim.reserved_bytes) == (ClaimKind.ENGINE, predicted(4.0))
        of.places.give_back("e1")
        of.desk.engines = []
        assert of.desk.registry.claims() == []


@dataclass
class Run:
    engine_id: str = "e1"
    ready_at: float | None = 1.0
    version: str = "b7"

    @property
    def facts(self):
        return self


@dataclass
class Served:
    """As much of a pool as is looked at."""

    spec: PoolSpec
    engine: Run = field(default_factory=Run)
    beside: None = None


async def becomes_ready(of: Host, spec: PoolSpec, **held: int) -> None:
    """The engine of pid 50 holds so much of each device, and its pool says that it serves."""
    of.desk.engines = [RunningEngine("e1", "pool-e1", 50, (A, B), 1.0)]
    of.desk.table.facts[50] = ProcessFacts(50, 1, engine_id="e1")
    for name, size in held.items():
        of.desk.telemetry.hold({"a": A, "b": B}[name], 50, size)
    from poolmgr.runtime.bus import Noted

    of.desk.bus.note(Noted(Served(spec), Note(NoteName.POOL_READY)))  # type: ignore[arg-type]
    await settled()


@pytest.mark.behaviour("MEM-3", "SPLIT-6", "PRE-9")
async def test_what_an_engine_takes_once_it_serves_counts_instead_and_is_learned_and_remembered():
    of, spec = host(gpu(0)), a_pool(10.0)
    async with of.desk:
        await of.find(spec)
        took = int(predicted(10.0) * 1.25)
        await becomes_ready(of, spec, a=took)
        assert of.ledger.of("e1") == {}
        (miss,) = [note for note in of.desk.notes if note.name is DeviceNoteName.MEMORY_MISS]
        assert (miss.device_id, miss.fields["measured_bytes"]) == (A, took)
        reading = await of.placement.look()
        entry = of.ledger.entries(reading, of.desk.registry.present())[A]
        assert (entry.measured_bytes, entry.unmanaged_bytes, entry.free_bytes) == (took, 0, 24 * GIB - took)
        again = await of.estimates.of_spec(spec)
        assert again is not None and again.factor == pytest.approx(1.25, rel=1e-6)
        assert again.one_device_bytes == pytest.approx(took, rel=1e-3)
    after = host(gpu(0), learned=of.learned)
    async with after.desk:
        assert await after.estimates.load() == ()
        later = await after.estimates.of_spec(spec)
        assert later is not None and later.one_device_bytes == again.one_device_bytes
        other = await after.estimates.of_spec(replace(spec, args=("--other",)))
        assert other is not None and other.factor == 1.0


@pytest.mark.behaviour("SPLIT-6")
async def test_a_share_that_was_right_is_no_event():
    of, spec = host(gpu(0)), a_pool(10.0)
    async with of.desk:
        await of.find(spec)
        await becomes_ready(of, spec, a=int(predicted(10.0) * 1.05))
        assert [note for note in of.desk.notes if note.name is DeviceNoteName.MEMORY_MISS] == []


async def test_what_was_learned_and_cannot_be_read_is_told_and_void():
    of = host(gpu(0), learned=TextMemory("{"))
    async with of.desk:
        (trouble,) = await of.estimates.load()
        assert "void" in trouble
        assert (await of.estimates.of_spec(a_pool(4.0))).factor == 1.0  # type: ignore[union-attr]


# Beside one that runs.


@pytest.mark.behaviour("DRN-2")
@pytest.mark.parametrize(("gib", "fits"), [(4.0, True), (14.0, False)])
async def test_a_reload_fits_beside_its_engine_where_there_is_memory_for_both(gib, fits):
    of, spec = host(gpu(0)), a_pool(14.0)
    async with of.desk:
        await of.find(spec)
        await becomes_ready(of, spec, a=predicted(14.0))
        assert await of.places.fits(a_pool(gib)) is fits
        assert await of.places.fits(a_pool(gib, "none"))
        assert not await of.places.fits(replace(SPEC, device_mask="0")), "nobody knows what it takes"
        assert of.ledger.of("e1") == {} and [c.kind for c in of.desk.registry.claims()] == [ClaimKind.ENGINE]


@pytest.mark.behaviour("PROC-6", "MEM-2")
async def test_an_engine_that_the_next_daemon_finds_starting_has_its_memory_set_aside_again():
    of = host(gpu(0))
    async with of.desk:
        of.places.resume("e1", "pool-e1", {A: predicted(14.0)})
        assert (await of.refused(a_pool(14.0))).reason is Reason.INSUFFICIENT_MEMORY


# Masks.


@pytest.mark.behaviour("MASK-1", "PRE-6")
async def test_a_mask_that_names_nothing_is_refused_with_what_exists_when_the_spec_is_taken():
    of = host(gpu(0), gpu(1))
    async with of.desk:
        with pytest.raises(ClientError) as refused:
            await of.places.check(replace(SPEC, device_mask="7"))
        assert refused.value.reason is Reason.BAD_MASK and A[:12] in refused.value.message


@pytest.mark.behaviour("MASK-2")
async def test_two_mig_instances_for_one_process_are_refused_when_the_spec_is_taken():
    whole = replace(gpu(0), mig_mode=True)
    of = host(whole, an_instance(whole, 0), an_instance(whole, 1))
    async with of.desk:
        with pytest.raises(ClientError) as refused:
            await of.places.check(replace(SPEC, device_mask="0.0,0.1"))
        assert refused.value.reason is Reason.BAD_MASK


@pytest.mark.behaviour("PRE-6", "DEV-4")
@pytest.mark.parametrize("absence", [a for a in Absence if a is not Absence.NOT_LOOKED])
async def test_every_reason_for_which_there_are_no_gpus_is_told_apart_with_what_to_do(absence):
    of = host()
    async with of.desk:
        of.desk.telemetry.show(absence=absence, message=f"because of {absence}", advice="do this")
        with pytest.raises(ClientError) as refused:
            await of.places.check(replace(SPEC, device_mask="0"))
        assert refused.value.numbers == {"device_mask": "0", "devices": 0, "absence": absence.value}
        assert f"because of {absence}; do this" in refused.value.message
        assert (await of.refused(replace(SPEC, device_mask="0"))).reason is Reason.GPU_REQUIRED
        await of.places.check(SPEC)
        assert await of.find(SPEC) == Placed()


@pytest.mark.behaviour("MASK-4", "DEV-2")
async def test_a_device_that_has_gone_keeps_a_start_waiting_and_not_its_spec_from_being_right():
    of = host(gpu(0), gpu(1), gpu(2))
    async with of.desk:
        of.desk.telemetry.show(gpu(0), gpu(2))
        assert (await of.refused(replace(SPEC, device_mask=B))).reason is Reason.DEVICE_UNAVAILABLE
        with pytest.raises(EnvironmentFault):
            await of.find(replace(SPEC, device_mask="1"), before=(B,))  # another card is the second one now
        of.desk.telemetry.show(gpu(0), gpu(1), gpu(2))
        assert (await of.find(replace(SPEC, device_mask="1"), before=(B,))).devices == (B,)


@pytest.mark.behaviour("STATE-1")
async def test_a_device_that_takes_no_work_says_why():
    of = host(gpu(0), gpu(1), gpu(2), gpu(3))
    async with of.desk:
        await of.desk.registry.cordon("0", "maintenance")
        of.desk.xid(B)
        for mask, refusal in (("0", "CORDONED"), ("1", "QUARANTINED")):
            fault = await of.refused(replace(SPEC, device_mask=mask))
            assert (fault.reason, fault.numbers["refusal"]) == (Reason.DEVICE_UNAVAILABLE, refusal)


@pytest.mark.behaviour("MEM-3")
async def test_what_others_have_taught_since_a_prediction_does_not_change_what_it_teaches():
    of, spec = host(gpu(0), gpu(1)), a_pool(10.0)
    async with of.desk:
        await of.find(spec)
        took = int(predicted(10.0) * 1.25)
        lesson = Lesson({A: predicted(10.0)}, {A: took}, 1.0)
        for _ in range(3):  # of three engines that were placed before the first of them served
            of.estimates.learn(spec, "b7", lesson)
        again = await of.estimates.of_spec(spec)
        assert again is not None and again.factor == pytest.approx(1.25, rel=1e-6)


@pytest.mark.behaviour("MEM-3", "PROC-6")
async def test_an_engine_of_an_earlier_daemon_teaches_nothing_when_it_is_found_again():
    of, spec = host(gpu(0)), a_pool(10.0)
    async with of.desk:
        of.places.resume("e1", "pool-e1", {A: predicted(10.0)})
        await becomes_ready(of, spec, a=int(predicted(10.0) * 1.25))
        again = await of.estimates.of_spec(spec)
        assert again is not None and again.factor == 1.0 and of.ledger.of("e1") == {}

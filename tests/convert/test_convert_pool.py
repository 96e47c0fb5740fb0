"""Pools to protobuf and back: nothing is lost, nothing malformed gets in."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolmgr.convert.pool import (
    BREAKERS,
    ENGINES,
    MAX_ITEMS,
    MAX_STRING_BYTES,
    PROBES,
    RESTARTS,
    SPLITS,
    STATES,
    STRATEGIES,
    generation_to_proto,
    masked_spec,
    pool_id_from,
    pool_to_proto,
    spec_from_proto,
    spec_to_proto,
    strategy_from_proto,
)
from poolmgr.errors import ClientError, Reason
from poolmgr.model.engine import ExitRecord
from poolmgr.model.plan import Assignment, Objective, SplitPlan
from poolmgr.model.pool import (
    BreakerState,
    EngineName,
    GenerationView,
    ModelSpec,
    Origin,
    PoolError,
    PoolSpec,
    PoolState,
    PoolView,
    ProbeKind,
    ProbeSpec,
    ReloadStrategy,
    RestartMode,
    SplitMode,
    SplitSpec,
    SupervisionOverrides,
)
from poolmgr.v1 import pool_pb2 as pb

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(exclude_characters="\0=", exclude_categories=["Cs"]), min_size=1, max_size=20)
seconds = (st.just(0) | st.integers(10, 86_400_000)).map(lambda ms: ms / 1000)
probes = st.builds(
    ProbeSpec,
    kind=st.sampled_from(ProbeKind),
    path=texts.map(lambda text: f"/{text}"),
    service=texts,
    body=texts,
    expect=texts,
    interval=seconds,
    timeout=seconds,
    failure_threshold=st.integers(0, 1000),
)
supervisions = st.builds(
    SupervisionOverrides,
    **{field.name: st.none() | st.integers(1, 10_000) for field in fields(SupervisionOverrides)},
)
ratios = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=64).map(tuple)
splits = st.builds(SplitSpec, st.sampled_from([SplitMode.NONE, SplitMode.AUTO])) | st.builds(
    SplitSpec, st.just(SplitMode.EXPLICIT), ratios
)
specs = st.builds(
    PoolSpec,
    engine=st.just(EngineName.COMMAND),
    model=st.builds(
        ModelSpec,
        path=st.just("") | texts.map(lambda text: f"/{text}"),
        digest=st.sampled_from(["", "sha256:" + "0f" * 32]),
        context_length=st.integers(0, 2**32 - 1),
        cache_type=texts,
    ),
    command=texts,
    args=st.lists(texts).map(tuple),
    env=st.dictionaries(names, texts),
    device_mask=texts,
    slots=st.integers(1, 4096),
    port=st.integers(0, 65535),
    readiness=probes,
    liveness=probes,
    restart=st.sampled_from(RestartMode),
    supervision=supervisions,
    drain_deadline=seconds,
    preload=st.booleans(),
    priority=st.integers(-(2**31) + 1, 2**31 - 1),
    labels=st.dictionaries(names, texts),
    split=splits,
)

SMALLEST = pb.PoolSpec(engine=pb.ENGINE_COMMAND, command="sleep")


def refused(spec: pb.PoolSpec) -> ClientError:
    with pytest.raises(ClientError) as refusal:
        spec_from_proto(spec)
    assert refusal.value.reason is Reason.INVALID_ARGUMENT
    return refusal.value


def refused_field(**changes) -> str:
    spec = pb.PoolSpec()
    spec.CopyFrom(SMALLEST)
    spec.MergeFrom(pb.PoolSpec(**changes))
    return str(refused(spec).numbers["field"])


@given(specs)
def test_a_spec_comes_back_from_protobuf_as_it_went(spec):
    assert spec_from_proto(spec_to_proto(spec)) == spec


@pytest.mark.parametrize("engine", EngineName)
def test_every_engine_comes_back_as_it_went(engine):
    assert spec_from_proto(spec_to_proto(PoolSpec(engine))).engine is engine


@pytest.mark.parametrize(
    ("table", "values"),
    [
        (ENGINES, pb.Engine.values()),
        (RESTARTS, pb.RestartMode.values()),
        (STRATEGIES, pb.ReloadStrategy.values()),
        (SPLITS, pb.SplitMode.values()),
        (STATES, pb.Pool.State.values()),
        (BREAKERS, pb.Pool.BreakerState.values()),
        (PROBES, [*pb.Probe.Kind.values(), 0]),
    ],
)
def test_members_and_specified_protobuf_values_correspond_one_to_one(table, values):
    zero_is_a_member = table is PROBES
    assert sorted(table.values()) == sorted(v for v in set(values) if v or zero_is_a_member)
    assert set(table) == set(type(next(iter(table))))


def test_what_a_client_leaves_out_gets_its_default():
    assert spec_from_proto(SMALLEST) == PoolSpec(EngineName.COMMAND, command="sleep")


def test_a_drain_deadline_of_zero_is_not_an_absent_one():
    spec = spec_to_proto(PoolSpec(EngineName.COMMAND, drain_deadline=0.0))
    assert spec_from_proto(spec).drain_deadline == 0.0


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("spec.slots", {"slots": 4097}),
        ("spec.port", {"port": 65536}),
        ("spec.engine", {"engine": 99}),
        ("spec.restart", {"restart": 99}),
        ("spec.runtime", {"runtime": 99}),
        ("spec.readiness.kind", {"readiness": {"kind": 99}}),
        ("spec.readiness.path", {"readiness": {"path": "health"}}),
        ("spec.liveness.interval", {"liveness": {"interval": {"seconds": -1}}}),
        ("spec.drain_deadline", {"drain_deadline": {"seconds": -1}}),
        ("spec.drain_deadline", {"drain_deadline": {"seconds": 10**11}}),
        ("spec.supervision.health_check_interval_ms", {"supervision": {"health_check_interval_ms": 0}}),
        ("spec.supervision.start_timeout_secs", {"supervision": {"start_timeout_secs": 10**6}}),
        ("spec.model.digest", {"model": {"digest": "md5:0"}}),
        ("spec.args", {"args": ["x"] * (MAX_ITEMS + 1)}),
        ("spec.env", {"env": {f"K{n}": "" for n in range(MAX_ITEMS + 1)}}),
        ("spec.labels", {"labels": {f"k{n}": "" for n in range(MAX_ITEMS + 1)}}),
        ("spec.labels", {"labels": {"note": "x" * (MAX_STRING_BYTES + 1)}}),
        ("spec.args", {"args": ["é" * (MAX_STRING_BYTES // 2 + 1)]}),
        ("spec.command", {"command": "sle\0ep"}),
        ("spec.env", {"env": {"A": "\0"}}),
        ("spec.env.A=B", {"env": {"A=B": ""}}),
        ("spec.model.path", {"model": {"path": "/\0"}}),
        ("spec.liveness.body", {"liveness": {"body": "\0"}}),
        ("spec.split.mode", {"split": {"mode": 99}}),
        ("spec.split.ratios", {"split": {"mode": pb.SPLIT_EXPLICIT}}),
        ("spec.split.ratios", {"split": {"ratios": [1.0]}}),
        ("spec.split.ratios", {"split": {"mode": pb.SPLIT_AUTO, "ratios": [1.0, 1.0]}}),
        ("spec.split.ratios", {"split": {"mode": pb.SPLIT_EXPLICIT, "ratios": [1.0] * 65}}),
        ("spec.split.ratios[1]", {"split": {"mode": pb.SPLIT_EXPLICIT, "ratios": [1.0, 0.0]}}),
        ("spec.split.ratios[0]", {"split": {"mode": pb.SPLIT_EXPLICIT, "ratios": [-1.0, 1.0]}}),
        ("spec.split.ratios[0]", {"split": {"mode": pb.SPLIT_EXPLICIT, "ratios": [float("nan")]}}),
        ("spec.split.ratios[1]", {"split": {"mode": pb.SPLIT_EXPLICIT, "ratios": [1.0, float("inf")]}}),
    ],
)
def test_a_value_that_no_pool_can_have_is_refused_by_its_name(field, changes):
    assert refused_field(**changes) == field


def test_an_unspecified_engine_is_refused_with_the_engines_there_are():
    assert "COMMAND" in refused(pb.PoolSpec(command="sleep")).message


def test_a_refusal_tells_the_limit():
    assert refused(pb.PoolSpec(engine=pb.ENGINE_COMMAND, slots=5000)).message.startswith(
        "spec.slots must be 1 to 4096, not 5000"
    )


def test_a_refusal_of_huge_values_still_fits_into_headers():
    spec = pb.PoolSpec(engine=pb.ENGINE_COMMAND, model={"path": "x" * 4000}, env={"=" * 4000: ""})
    assert len(refused(spec).message) <= 1024


def test_only_a_command_pool_may_do_without_a_probe():
    spec = pb.PoolSpec(engine=pb.ENGINE_LLAMACPP, readiness={"kind": pb.Probe.NONE})
    assert refused(spec).numbers["field"] == "spec.readiness.kind"
    assert refused_field(slots=5000, readiness={"kind": pb.Probe.NONE}) == "spec.slots"


@pytest.mark.parametrize("text", ["a", "chat-7b", "0" * 63])
def test_a_well_formed_pool_id_passes(text):
    assert pool_id_from(text) == text


@pytest.mark.parametrize("text", ["", "Chat", "a b", "a/b", "a\n", "é", "0" * 64])
def test_a_malformed_pool_id_is_refused_and_named(text):
    with pytest.raises(ClientError) as refusal:
        pool_id_from(text)
    assert refusal.value.reason is Reason.INVALID_ARGUMENT
    assert repr(text) in refusal.value.message


CURRENT = PoolSpec(
    EngineName.COMMAND,
    model=ModelSpec("/old", context_length=512),
    command="sleep",
    args=("1", "2"),
    env={"A": "1"},
    slots=2,
    drain_deadline=7.0,
)


def test_a_mask_changes_the_named_fields_only():
    update = pb.PoolSpec(slots=8, model={"path": "/new", "context_length": 1}, command="rm")
    changed = masked_spec(CURRENT, update, ["spec.slots", "spec.model.path"])
    assert changed.slots == 8
    assert changed.model == ModelSpec("/new", context_length=512)
    assert changed.command == "sleep"


def test_a_masked_list_or_map_is_replaced_and_not_added_to():
    changed = masked_spec(CURRENT, pb.PoolSpec(args=["3"], env={"B": "2"}), ["spec.args", "spec.env"])
    assert (changed.args, dict(changed.env)) == (("3",), {"B": "2"})


def test_a_masked_field_that_is_absent_goes_back_to_its_default():
    changed = masked_spec(CURRENT, pb.PoolSpec(), ["spec.args", "spec.drain_deadline", "spec.model.path"])
    assert (changed.args, changed.drain_deadline, changed.model.path) == ((), 300.0, "")


@pytest.mark.behaviour("SPLIT-2")
def test_a_mask_reaches_into_a_split_and_keeps_it_sound():
    explicit = pb.PoolSpec(split={"mode": pb.SPLIT_EXPLICIT, "ratios": [3, 1]})
    split = masked_spec(CURRENT, explicit, ["spec.split"])
    assert split.split == SplitSpec(SplitMode.EXPLICIT, (3.0, 1.0))
    other = pb.PoolSpec(split={"ratios": [1]})
    assert masked_spec(split, other, ["spec.split.ratios"]).split == SplitSpec(SplitMode.EXPLICIT, (1.0,))
    assert masked_spec(split, pb.PoolSpec(), ["spec.split"]).split == SplitSpec()
    with pytest.raises(ClientError, match=r"split\.ratios are for EXPLICIT only"):
        masked_spec(split, pb.PoolSpec(split={"mode": pb.SPLIT_AUTO}), ["spec.split.mode"])


@pytest.mark.parametrize("paths", [[], ["spec"]])
def test_without_a_mask_the_whole_spec_is_replaced(paths):
    assert masked_spec(CURRENT, SMALLEST, paths) == PoolSpec(EngineName.COMMAND, command="sleep")


@pytest.mark.parametrize(
    "path", ["", "slots", "pool_id", "spec.", "spec.slot", "spec.slots.x", "spec.env.A", "spec..x"]
)
def test_a_mask_that_names_no_field_of_the_spec_is_refused(path):
    with pytest.raises(ClientError) as refusal:
        masked_spec(CURRENT, SMALLEST, [path])
    assert refusal.value.reason is Reason.INVALID_ARGUMENT
    assert repr(path) in refusal.value.message


def test_a_mask_cannot_smuggle_in_a_bad_value():
    with pytest.raises(ClientError):
        masked_spec(CURRENT, pb.PoolSpec(slots=5000), ["spec.slots"])


def view(**changes) -> PoolView:
    values = {
        "pool_id": "chat",
        "spec": CURRENT,
        "origin": Origin.CONFIG,
        "revision": (3 << 40) | 7,
        "generation": 2,
        "state": PoolState.READY,
        "state_reason": "serving",
        "live": True,
        "ready": True,
        "draining": False,
        "slots_total": 2,
        "slots_free": 1,
        "active_leases": 1,
        "waiting": 4,
        "engine_id": "ab" * 16,
        "engine_version": "b1",
        "endpoint": "127.0.0.1:8080",
        "pid": 42,
        "restart_count": 3,
        "breaker_state": BreakerState.HALF_OPEN,
        "backoff_until": None,
        "last_error": None,
        "progress_phase": "",
        "progress_message": "",
        "progress_bytes": 0,
        "create_time": 1_700_000_000.25,
        "start_time": 1_700_000_001.0,
        "ready_time": 1_700_000_002.5,
        "context_length": 512,
        "load_time": 1.5,
        "memory_bytes": 2**40,
    }
    return PoolView(**{**values, **changes})


def test_a_pool_shows_every_field_of_its_view():
    pool = pool_to_proto(view())
    assert pool.spec == spec_to_proto(CURRENT)
    assert (pool.state, pool.breaker_state, pool.engine) == (pb.Pool.READY, pb.Pool.HALF_OPEN, pb.ENGINE_COMMAND)
    assert pool.revision == (3 << 40) | 7
    assert pool.create_time.ToMilliseconds() == 1_700_000_000_250
    assert pool.load_time.ToMilliseconds() == 1500
    assert (pool.origin, pool.endpoint, pool.memory_bytes) == ("config", "127.0.0.1:8080", 2**40)
    for name in ("generation", "live", "ready", "slots_total", "slots_free", "active_leases", "waiting", "pid"):
        assert getattr(pool, name) == getattr(view(), name)


def test_what_is_unknown_is_absent_and_not_zero():
    pool = pool_to_proto(view(ready_time=None, load_time=None, memory_bytes=None))
    for name in ("backoff_until", "last_error", "progress", "ready_time", "load_time", "memory_bytes"):
        assert not pool.HasField(name)


def test_an_exit_code_of_zero_is_shown_and_a_missing_one_is_not():
    zero = PoolError("EXIT_CODE", "ended", 5.0, ("bye",), ExitRecord(exit_code=0), uptime=2.0)
    error = pool_to_proto(view(last_error=zero)).last_error
    assert error.HasField("exit_code")
    assert not error.HasField("signal")
    assert list(error.log_tail) == ["bye"]
    assert not pool_to_proto(view(last_error=PoolError("PORT_TAKEN", "", 5.0))).last_error.HasField("exit_code")


def test_progress_is_shown_while_there_is_a_phase():
    progress = pool_to_proto(view(progress_phase="loading", progress_bytes=9, progress_message="x")).progress
    assert (progress.phase, progress.bytes_done, progress.message) == ("loading", 9, "x")


def test_a_reload_is_shown_while_one_is_under_way():
    pool = pool_to_proto(view(reload_phase="starting", reload_generation=3))
    assert (pool.reload_phase, pool.reload_generation, pool.generation) == ("starting", 3, 2)
    assert (pool_to_proto(view()).reload_phase, pool_to_proto(view()).reload_generation) == ("", 0)


@pytest.mark.parametrize("strategy", ReloadStrategy)
def test_every_strategy_of_a_reload_arrives_as_it_was_sent(strategy):
    assert strategy_from_proto(STRATEGIES[strategy]) is strategy


def test_a_reload_without_a_strategy_chooses_by_itself():
    assert strategy_from_proto(pb.RELOAD_UNSPECIFIED) is ReloadStrategy.AUTO


def test_an_unknown_strategy_is_refused_with_those_there_are():
    with pytest.raises(ClientError, match="MAKE_BEFORE_BREAK") as refusal:
        strategy_from_proto(99)
    assert (refusal.value.reason, refusal.value.numbers["field"]) == (Reason.INVALID_ARGUMENT, "strategy")


@pytest.mark.behaviour("DRN-4")
def test_a_generation_shows_every_field_of_its_view():
    whole = GenerationView(7, CURRENT, 1_700_000_000.25, current=True, committed=True, rolled_back=2, blocked=True)
    shown = generation_to_proto(whole)
    assert shown.spec == spec_to_proto(CURRENT)
    assert shown.create_time.ToMilliseconds() == 1_700_000_000_250
    for name in ("generation", "current", "committed", "rolled_back", "blocked"):
        assert getattr(shown, name) == getattr(whole, name)
    bare = generation_to_proto(GenerationView(1, CURRENT, 1.0, False, False, 0, False))
    assert (bare.current, bare.committed, bare.blocked) == (False, False, False)


def test_a_pool_shows_the_split_that_its_engine_was_started_with_and_none_before():
    plan = SplitPlan(True, Objective.MIN_LATENCY, assignments=(Assignment("GPU-a", 0, 31, 5, 6, 7, 1.0),))
    shown = pool_to_proto(view(split_plan=plan)).split_plan
    assert (shown.fits, shown.assignments[0].device_id, shown.assignments[0].last_layer) == (True, "GPU-a", 31)
    assert not pool_to_proto(view()).HasField("split_plan")

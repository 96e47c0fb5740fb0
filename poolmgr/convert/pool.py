"""Pools: model <-> protobuf. What comes from outside is checked for form; whether it can run is the kind's to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Final

from google.protobuf.message import Message

from poolmgr.convert.common import (
    duration_to_proto,
    enum_from,
    enum_table,
    invalid,
    optional_duration,
    optional_timestamp,
    seconds,
    timestamp_to_proto,
)
from poolmgr.convert.split_plan import split_plan_to_proto
from poolmgr.errors import ClientError, Number, Reason
from poolmgr.model.limits import is_pool_id, spec_problems
from poolmgr.model.pool import (
    BreakerState,
    EngineName,
    GenerationView,
    ModelSpec,
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

# What keeps a spec inside one message, one exec and one row.
MAX_ITEMS: Final = 256
MAX_STRING_BYTES: Final = 4096
# An error travels in headers, which have 8 KiB for everything.
MAX_MESSAGE: Final = 1024

ENGINES: Final = enum_table(EngineName, pb.Engine.Value, "ENGINE_")
RESTARTS: Final = enum_table(RestartMode, pb.RestartMode.Value, "RESTART_")
SPLITS: Final = enum_table(SplitMode, pb.SplitMode.Value, "SPLIT_")
STRATEGIES: Final = enum_table(ReloadStrategy, pb.ReloadStrategy.Value, "RELOAD_")
STATES: Final = enum_table(PoolState, pb.Pool.State.Value)
BREAKERS: Final = enum_table(BreakerState, pb.Pool.BreakerState.Value)
PROBES: Final[dict[ProbeKind, pb.Probe.Kind.ValueType]] = {
    ProbeKind.DEFAULT: pb.Probe.KIND_UNSPECIFIED,
    **enum_table((kind for kind in ProbeKind if kind is not ProbeKind.DEFAULT), pb.Probe.Kind.Value),
}
ENGINE_NAMES: Final = {value: member for member, value in ENGINES.items()}
_RESTART_MODES = {
    pb.RESTART_UNSPECIFIED: RestartMode.ON_FAILURE,
    **{value: member for member, value in RESTARTS.items()},
}
_RELOAD_STRATEGIES = {
    pb.RELOAD_UNSPECIFIED: ReloadStrategy.AUTO,
    **{value: member for member, value in STRATEGIES.items()},
}
_SPLIT_MODES = {pb.SPLIT_MODE_UNSPECIFIED: SplitMode.NONE, **{value: member for member, value in SPLITS.items()}}
_OVERRIDES = tuple(field.name for field in fields(SupervisionOverrides))
_DRAIN_DEFAULT = PoolSpec(EngineName.COMMAND).drain_deadline
_PROBE_KINDS = {value: member for member, value in PROBES.items()}


def pool_id_from(text: str) -> str:
    """A well-formed pool id, else ClientError(INVALID_ARGUMENT) that names it."""
    if not is_pool_id(text):
        raise invalid("pool_id", f"{text[:80]!r} is not 1 to 63 of a-z, 0-9 and '-'", value=text[:80])
    return text


def spec_from_proto(spec: pb.PoolSpec) -> PoolSpec:
    """The spec with its defaults filled in. Raises ClientError(INVALID_ARGUMENT) naming the field and its limits."""
    _check_texts(spec, "spec")
    if spec.runtime not in (pb.RUNTIME_UNSPECIFIED, pb.RUNTIME_PROCESS):
        raise invalid("spec.runtime", f"is unknown ({spec.runtime})", value=spec.runtime)
    made = PoolSpec(
        engine=enum_from(ENGINE_NAMES, spec.engine, "spec.engine"),
        model=_model_from_proto(spec.model),
        command=spec.command,
        args=tuple(spec.args),
        env=dict(spec.env),
        device_mask=spec.device_mask,
        slots=spec.slots or 1,
        port=spec.port,
        readiness=_probe_from_proto(spec.readiness, "spec.readiness"),
        liveness=_probe_from_proto(spec.liveness, "spec.liveness"),
        restart=enum_from(_RESTART_MODES, spec.restart, "spec.restart"),
        supervision=SupervisionOverrides(**{field.name: value for field, value in spec.supervision.ListFields()}),
        drain_deadline=seconds(spec.drain_deadline) if spec.HasField("drain_deadline") else _DRAIN_DEFAULT,
        preload=spec.preload,
        priority=spec.priority,
        labels=dict(spec.labels),
        split=split_from_proto(spec.split, "spec.split"),
    )
    _check_values(made)
    return made


def strategy_from_proto(value: pb.ReloadStrategy.ValueType) -> ReloadStrategy:
    """AUTO where nothing is said. Raises ClientError(INVALID_ARGUMENT)."""
    return enum_from(_RELOAD_STRATEGIES, value, "strategy")


def masked_spec(current: PoolSpec, update: pb.PoolSpec, paths: Sequence[str]) -> PoolSpec:
    """`current` with the fields that `paths` name taken from `update`, absent ones reset; no paths mean all of it.

    Paths start at the pool: "spec", "spec.slots", "spec.model.path". Raises ClientError(INVALID_ARGUMENT).
    """
    target, source = pb.Pool(spec=spec_to_proto(current)), pb.Pool(spec=update)
    for path in paths or ("spec",):
        _replace_field(target, source, path)
    return spec_from_proto(target.spec)


def split_from_proto(split: pb.Split, field: str) -> SplitSpec:
    """For form only; `split_problems` says what is wrong with the numbers. Raises ClientError(INVALID_ARGUMENT)."""
    return SplitSpec(enum_from(_SPLIT_MODES, split.mode, f"{field}.mode"), tuple(split.ratios))


def split_to_proto(split: SplitSpec) -> pb.Split:
    return pb.Split(mode=SPLITS[split.mode], ratios=split.ratios)


def spec_to_proto(spec: PoolSpec) -> pb.PoolSpec:
    model = spec.model
    overrides = {name: getattr(spec.supervision, name) for name in _OVERRIDES}
    return pb.PoolSpec(
        engine=ENGINES[spec.engine],
        model=pb.Model(
            path=model.path,
            digest=model.digest,
            context_length=model.context_length,
            cache_type=model.cache_type,
        ),
        command=spec.command,
        args=spec.args,
        env=spec.env,
        device_mask=spec.device_mask,
        slots=spec.slots,
        runtime=pb.RUNTIME_PROCESS,
        port=spec.port,
        readiness=_probe_to_proto(spec.readiness),
        liveness=_probe_to_proto(spec.liveness),
        restart=RESTARTS[spec.restart],
        supervision=pb.Supervision(**overrides),
        drain_deadline=duration_to_proto(spec.drain_deadline),
        preload=spec.preload,
        priority=spec.priority,
        labels=spec.labels,
        split=split_to_proto(spec.split),
    )


def pool_to_proto(view: PoolView) -> pb.Pool:
    spec = view.spec
    return pb.Pool(
        pool_id=view.pool_id,
        spec=spec_to_proto(spec),
        state=STATES[view.state],
        state_reason=view.state_reason,
        revision=view.revision,
        generation=view.generation,
        live=view.live,
        ready=view.ready,
        draining=view.draining,
        slots_total=view.slots_total,
        slots_free=view.slots_free,
        active_leases=view.active_leases,
        engine=ENGINES[spec.engine],
        engine_version=view.engine_version,
        device_mask=spec.device_mask,
        endpoint=view.endpoint,
        pid=view.pid,
        restart_count=view.restart_count,
        breaker_state=BREAKERS[view.breaker_state],
        backoff_until=optional_timestamp(view.backoff_until),
        last_error=_error_to_proto(view.last_error) if view.last_error else None,
        progress=_progress_to_proto(view),
        create_time=timestamp_to_proto(view.create_time),
        ready_time=optional_timestamp(view.ready_time),
        context_length=view.context_length,
        load_time=optional_duration(view.load_time),
        memory_bytes=view.memory_bytes,
        origin=view.origin.value,
        waiting=view.waiting,
        reload_phase=view.reload_phase,
        reload_generation=view.reload_generation,
        split_plan=split_plan_to_proto(view.split_plan) if view.split_plan else None,
    )


def generation_to_proto(view: GenerationView) -> pb.PoolGeneration:
    return pb.PoolGeneration(
        generation=view.generation,
        spec=spec_to_proto(view.spec),
        create_time=timestamp_to_proto(view.create_time),
        current=view.current,
        committed=view.committed,
        rolled_back=view.rolled_back,
        blocked=view.blocked,
    )


def _model_from_proto(model: pb.Model) -> ModelSpec:
    return ModelSpec(model.path, model.digest, model.context_length, model.cache_type)


def _probe_from_proto(probe: pb.Probe, field: str) -> ProbeSpec:
    return ProbeSpec(
        enum_from(_PROBE_KINDS, probe.kind, f"{field}.kind"),
        probe.path,
        probe.service,
        probe.body,
        probe.expect,
        seconds(probe.interval),
        seconds(probe.timeout),
        probe.failure_threshold,
    )


def _probe_to_proto(probe: ProbeSpec) -> pb.Probe:
    return pb.Probe(
        kind=PROBES[probe.kind],
        path=probe.path,
        service=probe.service,
        body=probe.body,
        expect=probe.expect,
        interval=duration_to_proto(probe.interval) if probe.interval else None,
        timeout=duration_to_proto(probe.timeout) if probe.timeout else None,
        failure_threshold=probe.failure_threshold,
    )


def _error_to_proto(error: PoolError) -> pb.Pool.Error:
    return pb.Pool.Error(
        reason=error.reason,
        message=error.message,
        at=timestamp_to_proto(error.at),
        log_tail=error.log_tail,
        exit_code=error.exit.exit_code if error.exit else None,
        signal=error.exit.signal if error.exit else None,
        uptime=optional_duration(error.uptime),
        memory_bytes=error.memory_bytes,
    )


def _progress_to_proto(view: PoolView) -> pb.Pool.Progress | None:
    if not view.progress_phase:
        return None
    return pb.Pool.Progress(
        phase=view.progress_phase,
        bytes_done=view.progress_bytes,
        message=view.progress_message,
        queue_position=view.queue_position,
    )


def _check_texts(message: Message, field: str) -> None:
    """Every string and every count of the message, however deep."""
    for descriptor, value in message.ListFields():
        name = f"{field}.{descriptor.name}"
        if isinstance(value, str):
            _check_text(value, name)
        elif isinstance(value, Message):
            _check_texts(value, name)
        elif descriptor.is_repeated:
            _check_count(len(value), MAX_ITEMS, "items", name)
            for each in (*value, *value.values()) if isinstance(value, Mapping) else value:
                if isinstance(each, str):
                    _check_text(each, name)


def _check_text(text: str, field: str) -> None:
    if "\0" in text:
        raise invalid(field, "holds a NUL byte, which no argument, path or variable can carry")
    _check_count(len(text.encode()), MAX_STRING_BYTES, "bytes", field)


def _check_count(count: int, most: int, of: str, field: str) -> None:
    if count > most:
        raise invalid(field, f"has {count} {of}, at most {most} are allowed", value=count, high=most)


def _check_values(spec: PoolSpec) -> None:
    problems = spec_problems(spec)
    if problems:
        first = problems[0]
        message = "; ".join(f"spec.{problem}" for problem in problems)
        numbers: dict[str, Number] = {"field": f"spec.{first.name}"[:80], "problems": len(problems), **first.numbers}
        raise ClientError(Reason.INVALID_ARGUMENT, message[:MAX_MESSAGE], numbers=numbers)


def _replace_field(target: Message, source: Message, path: str) -> None:
    """Copies the one field at `path`, with its absence, from `source` to `target`."""
    names = path.split(".")
    unknown = invalid("update_mask", f"path {path[:80]!r} names no field of a pool's spec", value=path[:80])
    if names[0] != "spec":
        raise unknown
    for name in names[:-1]:
        field = target.DESCRIPTOR.fields_by_name.get(name)
        if field is None or field.message_type is None or field.is_repeated:
            raise unknown
        target, source = getattr(target, name), getattr(source, name)
    if names[-1] not in target.DESCRIPTOR.fields_by_name:
        raise unknown
    target.ClearField(names[-1])
    for field, value in source.ListFields():
        if field.name == names[-1]:
            target.MergeFrom(type(source)(**{field.name: value}))

"""How pools, engines, leases and the daemon look on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from poolmgr.cli.output import bytes_text, console, plain, print_fields, print_table, state_text, time_text
from poolmgr.cli.show_devices import driver_fields
from poolmgr.convert.common import seconds
from poolmgr.v1 import admin_pb2, engine_pb2, lease_pb2, pool_pb2


def pools(found: pool_pb2.ListPoolsResponse) -> None:
    if not found.pools:
        console().print("no pools; `poolmgr pool create` makes one", highlight=False)
        return
    columns = ("POOL", "STATE", "ENGINE", "FREE", "LEASES", "ENDPOINT", "PID", "RESTARTS", "REASON")
    print_table(columns, (_row(one) for one in found.pools))


def pool(one: pool_pb2.Pool) -> None:
    error = one.last_error
    print_fields(
        [
            ("pool", one.pool_id),
            ("state", _state(one.state)),
            ("reason", one.state_reason),
            ("progress", f"{one.progress.phase} {bytes_text(one.progress.bytes_done)} {one.progress.message}".strip()),
            ("engine", f"{_engine(one.engine)} {one.engine_version}".strip()),
            ("endpoint", one.endpoint),
            ("devices", one.device_mask),
            ("split", _split(one)),
            ("pid", str(one.pid or "")),
            ("slots", f"{one.slots_free} free of {one.slots_total}"),
            ("leases", f"{one.active_leases}, {one.waiting} waiting"),
            ("context", f"{one.context_length:,} tokens per slot" if one.context_length else ""),
            ("load time", f"{seconds(one.load_time):.2f} s" if one.HasField("load_time") else ""),
            ("memory", bytes_text(one.memory_bytes)),
            ("generation", f"{one.generation}, by {one.origin}" if one.origin else str(one.generation)),
            ("reload", f"{one.reload_phase}, to generation {one.reload_generation}" if one.reload_phase else ""),
            ("restarts", str(one.restart_count)),
            ("breaker", pool_pb2.Pool.BreakerState.Name(one.breaker_state) if one.breaker_state else ""),
            ("next start", time_text(one.backoff_until)),
            ("created", time_text(one.create_time)),
            ("ready", time_text(one.ready_time)),
            ("last error", f"{error.reason}: {error.message}" if error.reason else ""),
            ("at", time_text(error.at)),
            ("log", "\n".join(error.log_tail)),
        ]
    )


def generations(found: pool_pb2.ListPoolGenerationsResponse) -> None:
    columns = ("GENERATION", "CREATED", "ENGINE", "RUNS", "SLOTS", "STATE")
    print_table(
        columns,
        (
            (
                str(one.generation),
                time_text(one.create_time),
                _engine(one.spec.engine),
                one.spec.model.path or " ".join((one.spec.command, *one.spec.args)),
                str(one.spec.slots),
                ", ".join(_standing(one)),
            )
            for one in found.generations
        ),
    )


def engines(found: engine_pb2.ListEnginesResponse) -> None:
    if not found.engines:
        console().print("no engines; `poolmgr pool preload` starts one", highlight=False)
        return
    columns = ("ENGINE", "POOL", "GENERATION", "STATE", "KIND", "FREE", "ENDPOINT", "PID", "RUN BY", "HEARTBEAT")
    print_table(
        columns,
        (
            (
                one.engine_id,
                one.pool_id,
                str(one.generation),
                _state(one.state),
                f"{_engine(one.engine)} {one.engine_version}".strip(),
                f"{one.slots_free}/{one.slots_total}",
                one.endpoint,
                str(one.pid or ""),
                "itself" if one.registered else "poolmgr",
                time_text(one.last_heartbeat),
            )
            for one in found.engines
        ),
    )


def change(response: pool_pb2.WatchPoolsResponse) -> None:
    """One line per pool of the event; nothing for a bookmark."""
    for one in (*response.snapshot.pools, *([response.upsert] if response.HasField("upsert") else ())):
        _line(one.revision, one.pool_id, _state(one.state), one.state_reason)
    if response.HasField("delete"):
        _line(response.delete.revision, response.delete.pool_id, Text("deleted"))
    if response.HasField("resync"):
        _line(response.resync.revision, "", Text(f"resync: {response.resync.reason}, all as it is now follows"))


def lease(one: lease_pb2.Lease) -> None:
    print_fields(
        [
            ("lease", one.lease_id),
            ("token", one.token),
            ("pool", one.pool_id),
            ("endpoint", one.endpoint),
            ("fencing token", str(one.fencing_token)),
            ("ttl", f"{seconds(one.ttl):g} s"),
            ("expires", time_text(one.expire_time)),
        ]
    )


def leases(found: lease_pb2.ListLeasesResponse) -> None:
    if not found.leases:
        console().print("no live leases", highlight=False)
        return
    columns = ("LEASE", "POOL", "HOLDER", "FENCING TOKEN", "ENDPOINT", "EXPIRES")
    print_table(
        columns,
        (
            (one.lease_id, one.pool_id, one.holder, str(one.fencing_token), one.endpoint, time_text(one.expire_time))
            for one in found.leases
        ),
    )


def status(one: admin_pb2.Status) -> None:
    by_state = ", ".join(f"{count} {name}" for name, count in sorted(one.pools_by_state.items()) if count)
    print_fields(
        [
            ("poolmgr", one.version),
            ("address", one.address),
            ("pid", str(one.pid)),
            ("since", time_text(one.start_time)),
            ("pools", f"{one.pools_ready} ready of {one.pools}" + (f": {by_state}" if by_state else "")),
            ("engines", f"{one.engines_live} live"),
            ("leases", f"{one.active_leases} active"),
            ("state", one.state_dir),
            ("containment", one.containment),
            ("revision", f"{one.revision}, epoch {one.epoch}"),
            *driver_fields(one),
            *(("warning", Text(plain(warning).plain, style="yellow")) for warning in one.warnings),
        ]
    )


def config(one: admin_pb2.Config) -> None:
    print_table(("KEY", "VALUE", "ORIGIN"), ((value.key, value.value, value.origin) for value in one.values))
    console().print(f"file: {one.file or 'none'}", highlight=False, markup=False)


def reload(one: admin_pb2.ReloadConfigResponse) -> None:
    groups: Iterable[tuple[str, Sequence[str]]] = (
        ("created", one.pools_created),
        ("updated", one.pools_updated),
        ("deleted", one.pools_deleted),
        ("at the next start", one.restart_required),
    )
    if not any(names for _, names in groups):
        console().print("nothing changed", highlight=False)
    print_fields((title, ", ".join(names)) for title, names in groups)


def _row(one: pool_pb2.Pool) -> Sequence[str | Text]:
    return (
        one.pool_id,
        _state(one.state),
        _engine(one.engine),
        f"{one.slots_free}/{one.slots_total}",
        str(one.active_leases),
        one.endpoint,
        str(one.pid or ""),
        str(one.restart_count),
        one.state_reason,
    )


def _split(one: pool_pb2.Pool) -> str:
    """As its engine was started with; else what is asked for."""
    if one.split_plan.assignments:
        shares = (f"{each.first_layer}-{each.last_layer} on {each.device_id}" for each in one.split_plan.assignments)
        return f"layers {', '.join(shares)}"
    mode = one.spec.split.mode
    return pool_pb2.SplitMode.Name(mode).removeprefix("SPLIT_").lower() if mode > pool_pb2.SPLIT_NONE else ""


def _standing(one: pool_pb2.PoolGeneration) -> Iterable[str]:
    if one.current:
        yield "current"
    elif not one.committed:
        yield "never served"
    if one.rolled_back:
        yield f"rolled back {one.rolled_back}×"
    if one.blocked:
        yield "blocked"


def _state(state: pool_pb2.Pool.State.ValueType) -> Text:
    return state_text(pool_pb2.Pool.State.Name(state))


def _engine(engine: pool_pb2.Engine.ValueType) -> str:
    return pool_pb2.Engine.Name(engine).removeprefix("ENGINE_").lower()


def _line(revision: int, pool_id: str, what: Text, why: str = "") -> None:
    line = Text(" ").join(part for part in (Text(str(revision), style="dim"), plain(pool_id), what, plain(why)) if part)
    console().print(line, soft_wrap=True)

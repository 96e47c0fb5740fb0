"""Pools that the configuration file declares (CFG-3): brought to what the file says, all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from poolmgr.core.messages import Delete
from poolmgr.errors import ClientError, PoolmgrError, Reason
from poolmgr.model.daemon import ConfigChange
from poolmgr.model.pool import Origin, PoolSpec, PoolState
from poolmgr.runtime.generations import Generations
from poolmgr.runtime.supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class Difference:
    """Pool ids by what has to happen to them."""

    created: tuple[str, ...]
    updated: tuple[str, ...]
    deleted: tuple[str, ...]


def difference(supervisor: Supervisor, wanted: Mapping[str, PoolSpec]) -> Difference:
    """Between what the file declared before and `wanted`.

    ClientError when a name belongs to a pool of the API, or to one that is still being deleted.
    """
    known = {a.pool.pool_id: a.pool for a in supervisor.actors()}
    declared = {i for i, pool in known.items() if pool.origin is Origin.CONFIG and not pool.deleting}
    leaving = sorted(i for i in wanted if i in known and known[i].deleting)
    if leaving:
        raise ClientError(
            Reason.POOL_DELETING,
            f"the file declares {', '.join(leaving)} again, which are still being deleted; reload once they are gone",
            numbers={"pools": len(leaving)},
        )
    foreign = sorted(i for i in wanted if i in known and i not in declared)
    if foreign:
        raise ClientError(
            Reason.POOL_EXISTS,
            f"the file declares {', '.join(foreign)}, which were made over the API; a file never touches those",
            numbers={"pools": len(foreign)},
        )
    return Difference(
        created=tuple(sorted(set(wanted) - declared)),
        updated=tuple(sorted(i for i in wanted if i in declared and known[i].spec != wanted[i])),
        deleted=tuple(sorted(declared - set(wanted))),
    )


async def reload(
    supervisor: Supervisor,
    generations: Generations,
    wanted: Mapping[str, PoolSpec],
    restart_required: tuple[str, ...],
    validate_only: bool,
) -> ConfigChange:
    """Applies the difference once all of it has been found possible. Deletions drain, and are not waited for."""
    return await supervisor.whole(_reload(supervisor, generations, wanted, restart_required, validate_only))


async def _reload(
    supervisor: Supervisor,
    generations: Generations,
    wanted: Mapping[str, PoolSpec],
    restart_required: tuple[str, ...],
    validate_only: bool,
) -> ConfigChange:
    async with supervisor.reloads:
        diff = difference(supervisor, wanted)
        await _check(supervisor, wanted, diff)
        if not validate_only:
            for pool_id in diff.created:
                await supervisor.create(pool_id, wanted[pool_id], Origin.CONFIG)
            for pool_id in diff.updated:
                await generations.update(pool_id, _to(wanted[pool_id]))
            for pool_id in diff.deleted:
                await supervisor.actor(pool_id).command(Delete())
    return ConfigChange(diff.created, diff.updated, diff.deleted, restart_required)


async def _check(supervisor: Supervisor, wanted: Mapping[str, PoolSpec], diff: Difference) -> None:
    """Raises ClientError for the first thing that `reload` could not do."""
    supervisor.check_room(len(diff.created))
    for pool_id in diff.deleted:
        if supervisor.actor(pool_id).pool.state is PoolState.UNKNOWN:
            raise ClientError(Reason.POOL_STATE, f"pools.{pool_id} is UNKNOWN and cannot be removed now")
    for pool_id in (*diff.created, *diff.updated):
        try:
            await supervisor.check(wanted[pool_id])
        except ClientError as error:
            raise ClientError(error.reason, f"pools.{pool_id}: {error.message}", numbers=error.numbers) from error


def _to(spec: PoolSpec) -> Callable[[PoolSpec], PoolSpec]:
    return lambda current: spec


async def apply_at_start(supervisor: Supervisor, generations: Generations, wanted: Mapping[str, PoolSpec]) -> None:
    """As `reload`, but one pool that cannot run does not keep the others from running: it is parked or left out,
    and the daemon's status says why."""
    for pool_id, spec in sorted(wanted.items()):
        known = supervisor.find(pool_id)
        try:
            if known is None:
                await supervisor.create(pool_id, spec, Origin.CONFIG, gates=False)
            elif known.pool.origin is Origin.CONFIG:
                await generations.update(pool_id, _to(spec))
            else:
                supervisor.warnings.append(f"pools.{pool_id} was made over the API; a file never touches those")
        except PoolmgrError as error:
            supervisor.warnings.append(f"pools.{pool_id} is not as the file says: {error.message}")
    for actor in supervisor.actors():
        if actor.pool.origin is Origin.CONFIG and actor.pool.pool_id not in wanted:
            try:
                await actor.command(Delete())
            except PoolmgrError as error:
                supervisor.warnings.append(f"pools.{actor.pool.pool_id} is not removed: {error.message}")

"""Pools that the configuration file declares (CFG-3): brought to what the file says, all or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from poolmgr.core.messages import Delete
from poolmgr.errors import ClientError, PoolmgrError, Reason
from poolmgr.model.daemon import ConfigChange
from poolmgr.model.pool import Origin, PoolSpec
from poolmgr.runtime.supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class Difference:
    """Pool ids by what has to happen to them."""

    created: tuple[str, ...]
    updated: tuple[str, ...]
    deleted: tuple[str, ...]


def difference(supervisor: Supervisor, wanted: Mapping[str, PoolSpec]) -> Difference:
    """Between what the file declared before and `wanted`. ClientError when a name belongs to a pool of the API."""
    known = {a.pool.pool_id: a.pool for a in supervisor.actors()}
    declared = {i for i, pool in known.items() if pool.origin is Origin.CONFIG}
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
    supervisor: Supervisor, wanted: Mapping[str, PoolSpec], restart_required: tuple[str, ...], validate_only: bool
) -> ConfigChange:
    """Applies the difference once all of it has been found possible. Deletions drain, and are not waited for."""
    diff = difference(supervisor, wanted)
    for pool_id in (*diff.created, *diff.updated):
        try:
            await supervisor.check(wanted[pool_id])
        except ClientError as error:
            raise ClientError(error.reason, f"pools.{pool_id}: {error.message}", numbers=error.numbers) from error
    if not validate_only:
        await asyncio.gather(
            *(supervisor.create(i, wanted[i], Origin.CONFIG) for i in diff.created),
            *(supervisor.update(i, wanted[i]) for i in diff.updated),
        )
        for pool_id in diff.deleted:
            supervisor.actor(pool_id).command(Delete())
    return ConfigChange(diff.created, diff.updated, diff.deleted, restart_required)


async def apply_at_start(supervisor: Supervisor, wanted: Mapping[str, PoolSpec]) -> None:
    """As `reload`, but one pool that cannot run does not keep the others from running: it is parked and says why."""
    try:
        diff = difference(supervisor, wanted)
    except ClientError as error:
        supervisor.warnings.append(error.message)
        own = {a.pool.pool_id for a in supervisor.actors() if a.pool.origin is Origin.API}
        diff = difference(supervisor, {i: spec for i, spec in wanted.items() if i not in own})
    for pool_id in diff.created:
        await supervisor.create(pool_id, wanted[pool_id], Origin.CONFIG, gates=False)
    for pool_id in diff.updated:
        try:
            await supervisor.update(pool_id, wanted[pool_id])
        except PoolmgrError as error:
            supervisor.warnings.append(f"pools.{pool_id} keeps its old spec: {error.message}")
    for pool_id in diff.deleted:
        supervisor.actor(pool_id).command(Delete())

"""Pools and the one row of counters: what is written, and how each row is checked when it is read back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import apsw

from poolmgr.adapters import codec
from poolmgr.adapters.store.faults import DamageError
from poolmgr.adapters.store.limits import KEPT_GENERATIONS, next_fences
from poolmgr.adapters.store.schema import VERSION, checksum
from poolmgr.model.pool import Generation, Origin, StoredPool

UPSERT_POOL: Final = """
    INSERT INTO pool (pool_id, origin, create_time, state, checksum) VALUES (?1, ?2, ?3, ?4, checksum(?1, ?2, ?3, ?4))
    ON CONFLICT (pool_id) DO UPDATE SET
        origin = ?2, create_time = ?3, state = iif(?4 = '', state, ?4),
        checksum = checksum(?1, ?2, ?3, iif(?4 = '', state, ?4))
"""
# The same generation put again keeps the time it was made at.
UPSERT_GENERATION: Final = """
    INSERT INTO generation (pool_id, generation, create_time, spec, checksum)
    VALUES (?1, ?2, ?3, ?4, checksum(?1, ?2, ?3, ?4))
    ON CONFLICT (pool_id, generation) DO UPDATE SET create_time = ?3, spec = ?4, checksum = excluded.checksum
    WHERE spec <> ?4
"""
FORGET_GENERATIONS: Final = f"""
    DELETE FROM generation WHERE pool_id = ?1 AND generation <> ?2 AND generation NOT IN (
        SELECT generation FROM generation WHERE pool_id = ?1 ORDER BY generation DESC LIMIT {KEPT_GENERATIONS}
    )
"""
PUT_STATE: Final = """
    UPDATE pool SET state = ?2, checksum = checksum(pool_id, origin, create_time, ?2) WHERE pool_id = ?1
"""
DELETE_POOL: Final = "DELETE FROM pool WHERE pool_id = ?1"

_INSTANCE: Final = "SELECT host, epoch, fences, changes, checksum FROM instance"
_INSTANCE_1: Final = "SELECT host, epoch, (epoch + 1) << 40, 0, NULL FROM instance"  # it drew from `epoch << 40`
_PUT_INSTANCE: Final = """
    INSERT OR REPLACE INTO instance (only, host, epoch, fences, changes, checksum)
    VALUES (1, ?1, ?2, ?3, ?4, checksum(?1, ?2, ?3, ?4))
"""

COUNT_CHANGE: Final = """
    UPDATE instance SET changes = changes + 1, checksum = checksum(host, epoch, fences, changes + 1)
"""

_POOLS: Final = "SELECT pool_id, origin, create_time, state, checksum FROM pool ORDER BY pool_id"
_GENERATIONS: Final = """
    SELECT generation, create_time, spec, checksum FROM generation WHERE pool_id = ? ORDER BY generation DESC
"""
# In version 1 no row had a checksum, and no generation a time of its own.
_POOLS_1: Final = "SELECT pool_id, origin, create_time, '', NULL FROM pool ORDER BY pool_id"
_GENERATIONS_1: Final = """
    SELECT generation, 0.0, spec, NULL FROM generation WHERE pool_id = ? ORDER BY generation DESC
"""


@dataclass(frozen=True, slots=True)
class Instance:
    """`host`: empty where it did not say. `epoch`: of the last opening. `fences`: the first number not handed out.

    `changes`: how many transactions there were.
    """

    host: str
    epoch: int = 0
    fences: int = 1
    changes: int = 0


def load_instance(database: apsw.Connection, version: int = VERSION) -> Instance:
    """Raises DamageError for a row that is not as it was written, and apsw.Error."""
    try:
        found = list(database.execute(_INSTANCE if version > 1 else _INSTANCE_1))
    except UnicodeDecodeError as error:
        raise DamageError(f"a text is none: {error}") from error
    if len(found) != 1:
        raise DamageError(f"it has {len(found)} rows of counters")
    *columns, stored = found[0]
    if stored is not None and stored != checksum(*columns):
        raise DamageError("its counters have a wrong checksum")
    return Instance(*columns)


def put_instance(database: apsw.Connection, instance: Instance) -> None:
    database.execute(_PUT_INSTANCE, (instance.host, instance.epoch, instance.fences, instance.changes))


def reserve_fences(database: apsw.Connection, wall: float) -> range:
    """Moves the high-water mark, inside the caller's transaction. `wall` in Unix seconds."""
    instance = load_instance(database)
    block = next_fences(instance.fences, wall)
    put_instance(database, replace(instance, fences=block.stop))
    return block


def load(database: apsw.Connection, version: int = VERSION) -> list[StoredPool]:
    """Every pool, by id. Raises DamageError for a row that is not as it was written, and apsw.Error."""
    orphans = database.execute("SELECT count(*) FROM generation WHERE pool_id NOT IN (SELECT pool_id FROM pool)").get
    if orphans:
        raise DamageError(f"{orphans} generations belong to no pool")
    pools = []
    try:
        for row in list(database.execute(_POOLS if version > 1 else _POOLS_1)):
            generations = [_generation(str(row[0]), each) for each in _generation_rows(database, version, str(row[0]))]
            pools.append(_pool(row, generations))
    except UnicodeDecodeError as error:
        raise DamageError(f"a text is none: {error}") from error
    return pools


def salvage(database: apsw.Connection, version: int) -> tuple[list[StoredPool], int]:
    """(the pools of a damaged database that can still be read, how many others were seen at least). Raises nothing.

    A pool without its newest generation is not salvaged: an older one would run what nobody wants any more. Older
    generations that cannot be read are left out.
    """
    saved: list[StoredPool] = []
    lost = 0
    try:
        for row in database.execute(_POOLS if version > 1 else _POOLS_1):
            try:
                saved.append(_pool(row, _readable(database, version, str(row[0]))))
            except (DamageError, apsw.Error, UnicodeDecodeError):
                lost += 1
    except (apsw.Error, UnicodeDecodeError):
        lost += 1
    return saved, lost


def write(database: apsw.Connection, pools: Iterable[StoredPool]) -> None:
    for pool in pools:
        database.execute(UPSERT_POOL, (pool.pool_id, pool.origin.value, pool.create_time, pool.state))
        for each in pool.generations:
            row = (pool.pool_id, each.generation, each.create_time, codec.encode(each.spec))
            database.execute(UPSERT_GENERATION, row)


def _generation_rows(database: apsw.Connection, version: int, pool_id: str) -> Iterator[tuple[Any, ...]]:
    """Newest first."""
    return iter(database.execute(_GENERATIONS if version > 1 else _GENERATIONS_1, (pool_id,)))


def _readable(database: apsw.Connection, version: int, pool_id: str) -> list[Generation]:
    """The generations that can be read, newest first, the newest among them; else raises what keeps it from that."""
    found: list[Generation] = []
    try:
        for row in _generation_rows(database, version, pool_id):
            try:
                found.append(_generation(pool_id, row))
            except DamageError:
                if not found:
                    raise
    except (apsw.Error, UnicodeDecodeError):
        if not found:
            raise
    return found


def _generation(pool_id: str, row: tuple[Any, ...]) -> Generation:
    number, create_time, spec, stored = row
    what = f"generation {number} of pool {pool_id}"
    if stored is not None and stored != checksum(pool_id, number, create_time, spec):
        raise DamageError(f"{what} has a wrong checksum")
    try:
        return Generation(number, codec.decode(spec), create_time)
    except ValueError as error:
        raise DamageError(f"{what} cannot be read: {error}") from error


def _pool(row: tuple[Any, ...], generations: Sequence[Generation]) -> StoredPool:
    """`generations`: newest first."""
    pool_id, origin, create_time, state, stored = row
    if stored is not None and stored != checksum(pool_id, origin, create_time, state):
        raise DamageError(f"pool {pool_id} has a wrong checksum")
    if not generations:
        raise DamageError(f"pool {pool_id} has no generation")
    try:
        return StoredPool(pool_id, Origin(origin), create_time, tuple(reversed(generations)), state)
    except ValueError as error:
        raise DamageError(f"pool {pool_id} cannot be read: {error}") from error

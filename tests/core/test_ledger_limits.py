"""The ledger, stops and what is learned at their limits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from poolmgr.core import memory
from poolmgr.core.eviction import MAX_EXACT, MAX_PLANS, MAX_POOLS, Room, cheapest, cost
from poolmgr.core.memory import LearnedKey, after_stop, decode, encode, entry, learn, missed, room
from poolmgr.model.memory import LedgerEntry, Reserved
from poolmgr.model.names import EngineName
from poolmgr.model.placement import IdlePool
from poolmgr.model.plan import MAX_DEVICES

pytestmark = pytest.mark.behaviour("MEM-3")
KEY = LearnedKey(EngineName.LLAMACPP, "1", "digest", "{}")


def test_the_limits_are_those_that_are_documented():
    assert (memory.MAX_LEARNED, memory.MAX_KEY_CHARACTERS, memory.VERSION) == (1024, 4096, 1)
    assert (memory.MIN_FACTOR, memory.MAX_FACTOR, memory.SMOOTHING, memory.MISS_PERCENT) == (0.5, 2.0, 0.5, 10)
    assert (MAX_EXACT, MAX_POOLS, MAX_PLANS) == (12, 256, 64)


def said(free, total=None):
    """Of an imagined device: its free memory and nothing that it follows from."""
    return LedgerEntry("a", total, None, 0, 0, None, free)


@pytest.mark.behaviour("MEM-2")
def test_room_is_below_nothing_by_exactly_what_was_promised_and_is_not_there():
    def one(free, promised):
        return entry("a", 100, free, (Reserved("p", promised, 0),))

    assert [room(one(10, promised)) for promised in (9, 10, 11)] == [1, 0, -1]
    assert room(said(0)) == 0
    assert room(said(7, total=100)) == 7
    measured = entry("a", 100, 100, (Reserved("p", 30, 30),), claimed_bytes=71)
    assert (measured.free_bytes, room(measured)) == (0, -1)


@pytest.mark.behaviour("MEM-2")
def test_after_a_stop_nothing_is_below_nothing_or_above_the_total():
    full = entry("a", 100, 10, (Reserved("p", 30, 30),))
    after = after_stop(full, 40)
    assert (after.used_bytes, after.measured_bytes, after.free_bytes) == (50, 0, 50)
    after = after_stop(full, 200)
    assert (after.used_bytes, after.measured_bytes, after.free_bytes) == (0, 0, 100)
    over = entry("a", 100, 10, (Reserved("p", 40, 0),))
    assert [after_stop(over, freed).free_bytes for freed in (29, 30, 31)] == [0, 0, 1]
    assert after_stop(said(5), 6).free_bytes == 11
    assert [after_stop(said(95, total=100), freed).free_bytes for freed in (4, 5, 6)] == [99, 100, 100]


@pytest.mark.parametrize(
    ("predicted", "measured", "off"),
    [(100, 110, False), (100, 111, True), (100, 90, False), (100, 89, True), (0, 0, False), (0, 1, True)],
)
def test_more_than_a_tenth_is_a_miss_and_a_tenth_is_none(predicted, measured, off):
    assert missed(predicted, measured) is off


def test_shares_of_nothing_teach_nothing_and_one_byte_is_something():
    assert learn({}, KEY, {"a": 0}, {"a": 5}, 1.0)[0] == {}
    assert learn({}, KEY, {"a": 5}, {"a": 0}, 1.0)[0] == {}
    table, _ = learn({}, KEY, {"a": 1}, {"a": 1}, 1.0)
    assert (table[KEY].factor, table[KEY].count, table[KEY].at) == (1.0, 1, 1.0)
    table, _ = learn(table, KEY, {"a": 1}, {"a": 1}, 2.0)
    assert (table[KEY].count, table[KEY].at) == (2, 2.0)


def test_as_many_devices_as_go_together_are_remembered_and_no_more():
    def shares(count):
        return {f"{number:03d}": 10 for number in range(count)}

    for count in (MAX_DEVICES, MAX_DEVICES + 1):
        table, _ = learn({}, KEY, shares(count), shares(count), 1.0)
        assert len(table[KEY].predicted) == len(table[KEY].measured) == MAX_DEVICES
        assert decode(encode(table)) == table
    written = (
        encode(table).replace('"measured": [', '"measured": [10, ').replace('"predicted": [', '"predicted": [10, ')
    )
    assert decode(written) is None


def test_rows_at_the_limits_are_read_and_beyond_them_are_not():
    table, _ = learn({}, KEY, {"a": 100}, {"a": 100}, 1.0)
    for factor, read in ((0.5, True), (2.0, True), (0.499, False), (2.001, False), (math.nan, False)):
        row = replace(table[KEY], factor=factor)
        assert (decode(encode({KEY: row})) == {KEY: row}) is read
    for changes, read in (({"count": 1}, True), ({"count": 0}, False), ({"at": math.inf}, False)):
        row = replace(table[KEY], **changes)
        assert (decode(encode({KEY: row})) is not None) is read
    for shares, read in (((1,), True), ((0,), False), ((), False)):
        row = replace(table[KEY], predicted=shares, measured=shares)
        assert (decode(encode({KEY: row})) is not None) is read


def test_what_is_written_is_the_same_text_for_the_same_table():
    assert encode({}) == '{"learned": [], "version": 1}'


def test_of_rows_of_one_time_the_later_keys_stay():
    rows = {
        replace(KEY, model=f"{n:05d}"): memory.Learned((1,), (1,), 1.0, 1, 5.0) for n in range(memory.MAX_LEARNED + 1)
    }
    kept = decode(encode(rows))
    assert min(key.model for key in kept) == "00001" and len(kept) == memory.MAX_LEARNED


# Evictions.


def pool(name, price, size=1, uses=1.0):
    return IdlePool(name, {"a": size}, False, price, uses)


def freeing(least, most=1 << 12, asked=None):
    def fits(pools):
        if asked is not None:
            asked.append(pools)
        return sum(one.frees["a"] for one in pools) >= least

    return Room(fits, lambda pools: True, most)


@pytest.mark.behaviour("PLACE-5")
def test_twelve_pools_are_proved_and_thirteen_are_not():
    for count, proved in ((12, True), (13, False)):
        found = cheapest([pool(f"{n:02d}", 1.0) for n in range(count)], {"a"}, freeing(2))
        assert (found.cheapest, len(found.pools)) == (proved, 2)


@pytest.mark.behaviour("PLACE-5")
def test_all_that_may_be_stopped_are_looked_at_up_to_the_limit():
    pools = [pool(f"{n:03d}", float(n + 1)) for n in range(MAX_POOLS + 1)]
    assert cheapest(pools[:-1], {"a"}, freeing(MAX_POOLS)).cost == cost(pools[:-1])
    assert cheapest(pools, {"a"}, freeing(MAX_POOLS)).pools == tuple(pools[:-1])
    assert cheapest(pools, {"a"}, freeing(MAX_POOLS + 1)) is None


@pytest.mark.behaviour("PLACE-5")
def test_so_many_sets_are_asked_about_closely_and_the_last_of_them_counts():
    pools = [pool(name, 1.0) for name in "abc"]
    # All of them first, then a, b, c, ab: two are enough.
    asked = []
    found = cheapest(pools, {"a"}, freeing(2, most=4, asked=asked))
    assert (found.cheapest, [one.pool_id for one in found.pools], len(asked)) == (True, ["a", "b"], 5)
    found = cheapest(pools, {"a"}, freeing(2, most=3))
    assert (found.cheapest, [one.pool_id for one in found.pools]) == (False, ["b", "c"])


@pytest.mark.behaviour("PLACE-5")
def test_where_not_all_sets_are_looked_at_the_dearest_per_byte_are_kept_first():
    pools = [pool(f"{n:02d}", 8.0, size=8) for n in range(12)] + [pool("12", 6.0, size=2)]
    found = cheapest(pools, {"a"}, freeing(8))
    assert [one.pool_id for one in found.pools] == ["11"]
    assert found.cost == 8.0


@pytest.mark.behaviour("PLACE-5")
def test_what_a_stop_costs_is_its_loading_times_its_uses_over_all_pools():
    assert cost([pool("a", 10.0, uses=2.0), pool("b", 0.5, uses=3.0)]) == 21.5
    assert cost([]) == 0.0

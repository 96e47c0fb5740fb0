"""What runs teach of estimates, and how that is kept."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolmgr.core import memory
from poolmgr.core.memory import Learned, LearnedKey, MemoryMiss, decode, encode, factor, learn, missed
from poolmgr.model.names import EngineName

pytestmark = pytest.mark.behaviour("MEM-3")

KEY = LearnedKey(EngineName.LLAMACPP, "b1234", "sha256:ab", "ctx=8192 slots=4 f16")
OTHER = replace(KEY, settings="ctx=4096 slots=4 f16")
GIB = 1 << 30


def after(predicted, measured, table=None, now=1.0, applied=1.0, key=KEY):
    return learn(table or {}, key, predicted, measured, now, applied)


def test_nothing_learned_leaves_the_estimate_as_it_is():
    assert factor({}, KEY) == 1.0
    assert factor({}, KEY, 1.2) == 1.2


def test_the_first_run_is_believed_and_only_under_its_key():
    table, _ = after({"a": 100, "b": 100}, {"a": 120, "b": 120})
    assert factor(table, KEY) == pytest.approx(1.2)
    for name, value in (("engine", EngineName.VLLM), ("engine_version", "b1"), ("model", "x"), ("settings", "y")):
        assert factor(table, replace(KEY, **{name: value}), 0.9) == 0.9
    assert table[KEY] == Learned((100, 100), (120, 120), factor(table, KEY), 1, 1.0)


def test_it_is_counted_with_what_the_estimate_was_corrected_by_already():
    table, misses = after({"a": 120}, {"a": 126}, applied=1.2)
    assert factor(table, KEY) == pytest.approx(1.26)
    assert misses == ()


def test_more_is_believed_at_once_and_less_by_half():
    table, _ = after({"a": 100}, {"a": 150})
    table, _ = after({"a": 100}, {"a": 110}, table, 2.0)
    assert factor(table, KEY) == pytest.approx(1.3)
    table, _ = after({"a": 100}, {"a": 140}, table, 3.0)
    assert factor(table, KEY) == pytest.approx(1.4)
    assert (table[KEY].count, table[KEY].at) == (3, 3.0)


def test_what_one_device_took_less_does_not_make_up_for_what_another_took_more():
    table, _ = after({"a": 100, "b": 100}, {"a": 120, "b": 80})
    assert factor(table, KEY) == pytest.approx(1.1)
    table, _ = after({"a": 100, "b": 100}, {"a": 100, "b": 80})
    assert factor(table, KEY) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("measured", "learned"), [(1000, 2.0), (200, 2.0), (199, 1.99), (51, 0.51), (50, 0.5), (1, 0.5)]
)
def test_no_factor_is_beyond_its_limits(measured, learned):
    assert factor(after({"a": 100}, {"a": measured})[0], KEY) == pytest.approx(learned)


@pytest.mark.behaviour("SPLIT-6")
@pytest.mark.parametrize(("measured", "told"), [(90, False), (110, False), (89, True), (111, True), (100, False)])
def test_a_share_that_is_more_than_ten_percent_off_is_an_event(measured, told):
    _, misses = after({"a": 100, "b": 500}, {"a": measured, "b": 500})
    assert misses == ((MemoryMiss("a", 100, measured),) if told else ())
    assert missed(100, measured) is told
    assert missed(1000, 1101) and not missed(1000, 1100)


def test_use_where_none_was_predicted_is_a_miss():
    assert missed(0, 1) and not missed(0, 0)


def test_what_is_not_told_teaches_nothing_and_misses_nothing():
    assert after({"a": 100}, {"a": None}) == ({}, ())
    assert after({"a": 100}, {}) == ({}, ())
    table, misses = after({"a": 100, "b": 100}, {"a": None, "b": 105})
    assert (factor(table, KEY), misses) == (pytest.approx(1.05), ())


def test_an_engine_that_is_not_seen_on_the_device_is_a_miss_and_teaches_nothing():
    assert after({"a": 100}, {"a": 0}) == ({}, (MemoryMiss("a", 100, 0),))
    assert after({"a": 0}, {"a": 7}) == ({}, (MemoryMiss("a", 0, 7),))


@given(st.floats(0.5, 2.0), st.lists(st.integers(GIB, 80 * GIB), min_size=1, max_size=4))
def test_an_estimator_that_is_always_off_by_the_same_share_is_right_from_the_second_run_on(off, shares):
    own = {f"GPU-{i}": size for i, size in enumerate(shares)}
    real = {name: round(size * off) for name, size in own.items()}
    table = learn({}, KEY, own, real, 1.0)[0]
    for run in range(3):
        applied = factor(table, KEY)
        predicted = {name: round(size * applied) for name, size in own.items()}
        table, misses = learn(table, KEY, predicted, real, 2.0 + run, applied)
        assert misses == ()
        assert factor(table, KEY) == pytest.approx(off, rel=1e-6)


def test_the_table_is_bounded_and_the_oldest_go():
    table = {}
    for number in range(memory.MAX_LEARNED + 3):
        table, _ = after({"a": 100}, {"a": 100}, table, float(number), key=replace(KEY, model=f"{number:05d}"))
    assert len(table) == memory.MAX_LEARNED
    assert {key.model for key in table} == {f"{n:05d}" for n in range(3, memory.MAX_LEARNED + 3)}
    table, _ = after({"a": 100}, {"a": 100}, table, 9999.0, key=replace(KEY, model="00003"))
    assert len(table) == memory.MAX_LEARNED and table[replace(KEY, model="00003")].count == 2


def test_a_key_that_could_not_be_kept_is_not_learned():
    most = "x" * memory.MAX_KEY_CHARACTERS
    assert after({"a": 100}, {"a": 150}, key=replace(KEY, settings=most + "x")) == ({}, (MemoryMiss("a", 100, 150),))
    kept, _ = after({"a": 100}, {"a": 150}, key=replace(KEY, settings=most))
    assert decode(encode(kept)) == kept


rows = st.builds(
    Learned,
    predicted=st.just((1, 2)),
    measured=st.tuples(st.integers(1, 1 << 50), st.integers(1, 1 << 50)),
    factor=st.floats(0.5, 2.0),
    count=st.integers(1, 1 << 40),
    at=st.floats(0, 4e9),
)
keys = st.builds(LearnedKey, st.sampled_from(EngineName), st.text(max_size=9), st.text(max_size=9), st.text(max_size=9))


@given(st.dictionaries(keys, rows, max_size=6))
def test_what_is_written_is_read_back_the_same(table):
    assert decode(encode(table)) == table


def test_a_table_is_written_the_same_whatever_its_order_and_never_more_than_the_limit():
    table = {
        replace(KEY, model=f"{n:05d}"): Learned((1,), (1,), 1.0, 1, float(n)) for n in range(memory.MAX_LEARNED + 5)
    }
    assert encode(table) == encode(dict(reversed(table.items())))
    assert len(decode(encode(table))) == memory.MAX_LEARNED


def test_nothing_written_is_nothing_learned():
    assert decode("") == {}


def changed(**fields):
    document = json.loads(encode({KEY: Learned((1, 2), (2, 3), 1.5, 4, 5.0)}))
    row = document["learned"][0]
    row.update(fields)
    return json.dumps({**document, "learned": [{name: value for name, value in row.items() if value != "-"}]})


def test_the_row_that_the_broken_ones_are_made_of_is_sound():
    assert decode(changed()) == {KEY: Learned((1, 2), (2, 3), 1.5, 4, 5.0)}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "7",
        "null",
        '{"learned": []}',
        '{"version": 2, "learned": []}',
        '{"version": 1}',
        '{"version": 1, "learned": 7}',
        '{"version": 1, "learned": [7]}',
        "[" * 100_000,
        changed(engine="ABACUS"),
        changed(model=7),
        changed(model="-"),
        changed(model="x" * (memory.MAX_KEY_CHARACTERS + 1)),
        changed(factor=float("nan")),
        changed(factor=2.01),
        changed(factor=0.49),
        changed(factor="much"),
        changed(count=0),
        changed(at=float("inf")),
        changed(predicted=[]),
        changed(predicted=[1]),
        changed(predicted=[0, 2]),
        changed(measured=[1, -2]),
        changed(predicted=[1] * 65, measured=[1] * 65),
        changed(predicted=[float("inf"), 1.0]),
        changed(measured=7),
    ],
)
def test_what_is_not_ours_to_read_is_none_and_raises_nothing(text):
    assert decode(text) is None


@given(st.text(max_size=40))
def test_no_text_does_more_than_be_none(text):
    assert decode(text) in (None, {})

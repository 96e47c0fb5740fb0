"""A spec, and a pool's record, as JSON text."""

from __future__ import annotations

import pytest

from poolmgr.adapters import codec
from poolmgr.model.pool import EngineName, Origin, PoolRecord, PoolSpec, ProbeKind, ProbeSpec, SplitMode, SplitSpec


def test_a_field_that_an_older_version_did_not_write_takes_its_default():
    assert codec.decode('{"spec": {"engine": "COMMAND", "slots": 3}}') == PoolSpec(EngineName.COMMAND, slots=3)


@pytest.mark.parametrize(
    "change", ['"slots": "3"', '"slots": 3.5', '"preload": 1', '"args": "a"', '"model": {"pth": ""}', '"restart": "NO"']
)
def test_what_is_not_understood_whole_is_refused(change: str):
    with pytest.raises(ValueError, match=change.split('"')[1]):
        codec.decode('{"spec": {"engine": "COMMAND", ' + change + "}}")


RECORD = PoolRecord(
    "chat",
    PoolSpec(EngineName.COMMAND, args=("--ä", ""), readiness=ProbeSpec(ProbeKind.HTTP, interval=0.1)),
    7,
    Origin.CONFIG,
    1763800001.25,
)


def test_a_record_is_read_back_as_it_was_written():
    assert codec.decode_record(codec.encode_record(RECORD)) == RECORD


def test_a_split_is_read_back_and_one_that_is_not_understood_is_refused():
    spec = PoolSpec(EngineName.COMMAND, split=SplitSpec(SplitMode.EXPLICIT, (0.1, 3.0)))
    assert codec.decode(codec.encode(spec)) == spec
    with pytest.raises(ValueError, match=r"split\.mode"):
        codec.decode('{"spec": {"engine": "COMMAND", "split": {"mode": "HALVES"}}}')


def test_a_record_s_spec_may_have_been_written_by_an_older_version():
    parts = '"pool_id": "a", "spec": {"engine": "COMMAND"}, "generation": 2, "origin": "api", "create_time": 1'
    assert codec.decode_record(f'{{"record": {{{parts}}}}}') == PoolRecord(
        "a", PoolSpec(EngineName.COMMAND), 2, Origin.API, 1.0
    )


@pytest.mark.parametrize("part", ["pool_id", "spec", "generation", "origin", "create_time"])
def test_a_record_without_one_of_its_parts_or_with_one_too_many_is_refused(part: str):
    text = codec.encode_record(RECORD)
    for odd in (
        text.replace(f'"{part}"', '"other"', 1),
        text.replace(f'"{part}"', f'"more": 1, "{part}"', 1),
        text[:-1],
    ):
        assert odd != text
        with pytest.raises(ValueError, match="record"):
            codec.decode_record(odd)

"""A spec as the JSON of a database row."""

from __future__ import annotations

import pytest

from poolmgr.adapters.store import codec
from poolmgr.model.pool import EngineName, PoolSpec


def test_a_field_that_an_older_version_did_not_write_takes_its_default():
    assert codec.decode('{"spec": {"engine": "COMMAND", "slots": 3}}') == PoolSpec(EngineName.COMMAND, slots=3)


@pytest.mark.parametrize(
    "change", ['"slots": "3"', '"slots": 3.5', '"preload": 1', '"args": "a"', '"model": {"pth": ""}', '"restart": "NO"']
)
def test_what_is_not_understood_whole_is_refused(change: str):
    with pytest.raises(ValueError, match=change.split('"')[1]):
        codec.decode('{"spec": {"engine": "COMMAND", ' + change + "}}")

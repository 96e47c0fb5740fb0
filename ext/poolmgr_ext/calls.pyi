from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from poolmgr_ext.ring import Field

class Call(NamedTuple):
    """A call of the driver and the fields that it fills. `heavy`: it holds the driver for milliseconds."""

    name: str
    fields: tuple[Field, ...]
    heavy: bool = False

TABLE: tuple[Call, ...]
FIELDS: tuple[Field, ...]
PROCESSES: int
"""The place of the process list in `TABLE`."""

def chosen(names: Iterable[str] | None, cadences: Mapping[str, float] | None) -> list[Field]:
    """The named fields (None: all), with cadences of which some may be others. KeyError for a name that is none."""

def plan_of(fields: Sequence[Field], rate_hz: float) -> list[tuple[bool, int, list[int], int, bool]]:
    """The calls that fill these fields, the frequent ones first: (slow, call, places of its fields, sweeps, heavy)."""

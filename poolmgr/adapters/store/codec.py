"""A pool's spec as the JSON text that a database keeps, read back strictly.

A field that is missing takes its default: rows outlive the version that wrote them. An unknown field, a wrong type or
an unknown enum value is refused, because a spec half understood would run another engine than was asked for.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from poolmgr.model.pool import PoolSpec


class _Row(BaseModel):
    # The configuration of a model reaches the plain dataclasses below it; a TypeAdapter of one can have none.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    spec: PoolSpec


def encode(spec: PoolSpec) -> str:
    return _Row(spec=spec).model_dump_json()


def decode(text: str) -> PoolSpec:
    """Raises ValueError (pydantic's ValidationError) with the path of each field that is wrong."""
    return _Row.model_validate_json(text).spec

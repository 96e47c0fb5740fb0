"""A pool's spec, its whole record and an engine's plan as JSON text for a database row or a file, read back strictly.

A field that is missing takes its default: texts outlive the version that wrote them. An unknown field, a wrong type or
an unknown enum value is refused, because a spec half understood would run another engine than was asked for.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from poolmgr.model.plan import SplitPlan
from poolmgr.model.pool import PoolRecord, PoolSpec


class _Strict(BaseModel):
    # The configuration of a model reaches the plain dataclasses below it; a TypeAdapter of one can have none.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Spec(_Strict):
    spec: PoolSpec


class _Record(_Strict):
    record: PoolRecord


class _Plan(_Strict):
    plan: SplitPlan


def encode(spec: PoolSpec) -> str:
    return _Spec(spec=spec).model_dump_json()


def decode(text: str) -> PoolSpec:
    """Raises ValueError (pydantic's ValidationError) with the path of each field that is wrong."""
    return _Spec.model_validate_json(text).spec


def encode_record(record: PoolRecord) -> str:
    return _Record(record=record).model_dump_json()


def decode_record(text: str) -> PoolRecord:
    """Raises ValueError (pydantic's ValidationError) with the path of each field that is wrong."""
    return _Record.model_validate_json(text).record


def encode_plan(plan: SplitPlan) -> str:
    return _Plan(plan=plan).model_dump_json()


def decode_plan(text: str) -> SplitPlan:
    """Raises ValueError (pydantic's ValidationError) with the path of each field that is wrong."""
    return _Plan.model_validate_json(text).plan

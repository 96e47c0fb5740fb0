"""What a pool's spec may hold, whoever sends it: the file, the API or a test. Pure; says every problem at once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Final

from poolmgr.model.plan import MAX_DEVICES
from poolmgr.model.pool import (
    MAX_SLOTS,
    EngineName,
    ModelSpec,
    PoolSpec,
    ProbeKind,
    ProbeSpec,
    SplitMode,
    SplitSpec,
    SupervisionOverrides,
)

MAX_PORT: Final = 65_535
MAX_COUNT: Final = 10_000
MAX_MILLISECONDS: Final = 3_600_000
MAX_SECONDS: Final = 86_400
MIN_PROBE_SECONDS: Final = 0.01
MAX_CONTEXT_LENGTH: Final = 2**32 - 1
MAX_PRIORITY: Final = 2**31 - 1
MIN_RATIO: Final = 1e-9
MAX_RATIO: Final = 1e9

_POOL_ID: Final = re.compile(r"[a-z0-9-]{1,63}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")

_MAY_BE_ZERO: Final = frozenset({"backoff_initial_ms", "backoff_floor_ms"})  # a restart at once


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with the field of this dotted name; `numbers`: its value and its bounds, where it has them."""

    name: str
    text: str
    numbers: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name} {self.text}"


def is_pool_id(text: str) -> bool:
    return _POOL_ID.fullmatch(text) is not None


def spec_problems(spec: PoolSpec) -> tuple[Problem, ...]:
    """What is wrong with a spec whatever the engine and the host; empty when nothing is."""
    return (
        *_own_problems(spec),
        *_model_problems(spec.model),
        *split_problems(spec.split),
        *_probe_problems(spec),
        *_override_problems(spec),
    )


def _own_problems(spec: PoolSpec) -> Iterator[Problem]:
    yield from _range("slots", spec.slots, 1, MAX_SLOTS)
    yield from _range("port", spec.port, 0, MAX_PORT)
    yield from _range("drain_deadline", spec.drain_deadline, 0, MAX_SECONDS)
    yield from _range("priority", spec.priority, -MAX_PRIORITY, MAX_PRIORITY)
    texts = (spec.command, *spec.args, *spec.env.keys(), *spec.env.values())
    if any("\0" in text for text in texts):
        yield Problem("args", "command, args and env cannot hold a NUL character")
    for name in spec.env:
        if not name or "=" in name:
            yield Problem(f"env.{name}", "is no name of an environment variable")


def _model_problems(model: ModelSpec) -> Iterator[Problem]:
    if model.path and (not model.path.startswith("/") or "\0" in model.path):
        yield Problem("model.path", f"must be an absolute path, not {model.path!r}")
    if model.digest and not _DIGEST.fullmatch(model.digest):
        yield Problem("model.digest", f"must be sha256: and 64 lower-case hex digits, not {model.digest!r}")
    yield from _range("model.context_length", model.context_length, 0, MAX_CONTEXT_LENGTH)


def split_problems(split: SplitSpec) -> Iterator[Problem]:
    """What is wrong with a split, in the names of a spec."""
    count = len(split.ratios)
    explicit = split.mode is SplitMode.EXPLICIT
    if explicit and not 1 <= count <= MAX_DEVICES:
        numbers = {"value": count, "low": 1, "high": MAX_DEVICES}
        yield Problem("split.ratios", f"must be 1 to {MAX_DEVICES} numbers with {split.mode}, not {count}", numbers)
    if count and not explicit:
        yield Problem("split.ratios", f"are for {SplitMode.EXPLICIT} only, and the mode is {split.mode}")
    for number, ratio in enumerate(split.ratios):
        # The largest floats have no sum, and the smallest share is none.
        yield from _range(f"split.ratios[{number}]", ratio, MIN_RATIO, MAX_RATIO)


def _probe_problems(spec: PoolSpec) -> Iterator[Problem]:
    probes: tuple[tuple[str, ProbeSpec], ...] = (("readiness", spec.readiness), ("liveness", spec.liveness))
    for name, probe in probes:
        # 0 stands for the supervision default; next to 0 would be a busy loop.
        for part, seconds in (("interval", probe.interval), ("timeout", probe.timeout)):
            yield from _range(f"{name}.{part}", seconds, MIN_PROBE_SECONDS if seconds > 0 else 0, MAX_SECONDS)
        yield from _range(f"{name}.failure_threshold", probe.failure_threshold, 0, MAX_COUNT)
        if probe.kind is ProbeKind.NONE and spec.engine is not EngineName.COMMAND:
            yield Problem(f"{name}.kind", f"NONE is for {EngineName.COMMAND} only")
        if probe.path and not probe.path.startswith("/"):
            yield Problem(f"{name}.path", f"must begin with /, not {probe.path!r}")


def _override_problems(spec: PoolSpec) -> Iterator[Problem]:
    for key in (each.name for each in fields(SupervisionOverrides)):
        value: int | None = getattr(spec.supervision, key)
        if value is not None:
            yield from _range(f"supervision.{key}", value, 0 if key in _MAY_BE_ZERO else 1, _most(key))


def _most(key: str) -> int:
    if key.endswith("_ms"):
        return MAX_MILLISECONDS
    return MAX_SECONDS if key.endswith("_secs") else MAX_COUNT


def _range(name: str, value: float, least: float, most: float) -> Iterator[Problem]:
    if not math.isfinite(value) or not least <= value <= most:
        yield Problem(name, f"must be {least} to {most}, not {value}", {"value": value, "low": least, "high": most})

"""Where scenarios are told: `SCENARIOS` holds them by name, `scenario` adds one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.sim.kernel import Script
from tests.sim.stage import USUAL, Stage

SCENARIOS: dict[str, Callable[[Stage], None]] = {}
QUICK_BREAKER = replace(USUAL, circuit_breaker_timeout_secs=20, circuit_breaker_threshold=3)


def scenario(tell: Callable[[Stage], None]) -> Callable[[Stage], None]:
    SCENARIOS[tell.__name__.replace("_", "-")] = tell
    return tell


def first(bad: int, script: Script) -> Callable[[int, int], Script]:
    """The first `bad` runs go like that, later ones are well."""
    return lambda run, generation: script if run < bad else Script()

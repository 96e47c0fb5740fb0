"""How a rig is made, and the settings that all of them have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

UNBOUNDED = 10_000
SETTINGS: Mapping[str, object] = {
    "observability.log_format": "json",
    "supervision.readiness_interval_ms": 50,
    "supervision.backoff_initial_ms": 50,
    "supervision.backoff_floor_ms": 0,
    "supervision.backoff_max_ms": 500,
    # A drain's is left as long as it is by default: a stop that took it for its own would show.
    "supervision.stop_grace_secs": 1,
    # What the policy does about many failures is shown elsewhere; here engines are ended on purpose all the time.
    "supervision.circuit_breaker_threshold": UNBOUNDED,
    "supervision.restart_rate_limit": UNBOUNDED,
    "supervision.restart_warn": UNBOUNDED,
    "supervision.oom_storm_limit": UNBOUNDED,
}


def nothing() -> None:
    """Where nothing is to be done."""


@dataclass(frozen=True, slots=True)
class Design:
    """How a rig is made. `prefix`: a launcher that ends in the daemon's place. `state`: None for one below the rig.

    `registered`: pools of engines that tell of themselves, which daemons only ever ask.
    `undo`: takes away what the design itself made on the host, once nothing of the rig runs any more.
    """

    llamas: int = 2
    scripted: int = 6
    registered: int = 0
    settings: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    state: Path | None = None
    load: Mapping[str, object] = field(default_factory=dict)
    undo: Callable[[], object] = nothing

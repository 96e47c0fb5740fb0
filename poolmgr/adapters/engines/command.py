"""Any program as an engine: its arguments as they stand, `{port}` replaced by the port that the daemon chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from poolmgr.adapters.engines.common import (
    GPU_PATTERNS,
    LogPattern,
    diagnose_by_log,
    environment,
    find_executable,
    probe_target,
    refuse,
    validate_common,
)
from poolmgr.errors import Reason
from poolmgr.model.engine import Diagnosis, EngineFacts, ExitRecord, ProbeTarget, Progress
from poolmgr.model.memory import MemoryQuestion
from poolmgr.model.pool import EngineName, PoolSpec, ProbeKind, ProbeSpec

PORT_PLACEHOLDER = "{port}"
# Exit codes by which a shell, env(1) or nice(1) says that it could not run its command (POSIX 2.8.2).
NOT_EXECUTED = {126: "found but could not be executed", 127: "not found"}
# A program that is told its port is ready when it listens there; of another one only its process can be seen.
LISTENS = ProbeSpec(kind=ProbeKind.TCP)
NO_PROBE = ProbeSpec(kind=ProbeKind.NONE)
PATTERNS = (
    # strerror(EADDRINUSE), which runtimes of every language print.
    LogPattern.of(r"(?i)address already in use", Reason.PORT_TAKEN, permanent=False),
    *GPU_PATTERNS,
)


class CommandEngine:
    """Implements `ports.EngineKind`."""

    @property
    def name(self) -> EngineName:
        return EngineName.COMMAND

    def validate(self, spec: PoolSpec) -> None:
        if not spec.command:
            raise refuse(Reason.INVALID_ARGUMENT, "a COMMAND pool needs a command")
        validate_common(spec)

    def memory(self, spec: PoolSpec) -> MemoryQuestion | None:
        return None  # any program takes what it likes

    def told_share(self, spec: PoolSpec, share: float) -> tuple[str, ...]:
        return ()

    def check(self, spec: PoolSpec) -> None:
        find_executable(spec.command)

    def render(self, spec: PoolSpec, port: int) -> tuple[tuple[str, ...], dict[str, str]]:
        args = (arg.replace(PORT_PLACEHOLDER, str(port)) for arg in spec.args)
        return (find_executable(spec.command), *args), environment(spec)

    def readiness(self, spec: PoolSpec, port: int, timeout: float) -> ProbeTarget:
        return probe_target(spec.readiness, _default(spec), port, timeout)

    def liveness(self, spec: PoolSpec, port: int, timeout: float) -> ProbeTarget:
        return probe_target(spec.liveness, _default(spec), port, timeout)

    def verification(self, spec: PoolSpec, port: int, timeout: float) -> ProbeTarget:
        """Nobody knows what it works on: a readiness probe that was given is its synthetic request."""
        return probe_target(replace(spec.readiness, timeout=timeout), _default(spec), port, timeout)

    async def describe(self, spec: PoolSpec, port: int, timeout: float) -> EngineFacts:
        return EngineFacts()  # any program: it says nothing of itself

    async def progress(self, spec: PoolSpec, port: int, timeout: float) -> Progress | None:
        return None  # nor of its work: a lease and a readiness probe that is a request have to do

    def diagnose(self, record: ExitRecord, log_tail: Sequence[str]) -> Diagnosis | None:
        why = NOT_EXECUTED.get(record.exit_code or 0)
        if why:
            last = log_tail[-1].strip() if log_tail else "no output"
            return Diagnosis(Reason.EXECUTABLE_NOT_FOUND, f"exit code {record.exit_code}: {why}: {last}", True)
        return diagnose_by_log(PATTERNS, record, log_tail)


def _default(spec: PoolSpec) -> ProbeSpec:
    return LISTENS if any(PORT_PLACEHOLDER in arg for arg in spec.args) else NO_PROBE

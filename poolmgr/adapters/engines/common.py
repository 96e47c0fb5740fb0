"""What all kinds of engines share: limits on arguments, the environment, executables, probes, log patterns."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from poolmgr.errors import ClientError, Number, Reason
from poolmgr.model.engine import CrashCause, Diagnosis, ExitRecord, ProbeTarget
from poolmgr.model.pool import EngineName, PoolSpec, ProbeKind, ProbeSpec

HOST = "127.0.0.1"
MAX_ARGUMENTS = 256
MAX_ARGUMENT_BYTES = 32 * 1024
MAX_PROBE_TEXT = 64 * 1024
MAX_MESSAGE = 300
BASE_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
# PROC-2: ordinals of the driver and of CUDA agree only in bus order; an empty mask hides every GPU.
NO_GPU = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ""}

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# What would change which code runs, or contradict what the daemon decides.
_ENV_DENIED = re.compile(r"(?:LD_|PYTHON|POOLMGR_)|(?:CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER)\Z")
_REQUEST_TARGET = re.compile(r"/[\x21-\x7e]*\Z")


def refuse(reason: Reason, message: str, **numbers: Number) -> ClientError:
    return ClientError(reason, message, numbers=numbers)


def validate_common(spec: PoolSpec) -> None:
    """What no kind of engine accepts; ClientError with the numbers that led to it."""
    validate_arguments((spec.command, *spec.args) if spec.command else spec.args)
    validate_environment(spec.env)
    for name, probe in (("readiness", spec.readiness), ("liveness", spec.liveness)):
        validate_probe(name, probe, spec.engine)


def validate_arguments(args: Sequence[str]) -> None:
    if len(args) > MAX_ARGUMENTS:
        message = f"{len(args)} arguments, at most {MAX_ARGUMENTS}"
        raise refuse(Reason.BAD_ARGUMENTS, message, count=len(args), limit=MAX_ARGUMENTS)
    for index, arg in enumerate(args):
        if not arg or "\0" in arg:
            what = "contains a NUL byte" if arg else "is empty"
            raise refuse(Reason.BAD_ARGUMENTS, f"argument {index} {what}", index=index)
    size = sum(len(os.fsencode(arg)) + 1 for arg in args)
    if size > MAX_ARGUMENT_BYTES:
        message = f"arguments of {size} bytes, at most {MAX_ARGUMENT_BYTES}"
        raise refuse(Reason.BAD_ARGUMENTS, message, bytes=size, limit=MAX_ARGUMENT_BYTES)


def validate_environment(env: Mapping[str, str]) -> None:
    if len(env) > MAX_ARGUMENTS:
        message = f"{len(env)} environment variables, at most {MAX_ARGUMENTS}"
        raise refuse(Reason.INVALID_ARGUMENT, message, count=len(env), limit=MAX_ARGUMENTS)
    for name, value in env.items():
        if not _ENV_NAME.match(name) or "\0" in value:
            raise refuse(Reason.INVALID_ARGUMENT, f"environment variable {name!r} has no valid name or value")
        if _ENV_DENIED.match(name):
            raise refuse(Reason.INVALID_ARGUMENT, f"environment variable {name} is not a pool's to set", name=name)
    size = sum(len(os.fsencode(name)) + len(os.fsencode(value)) + 2 for name, value in env.items())
    if size > MAX_ARGUMENT_BYTES:
        message = f"environment of {size} bytes, at most {MAX_ARGUMENT_BYTES}"
        raise refuse(Reason.INVALID_ARGUMENT, message, bytes=size, limit=MAX_ARGUMENT_BYTES)


def validate_probe(name: str, probe: ProbeSpec, engine: EngineName) -> None:
    if probe.kind is ProbeKind.NONE and engine is not EngineName.COMMAND:
        raise refuse(Reason.INVALID_ARGUMENT, f"{name}: only a COMMAND pool can go without a probe")
    if probe.path and not _REQUEST_TARGET.match(probe.path):
        raise refuse(Reason.INVALID_ARGUMENT, f"{name}: {probe.path!r} is no path of visible ASCII after a slash")
    if probe.kind is ProbeKind.SYNTHETIC and not (probe.path and probe.expect):
        raise refuse(Reason.INVALID_ARGUMENT, f"{name}: a synthetic request needs path and expect")
    size = len(probe.path) + len(probe.service) + len(probe.body) + len(probe.expect)
    if size > MAX_PROBE_TEXT:
        message = f"{name}: {size} characters, at most {MAX_PROBE_TEXT}"
        raise refuse(Reason.INVALID_ARGUMENT, message, characters=size, limit=MAX_PROBE_TEXT)


def environment(spec: PoolSpec) -> dict[str, str]:
    """The whole environment of an engine, but for the GPUs that it is to see: built from empty, the pool's own over the
    base."""
    return {**BASE_ENVIRONMENT, **spec.env, **NO_GPU}


def find_executable(command: str) -> str:
    """The absolute path of `command`, a path or a name on the daemon's PATH; ClientError(EXECUTABLE_NOT_FOUND)."""
    if os.path.dirname(command) and not os.path.isabs(command):
        raise refuse(Reason.EXECUTABLE_NOT_FOUND, f"{command!r} is neither an absolute path nor a name on PATH")
    found = shutil.which(command)
    if found is None:
        where = "no executable file there" if os.path.isabs(command) else "not on the daemon's PATH"
        raise refuse(Reason.EXECUTABLE_NOT_FOUND, f"{command}: {where}", command=command)
    return os.path.abspath(found)


def probe_target(probe: ProbeSpec, default: ProbeSpec, port: int, timeout: float) -> ProbeTarget:
    """Where to ask. The pool's own timeout, in seconds, goes before the supervision default."""
    chosen = default if probe.kind is ProbeKind.DEFAULT else probe
    return ProbeTarget(
        kind=chosen.kind.value,
        host=HOST,
        port=port,
        path=chosen.path or "/health",
        service=chosen.service,
        body=chosen.body,
        expect=chosen.expect,
        timeout=probe.timeout or timeout,
    )


@dataclass(frozen=True, slots=True)
class LogPattern:
    """A line that tells why an engine died. Patterns are tried in order over all lines; the first match counts."""

    line: re.Pattern[str]
    reason: str
    permanent: bool

    @classmethod
    def of(cls, pattern: str, reason: str, *, permanent: bool) -> LogPattern:
        return cls(re.compile(pattern), reason, permanent)


# As CUDA's own error strings and names have it, through llama.cpp (`CUDA error: ...`), PyTorch and vLLM.
GPU_PATTERNS = (
    LogPattern.of(
        r"(?i)cuda ?malloc.* out of memory|cuda error: out of memory|cuda out of memory|CUDA_ERROR_OUT_OF_MEMORY",
        CrashCause.GPU_OOM,
        permanent=False,
    ),
    LogPattern.of(
        r"CUDA error: |CUDA_ERROR_[A-Z]|CUBLAS_STATUS_[A-Z_]*(?:FAILED|ERROR)|(?i:device-side assert triggered)",
        CrashCause.CUDA_ERROR,
        permanent=False,
    ),
)


def diagnose_by_log(
    patterns: Sequence[LogPattern], record: ExitRecord, lines: Sequence[str], banner: re.Pattern[str] | None = None
) -> Diagnosis | None:
    """What the lines since the last `banner` tell of a death that nobody asked for."""
    if record.exit_code == 0 or record.signal in (signal.SIGKILL, signal.SIGTERM):
        return None
    latest = since(lines, banner)
    for pattern in patterns:
        for line in latest:
            if pattern.line.search(line):
                return Diagnosis(pattern.reason, line.strip()[:MAX_MESSAGE], pattern.permanent)
    return None


def since(lines: Sequence[str], banner: re.Pattern[str] | None) -> Sequence[str]:
    """The lines from the last `banner` on: a restarted engine appends to its log, and an older death must not explain
    a newer one."""
    starts = [index for index, line in enumerate(lines) if banner and banner.search(line)]
    return lines[starts[-1] :] if starts else lines

"""Why a vLLM died, by its log: sentences of vLLM, PyTorch, Transformers and safetensors, as in tests/data/logs/vllm-*.

Several processes write one log. The cause stands in the trace of the one that failed first; those that waited for it
print theirs after it, and the last line of all is seldom the cause.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from poolmgr.adapters.engines.common import GPU_PATTERNS, MAX_MESSAGE, LogPattern, diagnose_by_log, since
from poolmgr.errors import Reason
from poolmgr.model.engine import CrashCause, Diagnosis, ExitRecord

# What stands before each line: colour, the process, and of a logged one level, time and place.
PREFIX = re.compile(
    r"^(?:\x1b\[[0-9;]*m|\s*\([\w ]+ pid=\d+(?:, ip=[\d.]+)?\) ?|\[rank\d+\]: ?)*"
    r"(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[?[\w./]+\.py:\d+\] ?)?"
)
# A trace quotes the program: a message that is to be filled in is not yet one that was said.
SOURCE = re.compile(r"raise |f?\"")
# Each start begins with one of them; older versions have the first, newer ones a picture and the second.
BANNER = re.compile(r"vLLM API server version |^non-default args: |^usage: vllm")
SMALL_GPU = (
    r"No available memory for the cache blocks|is larger than the maximum number of tokens that can be stored in KV"
    r"|which is larger than the available KV cache memory|is less than desired GPU memory utilization"
    r"|is less than the engine's budget|CUDA driver error: out of memory"
)
BAD_MODEL = (
    r"Invalid repository ID or local directory specified|is not a valid JSON file|Error while deserializing header"
    r"|does not recognize this architecture|Unrecognized model in |are not supported for now|failed to be inspected"
    r"|Cannot find any model weights with"
)
PATTERNS = (
    LogPattern.of(
        r"^[\w .-]+: error: (?:unrecognized arguments|argument |ambiguous option|the following arguments)",
        Reason.BAD_ARGUMENTS,
        permanent=True,
    ),
    # Not PyTorch's own EADDRINUSE, after which vLLM takes another port for itself.
    LogPattern.of(r"OSError: \[Errno 98\]", Reason.PORT_TAKEN, permanent=False),
    # Memory before all that it leads to. What others hold may be free at the next try.
    LogPattern.of(SMALL_GPU, CrashCause.GPU_OOM, permanent=False),
    *GPU_PATTERNS,
    LogPattern.of(r"DefaultCPUAllocator: (?:can't allocate|not enough) memory", CrashCause.HOST_OOM, permanent=False),
    LogPattern.of(r"NCCL error: ", CrashCause.CUDA_ERROR, permanent=False),
    LogPattern.of(r"Failed to infer device type|No CUDA GPUs are available", Reason.GPU_REQUIRED, permanent=False),
    LogPattern.of(r"HFValidationError: Repo id must be", Reason.MODEL_NOT_FOUND, permanent=True),
    LogPattern.of(BAD_MODEL, Reason.MODEL_INVALID, permanent=True),
    # How pydantic words what vLLM's configuration refuses.
    LogPattern.of(r"^(?:Value error|Assertion failed), ", Reason.BAD_ARGUMENTS, permanent=True),
    LogPattern.of(
        r"must be divisible by tensor parallel|^ValueError: User-specified max_model_len",
        Reason.BAD_ARGUMENTS,
        permanent=True,
    ),
)
# Where none of them is, the exception of the process that failed first, so that people have a line to go by.
FATAL = re.compile(r"(?:EngineCore|WorkerProc|Worker) (?:failed to start|encountered a fatal error|hit an exception)")
EXCEPTION = re.compile(r"^[\w.]*(?:Error|Exception): \S")
ENGINE_DEAD = re.compile(r"EngineDeadError: EngineCore encountered an issue")


def diagnose(record: ExitRecord, lines: Sequence[str]) -> Diagnosis | None:
    """What the lines tell of a death that nobody asked for; None when that is nothing.

    A server whose engine process has died ends itself with code 0, which is no good end.
    """
    plain = since([line for line in map(_plain, lines) if not SOURCE.match(line)], BANNER)
    if record.exit_code == 0 and any(map(ENGINE_DEAD.search, plain)):
        record = replace(record, exit_code=1)
    return diagnose_by_log(PATTERNS, record, plain) or (_exception(plain) if record.exit_code else None)


def _plain(line: str) -> str:
    return PREFIX.sub("", line).strip()


def _exception(lines: Sequence[str]) -> Diagnosis | None:
    """Of a process that says it failed the first, else the last one there is: requests have theirs before it."""
    fatal = [index for index, line in enumerate(lines) if FATAL.search(line)]
    said = [line for line in lines[fatal[0] if fatal else 0 :] if EXCEPTION.search(line)]
    if not said:
        return None
    return Diagnosis(CrashCause.EXIT_CODE, said[0 if fatal else -1][:MAX_MESSAGE], permanent=False)

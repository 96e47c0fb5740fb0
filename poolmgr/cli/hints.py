"""What to do next, by the reason that the daemon gave. The one table; a test holds it complete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_LOGS: Final = "`poolmgr pool logs ID` has the engine's last words"

HINTS: Final[Mapping[str, str]] = {
    # Errors of the API.
    "INVALID_ARGUMENT": "change what the message names; `--help` lists the options",
    "INVALID_CONFIG": "mend the file; `poolmgr config check FILE` checks it without the daemon",
    "POOL_NOT_FOUND": "`poolmgr pool list` shows the pools there are",
    "POOL_EXISTS": "choose another id, or delete the pool first: `poolmgr pool delete ID`",
    "POOL_STATE": "`poolmgr pool show ID` tells why; a PARKED pool starts by `pool reset-breaker ID`",
    "POOL_LIMIT": "delete a pool that nobody needs: `poolmgr pool list`",
    "POOL_DELETING": "wait until the pool is gone: `poolmgr pool watch`",
    "BREAKER_OPEN": "`poolmgr pool show ID` tells what failed; `poolmgr pool reset-breaker ID` allows a start at once",
    "HOST_FAULT": "look at the host: processes, memory, disk; the daemon asks it again every few seconds",
    "RELOAD_IN_PROGRESS": "wait until it is over: `poolmgr pool watch ID`; `poolmgr pool show ID` tells how far it is",
    "GENERATION_BLOCKED": "change the spec, which makes a new generation; `poolmgr pool generations ID` shows them all",
    "GENERATION_NOT_FOUND": "`poolmgr pool generations ID` shows what is kept",
    "ENGINE_NOT_FOUND": "`poolmgr engine list` shows the engines there are; one that runs elsewhere registers itself",
    "MODEL_NOT_FOUND": "the path must exist on the daemon's host and be readable for the daemon's user",
    "MODEL_INVALID": "give a model file that the engine reads; llama.cpp reads GGUF",
    "MODEL_DIGEST_MISMATCH": "fetch the model again, or correct the digest",
    "EXECUTABLE_NOT_FOUND": "give an absolute path with --command, or put the program on the daemon's PATH",
    "ENGINE_UNSUPPORTED": "use --engine llamacpp or vllm, or --engine command with --command",
    "BAD_ARGUMENTS": f"correct the arguments and create the pool again; {_LOGS}",
    "GPU_REQUIRED": "leave the device mask empty to run on the CPU",
    "BAD_MASK": "`poolmgr devices list` shows what there is to name; `poolmgr devices mask MASK` tries a mask",
    "DEVICE_NOT_FOUND": "`poolmgr devices list` shows the devices there are; any unique beginning of a UUID will do",
    "DEVICE_UNAVAILABLE": "`poolmgr devices show DEVICE` tells why it takes no work; choose another, or wait",
    "DOES_NOT_FIT": "`poolmgr plan split MODEL` tells what would fit: another split, fewer slots, a shorter context",
    "INSUFFICIENT_MEMORY": "`poolmgr plan place MODEL` tells who holds the memory and what would make room",
    "FIELD_NOT_FOUND": "`poolmgr telemetry` without --field shows all that is sampled",
    "INVALID_SCENARIO": "mend the line that the message names; a shorthand looks like 2xA100-80GB+1xT4",
    "TELEMETRY_STALLED": "the driver does not answer; `poolmgr status` tells for how long, `dmesg` often why",
    "NO_TELEMETRY": "`poolmgr status` tells why no device is sampled and what to do",
    "RELOAD_ABORTED": "leases were held past the drain deadline; allow longer with --drain-deadline, or reload again",
    "VERIFICATION_FAILED": f"the new engine did not do its work, the old one serves on; {_LOGS}",
    "PORT_TAKEN": "another program listens there; choose another --port, or none",
    "PORT_UNAVAILABLE": "free some ports on 127.0.0.1 or let the daemon choose: leave --port out",
    "SPAWN_FAILED": "see the number in the message; often a limit on processes or memory",
    "STORE_UNAVAILABLE": "look whether the state directory's disk is full or read-only: `poolmgr status` names it",
    "STATE_DIR": "give a directory that the daemon's user may write: `poolmgr serve --state-dir DIR`",
    "STATE_IN_USE": "another daemon uses this state directory; stop it, or give another with --state-dir",
    "ADDRESS": "choose another address: `poolmgr serve --addr HOST:PORT`",
    "SHUTTING_DOWN": "start the daemon again: `poolmgr serve`; engines go on without it",
    "OVERLOADED": "try again in a moment",
    "UNREACHABLE": "start the daemon with `poolmgr serve`, or name its address with --addr or POOL_MANAGERD_ADDR",
    "INTERNAL": "a defect of poolmgr: please report it with what the daemon's log has under the correlation id",
    # Refusals of a lease that are not errors above.
    "POOL_NOT_READY": "start it with `poolmgr pool preload ID`, or queue with --wait SECONDS",
    "POOL_DRAINING": "`poolmgr pool undrain ID` cancels the drain",
    "POOL_FULL": "queue with --wait SECONDS, or see who holds the slots: `poolmgr lease list --pool ID`",
    # Why an engine died.
    "EXIT_CODE": _LOGS,
    "SIGNAL": _LOGS,
    "HOST_OOM": "the host ran out of memory: fewer slots or a shorter context need less",
    "GPU_OOM": "the GPU ran out of memory: fewer slots, a shorter context or a smaller model need less",
    "CUDA_ERROR": f"look at the driver and the card with nvidia-smi; {_LOGS}",
    "DEVICE_LOST": "the GPU is gone: look at it with nvidia-smi and dmesg",
    "HEALTH_CHECK_FAILED": f"the engine did not answer its probe; {_LOGS}",
    "HUNG": f"the engine had requests and did not work on them; {_LOGS}",
    "START_FAILED": f"the engine did not become ready in time; start_timeout_secs allows it longer; {_LOGS}",
    "STALLED": f"the start made no progress; {_LOGS}",
    "STOPPED_BY_US": "`poolmgr pool preload ID` starts it again",
    "UNKNOWN": _LOGS,
    # Codes of gRPC itself.
    "DEADLINE_EXCEEDED": "the daemon took too long; look at its log, or whether its host is overloaded",
    "UNIMPLEMENTED": "something else listens at this address, or a daemon of another version: `poolmgr status`",
}

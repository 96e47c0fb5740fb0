"""What a pool may not pass to vLLM: flags and variables that contradict the daemon, or hide the engine from it.

Names as in vLLM 0.33.0 (`vllm serve --help=all`, vllm/envs.py); its parser takes underscores for dashes, and any
beginning of a long flag that only one flag has, which is why a beginning of a denied flag is denied too.
"""

from __future__ import annotations

from collections.abc import Mapping

from poolmgr.adapters.engines.common import refuse
from poolmgr.errors import Reason
from poolmgr.model.pool import PoolSpec, SplitMode

SET_BY_DAEMON = "is set by the daemon"
HIDES_HEALTH = "would hide /health from the daemon"
RUNS_PROGRAMS = "would let requests run programs"
OTHER_PORTS = "would serve where the daemon does not look"
# Each flag with all its spellings, and why a pool may not pass it.
DENIED_FLAGS: Mapping[str, str] = {
    **dict.fromkeys(("--host", "--port"), SET_BY_DAEMON),
    "--model": "is set by model.path",
    "--max-model-len": "is set by model.context_length",
    "--max-num-seqs": "is set by slots",
    "--device-ids": "is set by device_mask",
    "--config": "would set flags that were not checked",
    **dict.fromkeys(("--uds", "--grpc", "--headless", "-dpm", "--data-parallel-multi-port-external-lb"), OTHER_PORTS),
    **dict.fromkeys(("--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--ssl-cert-reqs"), HIDES_HEALTH),
    **dict.fromkeys(("--ssl-ciphers", "--enable-ssl-refresh"), HIDES_HEALTH),
    "--api-key": "would keep the daemon's own requests out, and stand in the spec for all to read",
    "--disable-log-stats": "would hide its progress from the daemon",
    "--tool-server": RUNS_PROGRAMS,
    **dict.fromkeys(("-h", "--help"), "prints and exits"),
}
PARALLEL_FLAGS = ("-tp", "--tensor-parallel-size", "-pp", "--pipeline-parallel-size")
CACHE_FLAG = "--kv-cache-dtype"
# Each spreads, shrinks or adds weights or caches in ways that the model's own files do not tell.
LAYOUT_FLAGS = frozenset(
    {
        *PARALLEL_FLAGS, "-dp", "--data-parallel-size", "-ep", "--enable-expert-parallel", "--cpu-offload-gb",
        "--offload-backend", "-q", "--quantization", "--dtype", "--hf-overrides", "--load-format",
        "-sc", "--speculative-config", "--enable-lora", "--kv-cache-memory-bytes", "--num-gpu-blocks-override",
    }
)  # fmt: skip
# Each says how much of a device it takes, whatever its model needs.
SIZE_FLAGS = frozenset({"--gpu-memory-utilization", "--kv-cache-memory"})
DENIED_VARIABLES: Mapping[str, str] = {
    **dict.fromkeys(("VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK", "DO_NOT_TRACK"), SET_BY_DAEMON),
    "VLLM_API_KEY": DENIED_FLAGS["--api-key"],
    "VLLM_SERVER_DEV_MODE": "would let requests put the engine to sleep and call its workers",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": RUNS_PROGRAMS,
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "would let requests load what was not checked",
    **dict.fromkeys(("VLLM_CONFIGURE_LOGGING", "VLLM_LOGGING_CONFIG_PATH"), "would hide the log from the daemon"),
}


def validate_flags(spec: PoolSpec) -> None:
    """Raises ClientError(BAD_ARGUMENTS) that names the flag or variable."""
    denied = {**DENIED_FLAGS, **_set_by_spec(spec)}
    for arg in spec.args:
        flag = _spelled(arg)
        why = _why_denied(flag, denied)
        if why:
            raise refuse(Reason.BAD_ARGUMENTS, f"args: {flag} {why}", flag=flag)
    for name in spec.env:
        if name in DENIED_VARIABLES:
            raise refuse(Reason.BAD_ARGUMENTS, f"env: {name} {DENIED_VARIABLES[name]}", name=name)


def lays_out(spec: PoolSpec) -> bool:
    """Whether the pool itself says how its model lies on its devices. Dotted flags set one key of an object."""
    return any(_spelled(arg).partition(".")[0] in LAYOUT_FLAGS for arg in spec.args)


def sizes_itself(spec: PoolSpec) -> bool:
    """Whether the pool itself says how much of each device it takes."""
    return any(_spelled(arg).partition(".")[0] in SIZE_FLAGS for arg in spec.args)


def _set_by_spec(spec: PoolSpec) -> Mapping[str, str]:
    """The flags that this spec says in another place."""
    parallel = PARALLEL_FLAGS if spec.split.mode is not SplitMode.NONE else ()
    cache = (CACHE_FLAG,) if spec.model.cache_type else ()
    return {**dict.fromkeys(parallel, "is set by split"), **dict.fromkeys(cache, "is set by model.cache_type")}


def _spelled(arg: str) -> str:
    """The flag of an argument as vLLM reads it."""
    flag = arg.partition("=")[0]
    return flag.replace("_", "-") if flag.startswith("--") else flag


def _why_denied(flag: str, denied: Mapping[str, str]) -> str:
    if flag in denied:
        return denied[flag]
    if not flag.startswith("--") or len(flag) < 3:
        return ""
    longer = [name for name in denied if name.startswith(flag)]
    return f"begins {longer[0]}, which {denied[longer[0]]}" if longer else ""

"""vLLM's OpenAI-compatible server: `vllm serve`, of the host or of an environment that `command` names.

Flags, pages and variables as in vLLM 0.33.0; log lines as in tests/data/logs/vllm-*. docs/engines.md says how a pool
of it is made, and what placement has to know of its memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from poolmgr.adapters.engines import vllm_log
from poolmgr.adapters.engines.common import (
    BASE_ENVIRONMENT,
    HOST,
    environment,
    find_executable,
    probe_target,
    refuse,
    validate_common,
)
from poolmgr.adapters.engines.vllm_flags import lays_out, sizes_itself, validate_flags
from poolmgr.adapters.engines.vllm_model import ModelFolders
from poolmgr.adapters.engines.vllm_progress import progress_of
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.engine import Diagnosis, EngineFacts, ExitRecord, ProbeTarget, Progress
from poolmgr.model.memory import MemoryQuestion
from poolmgr.model.pool import EngineName, PoolSpec, ProbeKind, ProbeSpec

GetJson = Callable[[str, int, str, float], Awaitable[object]]
GetText = Callable[[str, int, str, float], Awaitable[str]]

EXECUTABLE = "vllm"
HEALTH = ProbeSpec(kind=ProbeKind.HTTP, path="/health")
MAX_CONTEXT = 2**31 - 1  # its block tables count tokens in an int32
# CacheDType of vllm/config/cache.py, without those of one model or one platform.
CACHE_TYPES = frozenset({"auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "nvfp4"})
EVEN = 1e-6  # ratios that differ by less were meant to be equal
# A pool may say otherwise: it is to load what lies there, and to talk to itself where nobody listens but this host.
LOCAL = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_HOST_IP": HOST, "NO_COLOR": "1"}
NO_TELEMETRY = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
# Without a name it is the first model that is served, whatever that is called.
ONE_TOKEN = '{"prompt": "1", "max_tokens": 1, "temperature": 0}'


class VllmEngine:
    """Implements `ports.EngineKind`. `get_json`, `get_text` ask an engine for a page, or raise EnvironmentFault.

    `stopped`: whether hashing a model is to be given up. Without `get_text` nothing is known of its progress.
    """

    def __init__(
        self, get_json: GetJson, stopped: Callable[[], bool] = lambda: False, get_text: GetText | None = None
    ) -> None:
        self._get_json = get_json
        self._get_text = get_text
        self._models = ModelFolders(stopped)

    @property
    def name(self) -> EngineName:
        return EngineName.VLLM

    def validate(self, spec: PoolSpec) -> None:
        validate_common(spec)
        self._models.validate(spec.model)
        _validate_model(spec)
        _validate_ratios(spec.split.ratios)
        validate_flags(spec)

    def memory(self, spec: PoolSpec) -> MemoryQuestion | None:
        """The least that it can do with; `told_share` makes that what it takes.

        None where the pool itself says how the model is laid out, or how much of each device it takes.
        """
        if lays_out(spec) or sizes_itself(spec):
            return None
        model = spec.model
        return MemoryQuestion(model.path, model.context_length, spec.slots, model.cache_type, EngineName.VLLM)

    def told_share(self, spec: PoolSpec, share: float) -> tuple[str, ...]:
        """Untold it takes 0.92 of every device, however small its model. Not for a pool that says so itself."""
        return ("--gpu-memory-utilization", f"{share:.3f}")

    def check(self, spec: PoolSpec) -> None:
        self._models.check(spec.model, max(1, len(spec.split.ratios)))
        find_executable(spec.command or EXECUTABLE)

    def render(self, spec: PoolSpec, port: int) -> tuple[tuple[str, ...], dict[str, str]]:
        """Over how many devices is the plan's to say: what it renders is appended to this."""
        program, model = find_executable(spec.command or EXECUTABLE), spec.model
        flags = ["--host", HOST, "--port", str(port), "--max-num-seqs", str(spec.slots)]
        if model.context_length:
            flags += ["--max-model-len", str(model.context_length)]
        if model.cache_type:
            flags += ["--kv-cache-dtype", model.cache_type]
        return (program, "serve", model.path, *flags, *spec.args), _environment(spec, program)

    def readiness(self, spec: PoolSpec, port: int, timeout: float) -> ProbeTarget:
        return probe_target(spec.readiness, HEALTH, port, timeout)

    def liveness(self, spec: PoolSpec, port: int, timeout: float) -> ProbeTarget:
        return probe_target(spec.liveness, HEALTH, port, timeout)

    def verification(self, spec: PoolSpec, port: int, timeout: float) -> ProbeTarget:
        """One token; of a model that generates none, the pool's own synthetic request."""
        if spec.readiness.kind is ProbeKind.SYNTHETIC:
            return probe_target(replace(spec.readiness, timeout=timeout), HEALTH, port, timeout)
        path, expect = "/v1/completions", '"choices"'
        return ProbeTarget("SYNTHETIC", HOST, port, path, body=ONE_TOKEN, expect=expect, timeout=timeout)

    async def describe(self, spec: PoolSpec, port: int, timeout: float) -> EngineFacts:
        """By /version and /v1/models; each has half of the time."""
        version, models = [await self._page(port, path, timeout / 2) for path in ("/version", "/v1/models")]
        served = _first(models.get("data"))
        return EngineFacts(
            version=_text(version.get("version")),
            context_length=_count(served.get("max_model_len")),
            model=_text(served.get("root")) or _text(served.get("id")),
        )

    async def _page(self, port: int, path: str, timeout: float) -> Mapping[str, object]:
        """Empty where it does not say: an engine that does not is as good as any other."""
        try:
            page = await self._get_json(HOST, port, path, timeout)
        except EnvironmentFault:
            return {}
        return page if isinstance(page, dict) else {}

    async def progress(self, spec: PoolSpec, port: int, timeout: float) -> Progress | None:
        if self._get_text is None:
            return None
        return progress_of(await self._get_text(HOST, port, "/metrics", timeout), spec.slots)

    def diagnose(self, record: ExitRecord, log_tail: Sequence[str]) -> Diagnosis | None:
        return vllm_log.diagnose(record, log_tail)


def _validate_model(spec: PoolSpec) -> None:
    model = spec.model
    if model.cache_type and model.cache_type not in CACHE_TYPES:
        message = f"model.cache_type {model.cache_type!r} is none of {', '.join(sorted(CACHE_TYPES))}"
        raise refuse(Reason.BAD_ARGUMENTS, message, cache_type=model.cache_type)
    if model.context_length > MAX_CONTEXT:
        message = f"{model.context_length} tokens of context, at most {MAX_CONTEXT}"
        raise refuse(Reason.BAD_ARGUMENTS, message, context=model.context_length, limit=MAX_CONTEXT)


def _validate_ratios(ratios: Sequence[float]) -> None:
    """Tensor parallelism knows no unequal shares."""
    if ratios and not math.isclose(min(ratios), max(ratios), rel_tol=EVEN):
        message = (
            f"vLLM gives each of {len(ratios)} devices an equal share, the ratios go from {min(ratios):g} to "
            f"{max(ratios):g}: make them equal, or pass --pipeline-parallel-size and VLLM_PP_LAYER_PARTITION"
        )
        raise refuse(Reason.BAD_ARGUMENTS, message, least=min(ratios), most=max(ratios), devices=len(ratios))


def _environment(spec: PoolSpec, program: str) -> dict[str, str]:
    """What it compiles at its start it compiles with the tools that lie beside it."""
    beside = os.path.dirname(os.path.realpath(program))
    path = {"PATH": f"{beside}:{BASE_ENVIRONMENT['PATH']}"} if "PATH" not in spec.env else {}
    return {**LOCAL, **environment(spec), **path, **NO_TELEMETRY}


def _first(items: object) -> Mapping[str, object]:
    found = items[0] if isinstance(items, list) and items else None
    return found if isinstance(found, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0

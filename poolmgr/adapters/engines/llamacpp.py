"""llama.cpp's server: `llama-server` of the host, or the one that the xllamacpp wheel carries, under the same flags.

Flags and log lines as in llama.cpp's tools/server/README.md and common/arg.cpp, and as recorded in tests/data/logs.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from poolmgr.adapters.engines.common import (
    GPU_PATTERNS,
    HOST,
    LogPattern,
    diagnose_by_log,
    environment,
    find_executable,
    probe_target,
    refuse,
    validate_common,
)
from poolmgr.adapters.engines.llamacpp_progress import busy_slots, progress_of
from poolmgr.adapters.engines.modelfile import ModelFiles, validate_reference
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.engine import CrashCause, Diagnosis, EngineFacts, ExitRecord, ProbeTarget, Progress
from poolmgr.model.memory import MemoryQuestion
from poolmgr.model.pool import EngineName, PoolSpec, ProbeKind, ProbeSpec

GetJson = Callable[[str, int, str, float], Awaitable[object]]
GetText = Callable[[str, int, str, float], Awaitable[str]]

EXECUTABLE = "llama-server"
WHEEL = "xllamacpp"
LAUNCHER = str(Path(__file__).with_name("llamacpp_launcher.py"))
UNVERSIONED = "b0-unknown"  # the build_info of a llama.cpp that was built outside its own repository, as the wheel's
HEALTH = ProbeSpec(kind=ProbeKind.HTTP, path="/health")
MAX_CONTEXT = 2**31 - 1  # llama.cpp keeps the size of the context in an int32
CACHE_TYPES = frozenset({"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"})

SET_BY_DAEMON = "is set by the daemon"
LOADS_ANOTHER = "would load a model that was not checked"
# Each flag with all its spellings, and why a pool may not pass it.
DENIED_FLAGS: Mapping[str, str] = {
    **dict.fromkeys(("--host", "--port", "--slots", "--no-slots", "--metrics"), SET_BY_DAEMON),
    **dict.fromkeys(("-m", "--model"), "is set by model.path"),
    **dict.fromkeys(("-c", "--ctx-size"), "is set by model.context_length and slots"),
    **dict.fromkeys(("-np", "--parallel"), "is set by slots"),
    **dict.fromkeys(("-mu", "--model-url", "-dr", "--docker-repo", "-hf", "-hfr", "--hf-repo"), LOADS_ANOTHER),
    **dict.fromkeys(("-hff", "--hf-file", "--models-dir", "--models-preset"), LOADS_ANOTHER),
    **dict.fromkeys(("--tools", "--tools-runtime", "-ag", "--agent"), "would let requests run programs"),
    **dict.fromkeys(("--mcp-servers-config", "--mcp-servers-json"), "would let requests run programs"),
    **dict.fromkeys(("--ui-mcp-proxy", "--webui-mcp-proxy"), "would let requests reach other hosts"),
    **dict.fromkeys(("--log-file", "--log-disable"), "would hide the log from the daemon"),
    **dict.fromkeys(("--api-prefix", "--ssl-key-file", "--ssl-cert-file"), "would hide /health from the daemon"),
    "--reuse-port": "would let two engines share one port",
    **dict.fromkeys(("-h", "--help", "--usage", "--version", "--license"), "prints and exits"),
    **dict.fromkeys(("-cl", "--cache-list", "--completion-bash", "--list-devices"), "prints and exits"),
}
# Each moves weights or caches between the devices and the host, adds some, or changes what is computed at a time:
# common/arg.cpp.
SIZING_FLAGS = frozenset(
    {
        "-ngl", "--gpu-layers", "--n-gpu-layers", "-ot", "--override-tensor", "-cmoe", "--cpu-moe", "-ncmoe",
        "--n-cpu-moe", "-nkvo", "--no-kv-offload", "-dev", "--device", "-sm", "--split-mode", "-ts", "--tensor-split",
        "-mg", "--main-gpu", "-md", "--model-draft", "--spec-draft-model", "-mm", "--mmproj", "--lora",
        "--lora-scaled", "--control-vector", "--control-vector-scaled", "-ub", "--ubatch-size", "-b", "--batch-size",
        "-fa", "--flash-attn",
    }
)  # fmt: skip
ONE_TOKEN = '{"prompt": "1", "n_predict": 1, "cache_prompt": false}'
CACHE_FLAGS = ("-ctk", "--cache-type-k", "-ctv", "--cache-type-v")

BANNER = re.compile(r"^launcher: xllamacpp|^usage: |\bbuild_info: |^build: \d")
ARGUMENT_ERROR = r"^(?:llama-server: )?error: (?:invalid argument|argument |unrecognized arguments|the following arg)"
ALLOCATION_ERROR = r"(?i)insufficient memory|failed to allocate|unable to allocate|std::bad_alloc"
PATTERNS = (
    LogPattern.of(r"couldn't bind HTTP server socket", Reason.PORT_TAKEN, permanent=False),
    LogPattern.of(ARGUMENT_ERROR, Reason.BAD_ARGUMENTS, permanent=True),
    LogPattern.of(r"^error while handling argument", Reason.BAD_ARGUMENTS, permanent=True),
    *GPU_PATTERNS,
    # Memory before the model: a model that does not fit also ends in "failed to load model".
    LogPattern.of(ALLOCATION_ERROR, CrashCause.HOST_OOM, permanent=False),
    LogPattern.of(r"failed to open GGUF file", Reason.MODEL_NOT_FOUND, permanent=True),
    LogPattern.of(r"error loading model: ", Reason.MODEL_INVALID, permanent=True),
    LogPattern.of(r"invalid magic characters", Reason.MODEL_INVALID, permanent=True),
    LogPattern.of(r"failed to load model", Reason.MODEL_INVALID, permanent=True),
)


class LlamaCppEngine:
    """Implements `ports.EngineKind`. `get_json`, `get_text` ask an engine for a page, or raise EnvironmentFault.

    `stopped`: whether hashing a model is to be given up. Without `get_text` /metrics is not read.
    """

    def __init__(
        self, get_json: GetJson, stopped: Callable[[], bool] = lambda: False, get_text: GetText | None = None
    ) -> None:
        self._get_json = get_json
        self._get_text = get_text
        self._models = ModelFiles(stopped)

    @property
    def name(self) -> EngineName:
        return EngineName.LLAMACPP

    def validate(self, spec: PoolSpec) -> None:
        validate_common(spec)
        _validate_model(spec)
        for arg in spec.args:
            _validate_flag(arg, spec)
        for name in spec.env:
            if name.startswith("LLAMA_ARG_"):
                raise refuse(Reason.BAD_ARGUMENTS, f"{name} is a flag in disguise: use args", name=name)

    def memory(self, spec: PoolSpec) -> MemoryQuestion | None:
        """None where the pool itself says what is kept off its devices, or how it computes."""
        if any(arg.partition("=")[0] in SIZING_FLAGS for arg in spec.args):
            return None
        model = spec.model
        return MemoryQuestion(model.path, model.context_length, spec.slots, model.cache_type, EngineName.LLAMACPP)

    def told_share(self, spec: PoolSpec, share: float) -> tuple[str, ...]:
        return ()

    def check(self, spec: PoolSpec) -> None:
        self._models.check(spec.model.path, spec.model.digest)
        program = _program(spec.command)
        if LAUNCHER in program and spec.device_mask not in ("", "none"):
            # It would run, on the CPU: nobody asked for that (PRE-6).
            message = "the llama.cpp in the xllamacpp wheel has no GPU backend: put a llama-server with CUDA on PATH"
            raise refuse(Reason.GPU_REQUIRED, message, device_mask=spec.device_mask)

    def render(self, spec: PoolSpec, port: int) -> tuple[tuple[str, ...], dict[str, str]]:
        """Flags and values are separate elements: llama-server knows no ``--flag=value``."""
        model = spec.model
        flags = ["--model", model.path, "--host", HOST, "--port", str(port), "--parallel", str(spec.slots)]
        flags += ["--slots", "--metrics"]
        if model.context_length:
            # llama-server divides its context among the slots.
            flags += ["--ctx-size", str(model.context_length * spec.slots)]
        if model.cache_type:
            flags += ["--cache-type-k", model.cache_type, "--cache-type-v", model.cache_type]
        return (*_program(spec.command), *flags, *spec.args), environment(spec)

    def readiness(self, spec: PoolSpec, port: int, timeout: float) -> ProbeTarget:
        return probe_target(spec.readiness, HEALTH, port, timeout)

    def liveness(self, spec: PoolSpec, port: int, timeout: float) -> ProbeTarget:
        return probe_target(spec.liveness, HEALTH, port, timeout)

    def verification(self, spec: PoolSpec, port: int, timeout: float) -> ProbeTarget:
        """One token. llama-server answers it from any slot, whatever the model."""
        return ProbeTarget("SYNTHETIC", HOST, port, "/completion", body=ONE_TOKEN, expect='"content"', timeout=timeout)

    async def describe(self, spec: PoolSpec, port: int, timeout: float) -> EngineFacts:
        try:
            props = await self._get_json(HOST, port, "/props", timeout)
        except EnvironmentFault:
            return EngineFacts()  # an engine that does not say is as good as any other
        return _facts(props)

    async def progress(self, spec: PoolSpec, port: int, timeout: float) -> Progress | None:
        """By /slots and, while a request is in flight, the counters of /metrics; each has half of the time."""
        slots = await self._get_json(HOST, port, "/slots", timeout / 2)
        busy = busy_slots(slots)
        metrics = await self._metrics(port, timeout / 2) if busy else ""
        return progress_of(slots, metrics)

    async def _metrics(self, port: int, timeout: float) -> str:
        """Empty where it does not show them."""
        if self._get_text is None:
            return ""
        try:
            return await self._get_text(HOST, port, "/metrics", timeout)
        except EnvironmentFault:
            return ""

    def diagnose(self, record: ExitRecord, log_tail: Sequence[str]) -> Diagnosis | None:
        return diagnose_by_log(PATTERNS, record, log_tail, BANNER)


def _validate_model(spec: PoolSpec) -> None:
    model = spec.model
    validate_reference(model)
    if model.cache_type and model.cache_type not in CACHE_TYPES:
        message = f"model.cache_type {model.cache_type!r} is none of {', '.join(sorted(CACHE_TYPES))}"
        raise refuse(Reason.BAD_ARGUMENTS, message, cache_type=model.cache_type)
    total = model.context_length * spec.slots
    if total > MAX_CONTEXT:
        message = f"{spec.slots} slots of {model.context_length} tokens are {total}, at most {MAX_CONTEXT}"
        raise refuse(Reason.BAD_ARGUMENTS, message, context=total, limit=MAX_CONTEXT)


def _validate_flag(arg: str, spec: PoolSpec) -> None:
    # As llama.cpp reads them: underscores in a long flag count as dashes.
    flag = arg.partition("=")[0]
    flag = flag.replace("_", "-") if flag.startswith("--") else flag
    why = DENIED_FLAGS.get(flag)
    if why is None and spec.model.cache_type and flag in CACHE_FLAGS:
        why = "is set by model.cache_type"
    if why is not None:
        raise refuse(Reason.BAD_ARGUMENTS, f"args: {flag} {why}", flag=flag)


def _program(command: str) -> tuple[str, ...]:
    """What to execute: the pool's own command, else llama-server on PATH, else the wheel's server."""
    if command:
        return (find_executable(command),)
    if shutil.which(EXECUTABLE):
        return (find_executable(EXECUTABLE),)
    if importlib.util.find_spec(WHEEL) is None:
        message = f"no {EXECUTABLE} on the daemon's PATH and no bundled one: pip install poolmgr[llamacpp]"
        raise refuse(Reason.EXECUTABLE_NOT_FOUND, message, command=EXECUTABLE)
    return (sys.executable, "-I", LAUNCHER)


def _facts(props: object) -> EngineFacts:
    """/props as an engine sends it; what is missing or of another type stays empty."""
    if not isinstance(props, dict):
        return EngineFacts()
    settings = props.get("default_generation_settings")
    return EngineFacts(
        version=_version(_text(props.get("build_info"))),
        slots=_count(props.get("total_slots")),
        context_length=_count(settings.get("n_ctx") if isinstance(settings, dict) else None),
        model=_text(props.get("model_path")),
    )


def _version(build_info: str) -> str:
    if build_info != UNVERSIONED:
        return build_info
    try:
        return f"{WHEEL} {importlib.metadata.version(WHEEL)}"
    except importlib.metadata.PackageNotFoundError:
        return build_info


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0

"""What each kind of engine accepts, checks, renders, asks and understands."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from poolmgr.adapters.engines import default_kinds
from poolmgr.adapters.engines.command import CommandEngine
from poolmgr.adapters.engines.llamacpp import LAUNCHER, LlamaCppEngine
from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.engine import CrashCause, EngineFacts, ExitRecord, ProbeTarget
from poolmgr.model.pool import EngineName, ModelSpec, PoolSpec, ProbeKind, ProbeSpec
from poolmgr.testing.gguf import write_tiny_llama

LOGS = Path(__file__).parents[1] / "data" / "logs"
MODEL = ModelSpec(path="/models/a.gguf")


async def nobody(_host: str, _port: int, _path: str, _timeout: float) -> object:
    raise EnvironmentFault(Reason.UNREACHABLE, "nobody there")


def command(**fields: object) -> PoolSpec:
    return PoolSpec(EngineName.COMMAND, **{"command": "sleep", **fields})  # type: ignore[arg-type]


def llama(**fields: object) -> PoolSpec:
    return PoolSpec(EngineName.LLAMACPP, **{"model": MODEL, **fields})  # type: ignore[arg-type]


def refusal(spec: PoolSpec) -> ClientError:
    kind = default_kinds(nobody)[spec.engine]
    with pytest.raises(ClientError) as refused:
        kind.validate(spec)
    return refused.value


def test_every_kind_is_found_by_its_own_name() -> None:
    kinds = default_kinds(nobody)
    assert set(kinds) == {EngineName.COMMAND, EngineName.LLAMACPP, EngineName.VLLM}
    assert all(kind.name is name for name, kind in kinds.items())


@pytest.mark.parametrize(
    "spec",
    [
        command(args=("--x", "a b", "{port}"), env={"A_1": "x=y"}, device_mask="none"),
        command(readiness=ProbeSpec(ProbeKind.NONE), liveness=ProbeSpec(ProbeKind.TCP)),
        command(args=("x",) * 255),
        llama(args=("--threads", "2", "-ctk", "q8_0"), slots=4),
        llama(model=ModelSpec("/m", "sha256:" + "a" * 64, 4096, "q8_0")),
        llama(liveness=ProbeSpec(ProbeKind.SYNTHETIC, path="/v1/completions", body="{}", expect="choices")),
    ],
)
def test_a_sound_spec_is_accepted(spec: PoolSpec) -> None:
    default_kinds(nobody)[spec.engine].validate(spec)


@pytest.mark.behaviour("PRE-6")
@pytest.mark.parametrize(
    ("spec", "reason", "numbers"),
    [
        (command(command=""), Reason.INVALID_ARGUMENT, {}),
        (command(args=("a", "")), Reason.BAD_ARGUMENTS, {"index": 2}),
        (command(args=("a\0b",)), Reason.BAD_ARGUMENTS, {"index": 1}),
        (command(command="sl\0eep"), Reason.BAD_ARGUMENTS, {"index": 0}),
        (command(args=("x",) * 256), Reason.BAD_ARGUMENTS, {"count": 257, "limit": 256}),
        (command(args=("é" * 16384,)), Reason.BAD_ARGUMENTS, {"bytes": 32775, "limit": 32768}),
        (command(env={"A": "x" * 40000}), Reason.INVALID_ARGUMENT, {"bytes": 40003, "limit": 32768}),
        (command(env={str(f"A{i}"): "" for i in range(257)}), Reason.INVALID_ARGUMENT, {"count": 257, "limit": 256}),
        (llama(model=ModelSpec("relative.gguf")), Reason.INVALID_ARGUMENT, {"path": "relative.gguf"}),
        (llama(model=ModelSpec()), Reason.INVALID_ARGUMENT, {"path": ""}),
        (llama(model=ModelSpec("/m\0")), Reason.INVALID_ARGUMENT, {"path": "/m\0"}),
        (llama(model=ModelSpec("/m", "md5:0")), Reason.INVALID_ARGUMENT, {"length": 5}),
        (llama(model=ModelSpec("/m", "sha256:" + "a" * 63)), Reason.INVALID_ARGUMENT, {"length": 70}),
        (llama(model=ModelSpec("/m", "sha256:" + "a" * 64 + "\n")), Reason.INVALID_ARGUMENT, {"length": 72}),
        (llama(model=ModelSpec("/m", "", 0, "f17")), Reason.BAD_ARGUMENTS, {"cache_type": "f17"}),
        (
            llama(model=ModelSpec("/m", "", 2**21), slots=1024),
            Reason.BAD_ARGUMENTS,
            {"context": 2**31, "limit": 2**31 - 1},
        ),
        (llama(readiness=ProbeSpec(ProbeKind.NONE)), Reason.INVALID_ARGUMENT, {}),
        (command(readiness=ProbeSpec(ProbeKind.HTTP, path="health")), Reason.INVALID_ARGUMENT, {}),
        (command(readiness=ProbeSpec(ProbeKind.HTTP, path="/a b")), Reason.INVALID_ARGUMENT, {}),
        (command(liveness=ProbeSpec(ProbeKind.SYNTHETIC, path="/x")), Reason.INVALID_ARGUMENT, {}),
        (
            command(liveness=ProbeSpec(ProbeKind.SYNTHETIC, path="/x", expect="y", body="z" * 70000)),
            Reason.INVALID_ARGUMENT,
            {"characters": 70003, "limit": 65536},
        ),
    ],
)
def test_a_spec_that_can_never_run_is_refused_with_its_numbers(
    spec: PoolSpec, reason: Reason, numbers: Mapping[str, object]
) -> None:
    refused = refusal(spec)
    assert (refused.reason, refused.numbers) == (reason, numbers)


@pytest.mark.behaviour("PROC-1")
@pytest.mark.parametrize(
    "name",
    [
        *("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"),
        *("POOLMGR_ENGINE_ID", "", "1A", "A-B", "A=B", "A\n"),
    ],
)
def test_a_pool_cannot_set_what_the_daemon_decides_or_what_is_no_name(name: str) -> None:
    assert refusal(command(env={name: "x"})).reason is Reason.INVALID_ARGUMENT


def test_an_environment_value_with_a_nul_byte_is_refused() -> None:
    assert refusal(command(env={"A": "x\0"})).reason is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "flag",
    [
        *("--port", "--host", "--model", "-m", "--ctx-size", "-c", "--parallel", "-np", "--slots", "--metrics"),
        *("--ctx_size", "--port=1", "-hf", "--model-url", "--tools", "--mcp_servers_json", "--log-file", "--help"),
    ],
)
def test_a_pool_cannot_repeat_or_undo_a_flag_that_the_daemon_sets(flag: str) -> None:
    refused = refusal(llama(args=("--threads", "2", flag)))
    assert refused.reason is Reason.BAD_ARGUMENTS
    assert str(refused.numbers["flag"]).lstrip("-") == flag.lstrip("-").partition("=")[0].replace("_", "-")


def test_a_cache_type_is_named_once() -> None:
    both = llama(model=ModelSpec("/m", cache_type="q8_0"), args=("--cache-type-k", "f16"))
    assert refusal(both).numbers == {"flag": "--cache-type-k"}


def test_a_flag_in_the_environment_is_refused_like_one_in_the_arguments() -> None:
    assert refusal(llama(env={"LLAMA_ARG_PORT": "1"})).reason is Reason.BAD_ARGUMENTS


@pytest.mark.behaviour("PROC-1", "PROC-2")
def test_a_command_runs_with_its_arguments_as_they_stand_and_an_environment_built_from_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET", "of the daemon")
    spec = command(command="sh", args=("-c", "echo $HOME", "--port={port}", "{port}"), env={"LANG": "C", "A": "1"})
    argv, env = CommandEngine().render(spec, 8123)
    assert Path(argv[0]).is_absolute()
    assert argv[1:] == ("-c", "echo $HOME", "--port=8123", "8123")
    assert env == {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C",
        "A": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "",
    }


@pytest.fixture
def bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory on PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


def executable(path: Path, mode: int = 0o755) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


@pytest.mark.behaviour("PRE-1")
def test_an_executable_is_a_name_on_path_or_an_absolute_path(bin_dir: Path) -> None:
    program = executable(bin_dir / "engine")
    for name in ("engine", str(program)):
        CommandEngine().check(command(command=name))
        assert CommandEngine().render(command(command=name), 1)[0] == (str(program),)


@pytest.mark.behaviour("PRE-1", "PRE-6")
@pytest.mark.parametrize("name", ["absent", "data", "folder", "./engine", "{bin}/absent", "{bin}/data", "{bin}/folder"])
def test_what_is_absent_or_no_executable_file_fails_before_a_spawn(bin_dir: Path, name: str) -> None:
    executable(bin_dir / "engine")
    executable(bin_dir / "data", 0o644)
    (bin_dir / "folder").mkdir()
    with pytest.raises(ClientError) as refused:
        CommandEngine().check(command(command=name.replace("{bin}", str(bin_dir))))
    assert refused.value.reason is Reason.EXECUTABLE_NOT_FOUND


@pytest.mark.behaviour("PROC-2")
def test_llama_server_gets_one_element_per_flag_and_value_and_the_context_of_all_slots(bin_dir: Path) -> None:
    program = executable(bin_dir / "llama-server")
    model = ModelSpec("/models/a b.gguf", context_length=4096, cache_type="q8_0")
    argv, env = LlamaCppEngine(nobody).render(llama(model=model, slots=3, args=("--threads", "2")), 8123)
    assert argv == (
        *(str(program), "--model", "/models/a b.gguf", "--host", "127.0.0.1", "--port", "8123", "--parallel", "3"),
        *("--slots", "--metrics", "--ctx-size", "12288", "--cache-type-k", "q8_0", "--cache-type-v", "q8_0"),
        *("--threads", "2"),
    )
    assert env["CUDA_VISIBLE_DEVICES"] == ""


def test_what_a_spec_leaves_open_is_left_to_the_engine(bin_dir: Path) -> None:
    executable(bin_dir / "llama-server")
    argv, _ = LlamaCppEngine(nobody).render(llama(), 1)
    assert not {"--ctx-size", "--cache-type-k"} & set(argv)


def test_without_llama_server_the_bundled_launcher_runs_with_the_same_flags(bin_dir: Path) -> None:
    bundled, _ = LlamaCppEngine(nobody).render(llama(), 1)
    executable(bin_dir / "llama-server")
    found, _ = LlamaCppEngine(nobody).render(llama(), 1)
    assert bundled[:3] == (sys.executable, "-I", LAUNCHER)
    assert bundled[3:] == found[1:]
    assert LlamaCppEngine(nobody).render(llama(command=str(bin_dir / "llama-server")), 1)[0] == found


def test_without_any_llama_cpp_the_refusal_says_how_to_get_one(bin_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poolmgr.adapters.engines.llamacpp.WHEEL", "no_such_wheel")
    with pytest.raises(ClientError, match=r"pip install poolmgr\[llamacpp\]") as refused:
        LlamaCppEngine(nobody).render(llama(), 1)
    assert refused.value.reason is Reason.EXECUTABLE_NOT_FOUND


@pytest.mark.behaviour("PRE-2")
def test_llama_cpp_is_asked_for_health_and_a_command_for_nothing_unless_told_otherwise() -> None:
    kinds = default_kinds(nobody)
    health = ProbeTarget("HTTP", "127.0.0.1", 81, path="/health", timeout=2.0)
    engine = kinds[EngineName.LLAMACPP]
    assert engine.readiness(llama(), 81, 2.0) == engine.liveness(llama(), 81, 2.0) == health
    engine = kinds[EngineName.COMMAND]
    assert engine.readiness(command(), 81, 2.0).kind == engine.liveness(command(), 81, 2.0).kind == "NONE"
    own = ProbeSpec(ProbeKind.SYNTHETIC, path="/c", body="{}", expect="x", timeout=7.0)
    expected = ProbeTarget("SYNTHETIC", "127.0.0.1", 81, path="/c", body="{}", expect="x", timeout=7.0)
    assert engine.readiness(command(readiness=own), 81, 2.0) == expected
    assert engine.liveness(command(liveness=own), 81, 2.0) == expected


@pytest.mark.behaviour("PRE-9")
@pytest.mark.parametrize(
    ("props", "facts"),
    [
        (
            {
                "build_info": "b4621-6eecde3",
                "total_slots": 2,
                "model_path": "/m",
                "default_generation_settings": {"n_ctx": 256},
            },
            EngineFacts("b4621-6eecde3", 2, 256, "/m"),
        ),
        ({}, EngineFacts()),
        ([], EngineFacts()),
        ({"build_info": 7, "total_slots": -1, "default_generation_settings": []}, EngineFacts()),
    ],
)
async def test_a_ready_llama_cpp_says_what_it_is_and_nonsense_counts_as_silence(
    props: object, facts: EngineFacts
) -> None:
    asked: list[object] = []

    async def get_json(*request: object) -> object:
        asked.append(request)
        return props

    assert await LlamaCppEngine(get_json).describe(llama(), 81, 2.0) == facts
    assert asked == [("127.0.0.1", 81, "/props", 2.0)]


async def test_an_engine_that_does_not_say_what_it_is_has_no_facts() -> None:
    assert await LlamaCppEngine(nobody).describe(llama(), 81, 2.0) == EngineFacts()
    assert await CommandEngine().describe(command(slots=3), 81, 2.0) == EngineFacts()


def recorded(name: str) -> list[str]:
    return (LOGS / f"{name}.log").read_text().splitlines()[-50:]


@pytest.mark.behaviour("LIVE-3", "RST-8", "PRE-4")
@pytest.mark.parametrize(
    ("log", "code", "reason", "permanent", "says"),
    [
        ("bad-flag", 2, "BAD_ARGUMENTS", True, "unrecognized arguments: --no-such-flag"),
        ("bad-value", 2, "BAD_ARGUMENTS", True, "invalid int value: 'many'"),
        ("no-model", 2, "BAD_ARGUMENTS", True, "required: -m/--model"),
        ("bad-magic", 1, "MODEL_INVALID", True, "failed to load model from not-a-model.gguf"),
        ("truncated", 1, "MODEL_INVALID", True, "corrupted or incomplete"),
        ("unknown-architecture", 1, "MODEL_INVALID", True, "unknown model architecture: 'lxxma'"),
        ("missing-file", 1, "MODEL_NOT_FOUND", True, "No such file or directory"),
        ("port-taken", 1, "PORT_TAKEN", False, "port: 18951"),
        ("out-of-memory", 1, "HOST_OOM", False, "insufficient memory (attempted to allocate 3906.25 MB)"),
    ],
)
def test_the_recorded_log_of_a_dead_llama_cpp_tells_why_and_whether_to_try_again(
    log: str, code: int, reason: str, permanent: bool, says: str
) -> None:
    diagnosis = LlamaCppEngine(nobody).diagnose(ExitRecord(exit_code=code), recorded(log))
    assert diagnosis is not None
    assert (diagnosis.reason, diagnosis.permanent) == (reason, permanent)
    assert says in diagnosis.message


@pytest.mark.parametrize("line", ["error: invalid argument: --foo", 'error while handling argument "-c": stoi'])
def test_llama_server_s_own_words_for_a_wrong_argument_are_known(line: str) -> None:
    diagnosis = LlamaCppEngine(nobody).diagnose(ExitRecord(exit_code=1), [line, "usage hint"])
    assert diagnosis is not None
    assert diagnosis.reason == "BAD_ARGUMENTS"
    assert diagnosis.permanent


@pytest.mark.parametrize("record", [ExitRecord(exit_code=0), ExitRecord(signal=9), ExitRecord(signal=15)])
def test_a_log_explains_no_death_that_somebody_asked_for(record: ExitRecord) -> None:
    assert LlamaCppEngine(nobody).diagnose(record, recorded("bad-magic")) is None


def test_an_older_death_in_the_same_log_does_not_explain_a_newer_one() -> None:
    engine, crash = LlamaCppEngine(nobody), ExitRecord(signal=11)
    assert engine.diagnose(crash, recorded("bad-magic")) is not None
    assert engine.diagnose(crash, [*recorded("bad-magic"), *recorded("port-taken")[:4]]) is None
    diagnosis = engine.diagnose(ExitRecord(exit_code=2), [*recorded("port-taken"), *recorded("bad-flag")])
    assert diagnosis is not None
    assert diagnosis.reason == "BAD_ARGUMENTS"


def test_a_log_without_a_known_line_tells_nothing() -> None:
    for kind in default_kinds(nobody).values():
        assert kind.diagnose(ExitRecord(exit_code=1), ["something else"]) is None
        assert kind.diagnose(ExitRecord(exit_code=1), []) is None


@pytest.mark.behaviour("RST-8")
@pytest.mark.parametrize("code", [126, 127])
def test_a_wrapper_that_could_not_run_its_command_is_not_tried_again(code: int) -> None:
    for tail in (["sh: 1: engine: not found"], []):
        diagnosis = CommandEngine().diagnose(ExitRecord(exit_code=code), tail)
        assert diagnosis is not None
        assert (diagnosis.reason, diagnosis.permanent) == ("EXECUTABLE_NOT_FOUND", True)


def test_a_command_whose_port_was_taken_is_tried_again() -> None:
    tail = ["OSError: [Errno 98] Address already in use"]
    diagnosis = CommandEngine().diagnose(ExitRecord(exit_code=1), tail)
    assert diagnosis is not None
    assert (diagnosis.reason, diagnosis.permanent) == ("PORT_TAKEN", False)


def test_a_message_is_bounded_however_long_the_line() -> None:
    diagnosis = CommandEngine().diagnose(ExitRecord(exit_code=1), ["Address already in use" + "x" * 10_000])
    assert diagnosis is not None
    assert len(diagnosis.message) == 300


@pytest.mark.behaviour("PRE-2")
@pytest.mark.parametrize(("args", "kind"), [(("--port={port}",), "TCP"), (("serve",), "NONE")])
def test_a_command_that_is_told_its_port_is_ready_when_it_listens_there(args, kind):
    spec = command(args=args)
    assert CommandEngine().readiness(spec, 81, 2.0).kind == CommandEngine().liveness(spec, 81, 2.0).kind == kind


@pytest.mark.behaviour("LIVE-3")
@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9.0 MiB on device 0: cudaMalloc failed: out of memory",
         CrashCause.GPU_OOM),
        ("0.54.236.075 E CUDA error: an illegal memory access was encountered", CrashCause.CUDA_ERROR),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", CrashCause.GPU_OOM),
        ("RuntimeError: CUDA error: device-side assert triggered", CrashCause.CUDA_ERROR),
        ("CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx", CrashCause.CUDA_ERROR),
    ],
)  # fmt: skip
def test_what_cuda_says_of_a_death_is_its_cause_and_not_held_against_the_spec(line: str, cause: CrashCause) -> None:
    for kind in (LlamaCppEngine(nobody), CommandEngine()):
        diagnosis = kind.diagnose(ExitRecord(signal=6), ["starting", line, "llama_model_load: failed to load model"])
        assert diagnosis is not None
        assert (diagnosis.reason, diagnosis.permanent) == (cause, False)


@pytest.mark.behaviour("PRE-6")
def test_a_llama_server_without_a_gpu_backend_is_no_engine_for_a_pool_that_asks_for_gpus(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    model = tmp_path / "model.gguf"
    write_tiny_llama(model)
    spec = replace(llama(device_mask="0"), model=ModelSpec(str(model)))
    with pytest.raises(ClientError) as refused:
        LlamaCppEngine(nobody).check(spec)
    assert refused.value.reason is Reason.GPU_REQUIRED
    LlamaCppEngine(nobody).check(replace(spec, device_mask="none"))
    server = tmp_path / "llama-server"
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    LlamaCppEngine(nobody).check(spec)


@pytest.mark.behaviour("LIVE-3")
def test_a_card_that_is_merely_named_is_no_error_of_it() -> None:
    lines = ["ggml_cuda_init: found 3 CUDA devices:", "  Device 0: NVIDIA H200, compute capability 9.0", "bye"]
    assert CommandEngine().diagnose(ExitRecord(exit_code=1), lines) is None

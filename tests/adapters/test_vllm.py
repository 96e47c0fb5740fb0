"""What a pool of vLLM may say, what is checked of it, how it is started and what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from poolmgr.adapters.engines.vllm import VllmEngine
from poolmgr.adapters.engines.vllm_flags import DENIED_FLAGS, DENIED_VARIABLES
from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.engine import EngineFacts, ProbeTarget
from poolmgr.model.memory import MemoryQuestion
from poolmgr.model.pool import EngineName, ModelSpec, PoolSpec, ProbeKind, ProbeSpec, SplitMode, SplitSpec

MODEL = ModelSpec("/models/tiny")
FLAGS = (Path(__file__).parents[1] / "data" / "vllm" / "flags.txt").read_text().split()
EVEN = SplitSpec(SplitMode.EXPLICIT, (1.0, 1.0, 1.0))


async def nobody(*_: object) -> object:
    raise EnvironmentFault(Reason.UNREACHABLE, "nobody there")


def vllm(**fields: object) -> PoolSpec:
    return PoolSpec(EngineName.VLLM, **{"model": MODEL, **fields})  # type: ignore[arg-type]


def refusal(spec: PoolSpec) -> ClientError:
    with pytest.raises(ClientError) as refused:
        VllmEngine(nobody).validate(spec)
    return refused.value


def refused_check(spec: PoolSpec) -> ClientError:
    with pytest.raises(ClientError) as refused:
        VllmEngine(nobody).check(spec)
    return refused.value


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only program on PATH."""
    path = tmp_path / "bin" / "vllm"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "num_attention_heads": 4}')
    return path


# What a spec may say.


@pytest.mark.parametrize(
    "spec",
    [
        vllm(args=("--gpu-memory-utilization", "0.5", "--enforce-eager", "--trust-remote-code"), slots=8),
        vllm(args=("-tp", "2", "--pipeline_parallel_size=2", "--kv-cache-dtype", "fp8")),
        vllm(args=("--port-of-call", "-", "--", "port", "--served-model-name", "host")),
        vllm(model=ModelSpec("/m.gguf", "sha256:" + "a" * 64, 4096, "fp8_e5m2")),
        vllm(split=EVEN, env={"HF_HUB_OFFLINE": "0", "VLLM_HOST_IP": "10.0.0.1"}),
        vllm(split=SplitSpec(SplitMode.EXPLICIT, (0.1 + 0.2, 0.3))),
        vllm(readiness=ProbeSpec(ProbeKind.SYNTHETIC, path="/v1/embeddings", body="{}", expect="embedding")),
    ],
)
def test_a_sound_spec_is_accepted(spec: PoolSpec) -> None:
    VllmEngine(nobody).validate(spec)


@pytest.mark.behaviour("PRE-6")
@pytest.mark.parametrize(
    ("spec", "reason", "numbers"),
    [
        (vllm(model=ModelSpec("org/name")), Reason.INVALID_ARGUMENT, {"path": "org/name"}),
        (vllm(model=ModelSpec("/m", "sha256:0")), Reason.INVALID_ARGUMENT, {"length": 8}),
        (vllm(model=ModelSpec("/m", cache_type="q8_0")), Reason.BAD_ARGUMENTS, {"cache_type": "q8_0"}),
        (
            vllm(model=ModelSpec("/m", context_length=2**31)),
            Reason.BAD_ARGUMENTS,
            {"context": 2**31, "limit": 2**31 - 1},
        ),
        (
            vllm(split=SplitSpec(SplitMode.EXPLICIT, (3.0, 1.0))),
            Reason.BAD_ARGUMENTS,
            {"least": 1.0, "most": 3.0, "devices": 2},
        ),
        (vllm(readiness=ProbeSpec(ProbeKind.NONE)), Reason.INVALID_ARGUMENT, {}),
        (vllm(env={"LD_PRELOAD": "x"}), Reason.INVALID_ARGUMENT, {"name": "LD_PRELOAD"}),
    ],
)
def test_a_spec_that_can_never_run_is_refused_with_its_numbers(
    spec: PoolSpec, reason: Reason, numbers: Mapping[str, object]
) -> None:
    refused = refusal(spec)
    assert (refused.reason, refused.numbers) == (reason, numbers)


@pytest.mark.parametrize("flag", sorted(DENIED_FLAGS))
def test_a_pool_cannot_repeat_or_undo_what_the_daemon_sets(flag: str) -> None:
    for spelled in (
        flag,
        f"{flag}=1",
        flag.replace("-", "_").replace("__", "--", 1) if flag.startswith("--") else flag,
    ):
        refused = refusal(vllm(args=("--enforce-eager", spelled)))
        assert (refused.reason, refused.numbers) == (Reason.BAD_ARGUMENTS, {"flag": flag})


@pytest.mark.parametrize("flag", ["--por", "--hos=0.0.0.0", "--ssl", "--max-model", "--api_k", "--conf"])
def test_a_beginning_of_a_denied_flag_is_denied_for_vllm_would_take_it_for_the_whole(flag: str) -> None:
    assert refusal(vllm(args=(flag, "1"))).reason is Reason.BAD_ARGUMENTS


def test_no_other_flag_of_vllm_is_refused_and_each_denied_one_is_a_flag_of_it() -> None:
    assert set(DENIED_FLAGS) <= set(FLAGS) and len(FLAGS) > 400
    for flag in set(FLAGS) - set(DENIED_FLAGS):
        VllmEngine(nobody).validate(vllm(args=(flag, "1")))


@pytest.mark.parametrize("name", sorted(DENIED_VARIABLES))
def test_what_hides_the_engine_or_opens_it_cannot_be_said_in_the_environment_either(name: str) -> None:
    refused = refusal(vllm(env={name: "0"}))
    assert (refused.reason, refused.numbers) == (Reason.BAD_ARGUMENTS, {"name": name})


@pytest.mark.behaviour("SPLIT-6")
@pytest.mark.parametrize("flag", ["-tp", "--tensor-parallel-size=2", "-pp", "--pipeline_parallel_size"])
def test_what_a_split_says_is_not_said_in_the_arguments_too(flag: str) -> None:
    for split in (SplitSpec(SplitMode.AUTO), EVEN):
        refused = refusal(vllm(args=(flag, "2"), split=split))
        assert refused.reason is Reason.BAD_ARGUMENTS and "is set by split" in refused.message


def test_a_cache_type_is_named_once() -> None:
    both = vllm(model=ModelSpec("/m", cache_type="fp8"), args=("--kv-cache-dtype", "fp8"))
    assert refusal(both).numbers == {"flag": "--kv-cache-dtype"}


# What is checked before a start.


@pytest.mark.behaviour("PRE-1")
@pytest.mark.parametrize("name", ["config.json", "params.json"])
def test_a_folder_with_a_configuration_is_a_model(program: Path, folder: Path, name: str) -> None:
    (folder / "config.json").rename(folder / name)
    VllmEngine(nobody).check(vllm(model=ModelSpec(str(folder))))


@pytest.mark.behaviour("PRE-1", "PRE-6")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "neither config.json nor params.json"),
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ("[" * 200_000, "no JSON"),
        (" " * (16 * 1024 * 1024 + 1), "more than 16777216 bytes"),
    ],
)
def test_a_folder_without_a_readable_configuration_is_none(
    program: Path, folder: Path, text: str | None, says: str
) -> None:
    (folder / "config.json").unlink() if text is None else (folder / "config.json").write_text(text)
    refused = refused_check(vllm(model=ModelSpec(str(folder))))
    assert refused.reason is Reason.MODEL_INVALID and says in refused.message


@pytest.mark.behaviour("PRE-1")
def test_a_model_that_is_not_there_a_file_that_is_none_and_a_folder_with_a_digest_are_refused(
    program: Path, folder: Path
) -> None:
    absent = refused_check(vllm(model=ModelSpec(str(folder / "absent"))))
    assert (absent.reason, absent.numbers["errno"]) == (Reason.MODEL_NOT_FOUND, 2)
    assert refused_check(vllm(model=ModelSpec(str(folder / "config.json")))).reason is Reason.MODEL_INVALID
    digest = refused_check(vllm(model=ModelSpec(str(folder), "sha256:" + "a" * 64)))
    assert digest.reason is Reason.INVALID_ARGUMENT and "a folder" in digest.message


@pytest.mark.behaviour("SPLIT-7", "PRE-6")
@pytest.mark.parametrize(
    "configuration",
    [{"num_attention_heads": 4}, {"text_config": {"num_attention_heads": 4}}, {"n_heads": 4}],
)
def test_heads_that_the_devices_cannot_share_are_refused_before_a_start(
    program: Path, folder: Path, configuration: Mapping[str, object]
) -> None:
    (folder / "config.json").write_text(json.dumps(configuration))
    model = ModelSpec(str(folder))
    refused = refused_check(vllm(model=model, split=EVEN))
    assert (refused.reason, refused.numbers) == (Reason.BAD_ARGUMENTS, {"heads": 4, "devices": 3})
    VllmEngine(nobody).check(vllm(model=model, split=SplitSpec(SplitMode.EXPLICIT, (1.0, 1.0))))
    VllmEngine(nobody).check(vllm(model=model))


@pytest.mark.behaviour("PRE-1", "PRE-6")
def test_without_vllm_on_path_or_where_its_command_says_nothing_is_started(program: Path, folder: Path) -> None:
    model = ModelSpec(str(folder))
    VllmEngine(nobody).check(vllm(model=model, command=str(program)))
    program.unlink()
    for command in ("", str(program), "vllm"):
        assert refused_check(vllm(model=model, command=command)).reason is Reason.EXECUTABLE_NOT_FOUND


# How it is started.


@pytest.mark.behaviour("PROC-1", "SPLIT-6")
def test_vllm_gets_one_element_per_flag_and_value_and_the_context_of_one_slot(program: Path) -> None:
    spec = vllm(model=ModelSpec("/models/a b", "", 4096, "fp8"), slots=3, args=("--enforce-eager",), split=EVEN)
    argv, _ = VllmEngine(nobody).render(spec, 8123)
    assert argv == (
        *(str(program), "serve", "/models/a b", "--host", "127.0.0.1", "--port", "8123", "--max-num-seqs", "3"),
        *("--max-model-len", "4096", "--kv-cache-dtype", "fp8", "--enforce-eager"),
    )


def test_what_a_spec_leaves_open_is_left_to_the_engine(program: Path) -> None:
    argv, _ = VllmEngine(nobody).render(vllm(), 1)
    assert not {"--max-model-len", "--kv-cache-dtype", "--gpu-memory-utilization", "--tensor-parallel-size"} & set(argv)


@pytest.mark.behaviour("PROC-1", "PROC-2")
def test_it_reports_to_nobody_loads_nothing_from_afar_and_has_the_tools_that_lie_beside_it(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the daemon")
    _, env = VllmEngine(nobody).render(vllm(env={"HOME": "/srv", "HF_HUB_OFFLINE": "0"}), 1)
    assert env == {
        "PATH": f"{program.parent}:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": "/srv",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "NO_COLOR": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "",
    }


def test_a_path_of_the_pool_s_own_is_taken_as_it_stands(program: Path) -> None:
    assert VllmEngine(nobody).render(vllm(env={"PATH": "/x"}), 1)[1]["PATH"] == "/x"


@pytest.mark.behaviour("MEM-1")
def test_the_model_s_files_tell_what_it_takes_unless_the_pool_lays_it_out_itself() -> None:
    kind, model = VllmEngine(nobody), ModelSpec("/m", "", 4096, "fp8")
    assert kind.memory(vllm(model=model, slots=2)) == MemoryQuestion("/m", 4096, 2, "fp8", EngineName.VLLM)
    for arg in ("-tp", "--tensor_parallel_size=2", "--cpu-offload-gb", "-q", "--hf-overrides.num_hidden_layers"):
        assert kind.memory(vllm(args=(arg, "2"))) is None


# What it is asked.


@pytest.mark.behaviour("PRE-2", "DRN-2")
def test_it_is_asked_for_health_and_for_one_token() -> None:
    kind, health = VllmEngine(nobody), ProbeTarget("HTTP", "127.0.0.1", 81, path="/health", timeout=2.0)
    assert kind.readiness(vllm(), 81, 2.0) == kind.liveness(vllm(), 81, 2.0) == health
    asked = kind.verification(vllm(), 81, 5.0)
    assert (asked.kind, asked.path, asked.expect, asked.timeout) == ("SYNTHETIC", "/v1/completions", '"choices"', 5.0)
    assert json.loads(asked.body) == {"prompt": "1", "max_tokens": 1, "temperature": 0}


@pytest.mark.behaviour("DRN-2")
def test_a_model_that_generates_nothing_is_verified_by_the_request_that_its_pool_names() -> None:
    own = ProbeSpec(ProbeKind.SYNTHETIC, path="/v1/embeddings", body='{"input": "1"}', expect="embedding", timeout=1.0)
    asked = VllmEngine(nobody).verification(vllm(readiness=own), 81, 5.0)
    assert (asked.path, asked.body, asked.expect, asked.timeout) == (own.path, own.body, own.expect, 5.0)


@pytest.mark.behaviour("PRE-9")
@pytest.mark.parametrize(
    ("version", "models", "facts"),
    [
        (
            {"version": "0.33.0"},
            {"data": [{"id": "name", "root": "/models/tiny", "max_model_len": 512}]},
            EngineFacts("0.33.0", 0, 512, "/models/tiny"),
        ),
        ({"version": "0.33.0"}, None, EngineFacts("0.33.0")),
        (None, {"data": [{"id": "name", "root": None, "max_model_len": None}]}, EngineFacts(model="name")),
        ([], {"data": {}}, EngineFacts()),
        ({"version": 7}, {"data": [7]}, EngineFacts()),
    ],
)
async def test_a_ready_vllm_says_what_it_is_and_nonsense_counts_as_silence(
    version: object, models: object, facts: EngineFacts
) -> None:
    asked: list[object] = []

    async def get_json(*request: object) -> object:
        asked.append(request)
        answer = version if request[2] == "/version" else models
        return answer if answer is not None else await nobody()

    assert await VllmEngine(get_json).describe(vllm(), 81, 2.0) == facts
    assert asked == [("127.0.0.1", 81, path, 1.0) for path in ("/version", "/v1/models")]

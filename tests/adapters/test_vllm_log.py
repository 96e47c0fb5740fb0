"""Why a vLLM died, as the logs in tests/data/logs tell it; where each comes from stands in the README beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolmgr.adapters.engines.vllm import VllmEngine
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.engine import Diagnosis, ExitRecord

LOGS = Path(__file__).parents[1] / "data" / "logs"
FAILED, ENDED = ExitRecord(exit_code=1), ExitRecord(exit_code=0)
NOBODY = "EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause."

pytestmark = pytest.mark.behaviour("LIVE-3", "RST-8")


async def nobody(*_: object) -> object:
    raise EnvironmentFault(Reason.UNREACHABLE, "nobody there")


def recorded(name: str) -> list[str]:
    return (LOGS / f"vllm-{name}.log").read_text().splitlines()


def diagnose(record: ExitRecord, lines: list[str]) -> Diagnosis | None:
    return VllmEngine(nobody).diagnose(record, lines)


@pytest.mark.parametrize(
    ("log", "code", "reason", "permanent", "says"),
    [
        ("bad-flag", 2, "BAD_ARGUMENTS", True, "vllm: error: unrecognized arguments: --no-such-flag"),
        ("bad-value", 2, "BAD_ARGUMENTS", True, "invalid human_readable_int value: 'many'"),
        ("heads", 1, "BAD_ARGUMENTS", True, "Total number of attention heads (4) must be divisible by tensor parallel"),
        ("context-too-long", 1, "BAD_ARGUMENTS", True, "max_model_len (100000) is greater than the derived"),
        ("missing-folder", 1, "MODEL_NOT_FOUND", True, "'/models/absent'"),
        ("no-configuration", 1, "MODEL_INVALID", True, "local directory specified: '/models/noconfig'"),
        ("bad-configuration", 1, "MODEL_INVALID", True, "OSError: It looks like the config file at '/models/badjson"),
        ("unknown-architecture", 1, "MODEL_INVALID", True, "model type `lxxma`"),
        (
            "no-weights",
            1,
            "MODEL_INVALID",
            True,
            "RuntimeError: Cannot find any model weights with `/models/noweights`",
        ),
        ("truncated-weights", 1, "MODEL_INVALID", True, "SafetensorError: Error while deserializing header"),
        ("port-taken", 1, "PORT_TAKEN", False, "OSError: [Errno 98] Address already in use"),
        (
            "memory-taken",
            1,
            "GPU_OOM",
            False,
            "ValueError: Free memory on device cuda:0 (9.0/24.0 GiB) on startup is less",
        ),
        ("no-cache-memory", 1, "GPU_OOM", False, "ValueError: No available memory for the cache blocks"),
        ("context-over-cache", 1, "GPU_OOM", False, "model's max seq len (512)"),
        (
            "profile-out-of-memory",
            1,
            "GPU_OOM",
            False,
            "OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB",
        ),
        ("nccl", 1, "CUDA_ERROR", False, "RuntimeError: NCCL error: unhandled system error"),
        (
            "serving-out-of-memory",
            0,
            "GPU_OOM",
            False,
            "OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB",
        ),
        ("engine-core-killed", 0, "EXIT_CODE", False, NOBODY),
        ("no-gpu", 1, "GPU_REQUIRED", False, "RuntimeError: Failed to infer device type"),
    ],
)
def test_the_log_of_a_dead_vllm_tells_the_cause_of_the_process_that_failed_first(
    log: str, code: int, reason: str, permanent: bool, says: str
) -> None:
    diagnosis = diagnose(ExitRecord(exit_code=code), recorded(log))
    assert diagnosis is not None
    assert (str(diagnosis.reason), diagnosis.permanent) == (reason, permanent)
    assert says in diagnosis.message and "pid=" not in diagnosis.message


def test_a_server_that_ends_well_is_not_explained_whatever_its_log_holds() -> None:
    assert diagnose(ENDED, recorded("stopped")) is None
    assert diagnose(ENDED, recorded("no-cache-memory")) is None  # of an earlier try, say


@pytest.mark.parametrize("record", [ExitRecord(signal=9), ExitRecord(signal=15)])
def test_a_log_explains_no_death_that_somebody_asked_for(record: ExitRecord) -> None:
    assert diagnose(record, recorded("heads")) is None


def test_an_older_death_in_the_same_log_does_not_explain_a_newer_one() -> None:
    begun = recorded("stopped")[:12]
    assert diagnose(FAILED, [*recorded("memory-taken"), *begun]) is None
    newer = diagnose(FAILED, [*recorded("memory-taken"), *recorded("heads")])
    assert newer is not None and newer.reason == "BAD_ARGUMENTS"


def test_an_unknown_exception_is_passed_on_in_the_words_of_the_process_that_failed_first() -> None:
    lines = [
        "(APIServer pid=1) ValidationError: 1 validation error for a request",
        "(EngineCore_DP0 pid=7) ERROR 10-31 15:15:48 [core.py:708] EngineCore failed to start.",
        "(EngineCore_DP0 pid=7) ERROR 10-31 15:15:48 [core.py:708]     raise AssertionError(text)",
        "(EngineCore_DP0 pid=7) ERROR 10-31 15:15:48 [core.py:708] AssertionError: page size 3",
        "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    assert diagnose(FAILED, lines) == Diagnosis("EXIT_CODE", "AssertionError: page size 3", False)
    assert diagnose(FAILED, lines[:1]) == Diagnosis("EXIT_CODE", lines[0].partition(") ")[2], False)
    assert diagnose(FAILED, lines[1:3]) is None
    assert diagnose(ExitRecord(signal=11), lines) is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "ValueError: Total number of attention heads (52) must be divisible by tensor parallel size (8).",
            "BAD_ARGUMENTS",
        ),
        (
            "ValueError: The model's max seq len (4096) is larger than the maximum number of tokens that can be stored "
            "in KV cache (3664). Try increasing `gpu_memory_utilization`",
            "GPU_OOM",
        ),
        (
            "(Worker_TP1 pid=9) ERROR 03-02 19:49:43 [x.py:1] torch.AcceleratorError: CUDA error: an illegal",
            "CUDA_ERROR",
        ),
        ("\x1b[1;36m(Worker pid=9)\x1b[0;0m RuntimeError: CUDA driver error: out of memory", "GPU_OOM"),
        (
            "[rank0]: RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
            "HOST_OOM",
        ),
        ("vllm serve: error: argument --dtype: invalid choice: 'float99'", "BAD_ARGUMENTS"),
        ("api_server.py: error: unrecognized arguments: --x", "BAD_ARGUMENTS"),
    ],
)
def test_words_of_other_versions_and_processes_are_known_too(line: str, reason: str) -> None:
    diagnosis = diagnose(FAILED, ["INFO 01-11 15:51:02 api_server.py:400] vLLM API server version 0.5.4", line])
    assert diagnosis is not None and str(diagnosis.reason) == reason


@pytest.mark.parametrize(
    "line",
    [
        "WARNING 08-21 03:42:51 [parallel.py:750] Address already in use. Retrying with a new port.",
        '    raise ValueError("No available memory for the cache blocks. "',
        '                      "Try increasing `gpu_memory_utilization` when "',
        "WARNING Found ulimit of 20000. This can cause fd limit errors like `OSError: [Errno 24] Too many open files`",
        "Failed to import from vllm._C: ModuleNotFoundError(\"No module named 'vllm._C'\")",
    ],
)
def test_a_line_that_only_looks_like_a_cause_is_none(line: str) -> None:
    assert diagnose(FAILED, [line]) is None

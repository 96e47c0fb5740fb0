"""The gates on a model file."""

import hashlib
import os
import struct
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path

import pytest

from poolmgr.adapters.engines import modelfile
from poolmgr.adapters.engines.modelfile import ModelFiles
from poolmgr.errors import ClientError, EnvironmentFault, Reason

pytestmark = pytest.mark.behaviour("PRE-1", "PRE-6")


def header(magic: bytes = b"GGUF", version: int = 3, tensors: int = 1, metadata: int = 1) -> bytes:
    return struct.pack("<4sIQQ", magic, version, tensors, metadata)


GOOD = header() + bytes(200)


def written(path: Path, content: bytes = GOOD) -> Path:
    path.write_bytes(content)
    return path


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def refusal(path: Path, expected: str = "") -> ClientError:
    with pytest.raises(ClientError) as refused:
        ModelFiles().check(str(path), expected)
    return refused.value


@pytest.mark.parametrize("version", [2, 3])
def test_a_gguf_file_of_a_known_version_passes(tmp_path: Path, version: int) -> None:
    ModelFiles().check(str(written(tmp_path / "m", header(version=version) + bytes(100))), "")


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b"", ("minimum", 24)),
        (b"GGUF", ("minimum", 24)),
        (header(b"GGML") + bytes(200), ("size", 224)),
        (header(version=1) + bytes(200), ("version", 1)),
        (header(version=4) + bytes(200), ("version", 4)),
        (header(tensors=2**60) + bytes(200), ("tensors", 2**60)),
        (header(metadata=2**60) + bytes(200), ("metadata", 2**60)),
        (header(metadata=0) + bytes(200), ("metadata", 0)),
        (header(tensors=6) + bytes(200), ("minimum", 24 + 6 * 33 + 14)),
    ],
)
def test_a_file_that_is_no_whole_gguf_model_is_refused_with_its_size(
    tmp_path: Path, content: bytes, number: tuple[str, int]
) -> None:
    refused = refusal(written(tmp_path / "m", content))
    assert refused.reason is Reason.MODEL_INVALID
    assert refused.numbers["size"] == len(content)
    assert refused.numbers[number[0]] == number[1]


def test_a_model_that_is_absent_is_named(tmp_path: Path) -> None:
    refused = refusal(tmp_path / "absent.gguf")
    assert refused.reason is Reason.MODEL_NOT_FOUND
    assert "absent.gguf: No such file or directory" in refused.message


def test_a_folder_or_a_pipe_is_no_model_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe").reason is Reason.MODEL_INVALID
    assert refusal(tmp_path).reason is Reason.MODEL_INVALID


def test_the_digest_is_compared_when_one_is_given(tmp_path: Path) -> None:
    path = written(tmp_path / "m")
    ModelFiles().check(str(path), digest(GOOD))
    ModelFiles().check(str(path), digest(GOOD).upper().replace("SHA256", "sha256"))
    refused = refusal(path, digest(b"other"))
    assert refused.reason is Reason.MODEL_DIGEST_MISMATCH
    assert refused.numbers == {
        "path": str(path),
        "expected": digest(b"other"),
        "actual": digest(GOOD),
        "size": len(GOOD),
    }


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read to be digested, in order."""
    read: list[str] = []
    real = modelfile._sha256

    def spy(path: str, file: BufferedReader, stopped: Callable[[], bool]) -> str:
        read.append(path)
        return real(path, file, stopped)

    monkeypatch.setattr(modelfile, "_sha256", spy)
    return read


def test_a_file_is_read_once_and_again_when_it_changed(tmp_path: Path, hashed: list[str]) -> None:
    files, path = ModelFiles(), written(tmp_path / "m")
    for _ in range(3):
        files.check(str(path), digest(GOOD))
    assert len(hashed) == 1
    changed = header() + b"\1" * 200
    status = path.stat()
    os.utime(written(path, changed), ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    files.check(str(path), digest(changed))
    assert len(hashed) == 2


def test_only_the_digests_of_the_last_64_files_are_kept(tmp_path: Path, hashed: list[str]) -> None:
    files = ModelFiles()
    paths = [str(written(tmp_path / str(number))) for number in range(65)]
    for path in paths:
        files.check(path, digest(GOOD))
    files.check(paths[1], digest(GOOD))
    assert len(hashed) == 65
    files.check(paths[0], digest(GOOD))
    assert len(hashed) == 66


def test_a_digest_is_given_up_at_the_next_chunk_and_not_remembered(tmp_path: Path) -> None:
    content = GOOD + bytes(3 * modelfile.CHUNK_BYTES)
    path = written(tmp_path / "m", content)
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) == 2

    files = ModelFiles(stopped)
    with pytest.raises(EnvironmentFault) as given_up:
        files.check(str(path), digest(content))
    assert given_up.value.reason is Reason.SHUTTING_DOWN
    assert len(asked) == 2
    files.check(str(path), digest(content))
    assert len(asked) == 2 + 4

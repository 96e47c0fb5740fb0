"""Is it a model? The gates on a GGUF file before an engine is started on it (PRE-1)."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
from collections.abc import Callable
from io import BufferedReader
from threading import Lock

from poolmgr.adapters.engines.common import refuse
from poolmgr.errors import ClientError, EnvironmentFault, Reason
from poolmgr.model.pool import ModelSpec

# The GGUF specification (ggml/docs/gguf.md): magic, version, tensor count, metadata count, all little-endian.
HEADER = struct.Struct("<4sIQQ")
MAGIC = b"GGUF"
VERSIONS = (2, 3)
# The shortest tensor entry: name length 8, one byte of name, dimensions 4, one of them 8, type 4, offset 8. The
# shortest key and value: key length 8, one byte of key, type 4, a one-byte value.
MIN_TENSOR_BYTES = 33
MIN_METADATA_BYTES = 14
DIGEST_PREFIX = "sha256:"
DIGEST = re.compile(r"sha256:[0-9a-fA-F]{64}\Z")
CACHED_DIGESTS = 64
CHUNK_BYTES = 4 * 1024 * 1024  # some milliseconds of reading and hashing

FileKey = tuple[str, int, int, int]


def validate_reference(model: ModelSpec) -> None:
    """Raises ClientError(INVALID_ARGUMENT) for a path or digest that is none, without looking at the host."""
    if not os.path.isabs(model.path) or "\0" in model.path:
        raise refuse(Reason.INVALID_ARGUMENT, f"model.path {model.path!r} is not an absolute path", path=model.path)
    if model.digest and not DIGEST.match(model.digest):
        message = f"model.digest {model.digest!r} is not sha256: and 64 hex digits"
        raise refuse(Reason.INVALID_ARGUMENT, message, length=len(model.digest))


class ModelFiles:
    """Checks model files, and remembers the digests of the last 64 by path, size, mtime and inode.

    Blocking: a digest reads the whole file, minutes for a large model, unless `stopped` says to give up. May be called
    from several threads.
    """

    def __init__(self, stopped: Callable[[], bool] = lambda: False) -> None:
        self._stopped = stopped
        self._digests: dict[FileKey, str] = {}
        self._lock = Lock()

    def check(self, path: str, digest: str) -> None:
        """ClientError MODEL_NOT_FOUND, MODEL_INVALID or MODEL_DIGEST_MISMATCH; an empty `digest` is not compared.

        EnvironmentFault SHUTTING_DOWN when it was stopped in the middle.
        """
        # Looked at before it is opened: opening a FIFO would wait for its writer.
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise refuse(Reason.MODEL_INVALID, f"{path} is not a regular file", path=path)
            with open(path, "rb") as file:
                _check_header(path, file)
                if digest:
                    self._check_digest(path, file, digest)
        except OSError as error:
            message = f"{path}: {error.strerror or error}"
            raise refuse(Reason.MODEL_NOT_FOUND, message, path=path, errno=error.errno or 0) from error

    def _check_digest(self, path: str, file: BufferedReader, digest: str) -> None:
        before = _key(path, file)
        with self._lock:
            actual = self._digests.get(before)
        if actual is None:
            file.seek(0)
            actual = DIGEST_PREFIX + _sha256(path, file, self._stopped)
            if _key(path, file) == before:
                self._remember(before, actual)
        if actual != digest.lower():
            raise refuse(
                Reason.MODEL_DIGEST_MISMATCH,
                f"{path} has digest {actual}, not {digest}",
                path=path,
                expected=digest,
                actual=actual,
                size=before[1],
            )

    def _remember(self, key: FileKey, digest: str) -> None:
        with self._lock:
            self._digests[key] = digest
            while len(self._digests) > CACHED_DIGESTS:
                del self._digests[next(iter(self._digests))]


def _sha256(path: str, file: BufferedReader, stopped: Callable[[], bool]) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
    while count := file.readinto(buffer):
        if stopped():
            raise EnvironmentFault(Reason.SHUTTING_DOWN, f"{path}: its digest was not finished, the daemon is stopping")
        digest.update(buffer[:count])
    return digest.hexdigest()


def _key(path: str, file: BufferedReader) -> FileKey:
    status = os.fstat(file.fileno())
    return path, status.st_size, status.st_mtime_ns, status.st_ino


def _check_header(path: str, file: BufferedReader) -> None:
    size = os.fstat(file.fileno()).st_size
    head = file.read(HEADER.size)

    def invalid(why: str, **numbers: int) -> ClientError:
        return refuse(Reason.MODEL_INVALID, f"{path} {why}", path=path, size=size, **numbers)

    if len(head) < HEADER.size:
        raise invalid(f"of {size} bytes is shorter than a GGUF header of {HEADER.size}", minimum=HEADER.size)
    magic, version, tensors, metadata = HEADER.unpack(head)
    if magic != MAGIC:
        raise invalid(f"is no GGUF file: it begins with {magic!r}")
    if version not in VERSIONS:
        raise invalid(f"has GGUF version {version}, supported are 2 and 3", version=version)
    needed = HEADER.size + tensors * MIN_TENSOR_BYTES + metadata * MIN_METADATA_BYTES
    if metadata == 0 or needed > size:
        why = f"of {size} bytes cannot hold its {tensors} tensors and {metadata} metadata entries"
        raise invalid(why, tensors=tensors, metadata=metadata, minimum=needed)

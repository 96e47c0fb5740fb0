"""What is remembered of devices, and of what engines took of them: files of the state directory, written whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from poolmgr.errors import EnvironmentFault, Reason

NAME: Final = "devices"
MAX_BYTES: Final = 1024 * 1024


class FileDeviceMemory:
    """The port `DeviceMemory`: temp file, fsync, rename, fsync of the directory."""

    def __init__(self, directory: Path, name: str = NAME) -> None:
        self._path = directory / name

    def load(self) -> str:
        try:
            with self._path.open("rb") as file:
                return file.read(MAX_BYTES).decode(errors="replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise EnvironmentFault(Reason.STATE_DIR, f"cannot read {self._path}: {error.strerror}") from error

    def save(self, text: str) -> None:
        try:
            self._write(text.encode())
        except OSError as error:
            message = f"cannot write {self._path}: {error.strerror}"
            numbers = {"errno": errno.errorcode.get(error.errno or 0, "?")}
            raise EnvironmentFault(Reason.STORE_UNAVAILABLE, message, numbers=numbers) from error

    def _write(self, data: bytes) -> None:
        new = self._path.with_suffix(".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(new, self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

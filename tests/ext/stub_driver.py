"""A driver library whose every answer a test sets (stub_nvml.c), compiled once for a run of the tests."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

from poolmgr_ext.nvml import Library

ROOT = Path(__file__).resolve().parents[2]
NOT_SUPPORTED, GPU_IS_LOST, TIMEOUT, UNKNOWN = 3, 15, 10, 999
DEVICES = 72


def compiled(into: Path, *flags: str) -> Path:
    library = into / "libstub.so"
    options = [
        "-O1",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused-variable",
        "-I",
        str(ROOT / "ext/include"),
    ]
    subprocess.run(["gcc", *options, *flags, "-o", library, ROOT / "tests/ext/stub_nvml.c"], check=True)
    return library


class Stub:
    """What the library of this path answers. Each copy of the file is a driver of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        names = ctypes.c_char_p(ctypes.addressof(ctypes.c_char.in_dll(self._library, "stub_names")))
        assert names.value is not None
        self._calls = names.value.decode().split()

    def number(self, name: str, value: int) -> None:
        ctypes.c_int.in_dll(self._library, f"stub_{name}").value = value

    def code(self, call: str, device: int, code: int) -> None:
        """Which code the call returns; 0: it tells its value."""
        table = (ctypes.c_int * DEVICES * 64).in_dll(self._library, "stub_code")
        table[self._calls.index(call)][device] = code

    def every_code(self, device: int, code: int) -> None:
        for call in self._calls:
            self.code(call, device, code)

    def value(self, call: str, device: int, value: int) -> None:
        table = (ctypes.c_ulonglong * DEVICES * 64).in_dll(self._library, "stub_value")
        table[self._calls.index(call)][device] = value

    def calls(self, call: str, device: int) -> int:
        table = (ctypes.c_ulonglong * DEVICES * 64).in_dll(self._library, "stub_calls")
        return int(table[self._calls.index(call)][device])

    def processes(self, pids: list[int]) -> None:
        (ctypes.c_uint * 4096).in_dll(self._library, "stub_process_pids")[: len(pids)] = pids
        ctypes.c_uint.in_dll(self._library, "stub_process_count").value = len(pids)

    def library(self, devices: int = 2) -> Library:
        """Opened, and discovered once."""
        self.number("devices", devices)
        library = Library(self.path)
        library.discover()
        return library

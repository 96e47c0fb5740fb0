"""System calls of running processes, by strace. Tracing is not free: what is traced is not timed."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ATTACH_SECONDS = 5.0


@contextmanager
def traced(pids: Sequence[int], calls: Sequence[str], log: Path, *options: str) -> Iterator[bool]:
    """All threads of the processes, line by line into `log`, which is whole at the end; False: not possible here."""
    if shutil.which("strace") is None:
        yield False
        return
    command = ["strace", "-f", "-ttt", "-e", f"trace={','.join(calls)}", "-o", str(log), *options]
    command += [word for pid in pids for word in ("-p", str(pid))]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield _attached(process, pids[0])
    finally:
        process.terminate()
        process.wait()


def _attached(process: subprocess.Popen[bytes], pid: int) -> bool:
    deadline = time.monotonic() + ATTACH_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        tracer = re.search(r"TracerPid:\t(\d+)", Path(f"/proc/{pid}/status").read_text())
        if tracer is not None and int(tracer[1]):
            time.sleep(0.2)  # the other processes, and all threads
            return process.poll() is None
        time.sleep(0.01)
    return False

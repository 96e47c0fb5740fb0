"""Runs tests against one faulty copy of the tree after the other.

Each trial is a fork of a process that has imported what the tests need but nothing of the product, so that it costs
the import of the product and the tests themselves. A trial has a limit of processor time, which load does not shorten.
"""

from __future__ import annotations

import os
import resource
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatch
from pathlib import Path

from tests.mutants.mutations import Mutation, mutated

COPIED = ("poolmgr", "tests/__init__.py", "tests/conftest.py", "tests/core", "tests/data", "tests/runtime", "docs",
          "scripts", "pyproject.toml", "README.md")  # fmt: skip
PRELOADED = ("pytest", "pytest_asyncio", "pytest_timeout", "hypothesis.stateful", "pydantic", "asyncio", "h11")
WALL_FACTOR = 6  # of the limit of processor time: nothing waits, but the machine may be busy with others
MARK = 1_000_000_000  # a time of modification that no cached bytecode was compiled at


class Verdict(StrEnum):
    KILLED = "killed"
    SURVIVED = "survived"
    TIMEOUT = "timeout"


class TrialError(Exception):
    """The tests could not be run."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Tests that are run together: those of `tests` but `deselected`, and only those whose name is `matching`.

    `cpu_seconds`: after which a trial has run into a time-out. `about`: modules, as patterns of their names, whose
    faults these tests are tried on before any others are.
    """

    tests: tuple[str, ...]
    deselected: tuple[str, ...] = ()
    matching: str = ""
    cpu_seconds: int = 30
    about: tuple[str, ...] = ()

    def is_about(self, path: str) -> bool:
        return any(fnmatch(Path(path).stem, pattern) for pattern in self.about)


def copy_tree(root: Path, target: Path) -> Path:
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        elif (root / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, target / name)
    return target


def preload() -> None:
    for name in PRELOADED:
        __import__(name)
    if any(name == "poolmgr" or name.startswith("poolmgr.") for name in sys.modules):
        raise TrialError("the product was imported before it was mutated")


def try_mutation(tree: Path, mutation: Mutation, tiers: Sequence[Tier]) -> tuple[Verdict, str]:
    """The verdict of the first tier that says anything but SURVIVED, and which test said so.

    Those that are about the module come first, otherwise they are tried in their order.
    """
    path = tree / mutation.path
    source, times = path.read_text(), path.stat()
    try:
        path.write_text(mutated(mutation, source))
        os.utime(path, (MARK, MARK))
        for tier in sorted(tiers, key=lambda tier: not tier.is_about(mutation.path)):
            verdict, by = run(tree, tier)
            if verdict is not Verdict.SURVIVED:
                return verdict, by
    finally:
        path.write_text(source)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return Verdict.SURVIVED, ""


def run(tree: Path, tier: Tier, *, keep_bytecode: bool = False) -> tuple[Verdict, str]:
    """Raises TrialError for tests that cannot be run at all."""
    said = tree / "said.txt"
    pid = os.fork()
    if pid == 0:
        _child(tree, tier, said, keep_bytecode)
    status = _wait(pid, tier.cpu_seconds * WALL_FACTOR)
    text = said.read_text(errors="replace")
    if status is None or os.WIFSIGNALED(status):
        ended = signal.Signals(os.WTERMSIG(status)).name if status is not None else "wall clock"
        return Verdict.TIMEOUT, ended
    code = os.waitstatus_to_exitcode(status)
    if code in (1, 2):  # tests failed; or could not even be collected
        return Verdict.KILLED, _killer(text)
    if code in (0, 5):  # all passed; or there was none
        return Verdict.SURVIVED, ""
    raise TrialError(f"pytest ended with {code}:\n{text[-3000:]}")


def _killer(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return lines[0].split(" - ")[0].partition("::")[2] or lines[0] if lines else "collection"


def _child(tree: Path, tier: Tier, said: Path, keep_bytecode: bool) -> None:
    """Never returns."""
    code = 3
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (tier.cpu_seconds, tier.cpu_seconds + 1))
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(tree)
        sys.dont_write_bytecode = not keep_bytecode
        sys.path[:] = [str(tree), *(p for p in sys.path if p not in ("", os.getcwd()))]
        for name in [n for n in sys.modules if n == "tests" or n.startswith("tests.")]:
            del sys.modules[name]
        code = _pytest(tier)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)


def _pytest(tier: Tier) -> int:
    import pytest
    from hypothesis.internal.conjecture import engine

    engine.MAX_SHRINKING_SECONDS = 0  # that it fails is enough
    if not tier.tests:
        return int(pytest.ExitCode.NO_TESTS_COLLECTED)
    quiet = ["-q", "--no-header", "--tb=no", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    arguments = ["-x", *quiet, "-p", "no:cacheprovider", "-p", "no:xdist", f"-k={tier.matching}"]
    return int(pytest.main([*arguments, *(f"--deselect={t}" for t in tier.deselected), *tier.tests]))


def _wait(pid: int, seconds: float) -> int | None:
    """The status of the child; None when it had to be killed."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(seconds * 1000):
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        return os.waitpid(pid, 0)[1]
    finally:
        os.close(pidfd)

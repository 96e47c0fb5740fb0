"""Runs a campaign in namespaces of its own, and brings back what it showed."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.chaos import init
from tests.chaos.history import Violation
from tests.chaos.rig import ROOT
from tests.chaos.verdict import Figures

# A pid namespace needs a first process that reaps orphans, and a /proc of its own.
PIDS = ("unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-I", "-S", str(Path(init.__file__)))
MOUNTS = ("unshare", "--mount", "--propagation", "private")


def run_apart(launcher: Sequence[str], arguments: Sequence[str]) -> Figures:
    """``python -m tests.chaos <arguments>`` behind the launcher. An end without figures is a violation."""
    with tempfile.TemporaryDirectory(prefix="poolmgr-chaos-figures-") as directory:
        file = Path(directory) / "figures"
        argv = [*launcher, sys.executable, "-m", "tests.chaos", *arguments, "--figures", str(file)]
        ended = subprocess.run(argv, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        if not file.exists():
            text = f"evidence is missing: {' '.join(argv)} ended with {ended.returncode} and no figures"
            return Figures(violations=[("apart", Violation("PROC-7", 0, text))])
        figures = pickle.loads(file.read_bytes())
        assert isinstance(figures, Figures)
        return figures

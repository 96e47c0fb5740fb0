"""Chaos on a copy of the tree into which a bug was planted: it has to go red."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.rig import ROOT

COPIED = ("poolmgr", "ext", "tests")
PATCHES = ROOT / "tests" / "planted"


def run_with(bug: str, arguments: Sequence[str]) -> int:
    """`bug`: the name of one of ours, or a patch file.

    The exit status of ``python -m tests.chaos <arguments>`` there; 2: no such bug, or it does not fit."""
    patch = Path(bug).resolve() if bug.endswith(".patch") else PATCHES / f"{bug}.patch"
    if not patch.is_file():
        print(f"there is no {patch}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="poolmgr-chaos-bug-") as directory:
        tree = Path(directory)
        for name in COPIED:
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        applied = subprocess.run(["patch", "-p1", "-s", "-i", str(patch)], cwd=tree, check=False)
        if applied.returncode != 0:
            print(f"{patch} does not fit this tree", file=sys.stderr)
            return 2
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "ext")])}
        argv = [sys.executable, "-m", "tests.chaos", *arguments]
        return subprocess.run(argv, cwd=tree, env=environment, check=False).returncode

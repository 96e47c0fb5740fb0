"""Copies of the tree, with a bug in them or without."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
COPIED = ("poolmgr", "tests/__init__.py", "tests/sim", "tests/planted")


class DoesNotFitError(Exception):
    """A patch that the tree has outgrown."""


def copy_tree(source: Path, target: Path) -> Path:
    """What the simulator needs of `source`, and no bytecode of it."""
    for name in COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target / name)
    return target


def apply(patch: Path, tree: Path, *, dry_run: bool = False) -> None:
    """Raises DoesNotFitError, and leaves a `dry_run` tree as it is. An empty patch changes nothing."""
    if not patch.read_text().strip():
        return
    how = ["--dry-run"] if dry_run else ["--no-backup-if-mismatch", "--reject-file=-"]
    argv = ["patch", "--strip=1", "--batch", "--forward", "--silent", *how, f"--input={patch}"]
    done = subprocess.run(argv, cwd=tree, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise DoesNotFitError(f"{patch.name}: {done.stdout.strip()} {done.stderr.strip()}".strip())

"""The checked-in code is what the pinned generators make of the protos, byte by byte."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
WRITTEN_BY_HAND = {"__init__.py"}


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix in (".py", ".pyi")}


def generated(checkout: Path, to: Path) -> dict[str, bytes]:
    to.mkdir()
    script = [checkout / "scripts/generate.sh", to]
    subprocess.run(script, check=True, capture_output=True, env={**os.environ, "PYTHON": sys.executable})
    return files(to / "poolmgr/v1")


def committed(checkout: Path) -> dict[str, bytes]:
    return {name: text for name, text in files(checkout / "poolmgr/v1").items() if name not in WRITTEN_BY_HAND}


def test_the_generated_code_is_up_to_date(tmp_path):
    new, old = generated(ROOT, tmp_path / "out"), committed(ROOT)
    assert set(new) == set(old)
    assert [name for name in new if new[name] != old[name]] == []


def test_an_edited_proto_makes_the_generated_code_stale(tmp_path):
    checkout = tmp_path / "checkout"
    for name in ("proto", "scripts", "poolmgr/v1"):
        shutil.copytree(ROOT / name, checkout / name)
    proto = checkout / "proto/poolmgr/v1/lease.proto"
    proto.write_text(proto.read_text().replace("string holder = 4;", "string keeper = 4;"))
    new, old = generated(checkout, tmp_path / "out"), committed(checkout)
    assert sorted(name for name in new if new[name] != old[name]) == ["lease_pb2.py", "lease_pb2.pyi"]

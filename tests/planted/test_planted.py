"""The planted bugs fit the code that they are planted in, and what looks for them is not satisfied by nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.planted import __main__ as command
from tests.planted.campaign import Stretch, parts, stretches
from tests.planted.manifest import HERE, for_the_simulator, load
from tests.planted.trees import ROOT, DoesNotFitError, apply, copy_tree

BUGS = load()
PLANTED = [bug for bug in BUGS if not bug.not_planted]
MIN_FOR_THE_SIMULATOR = 20
CHANGED = re.compile(r"^\+\+\+ b/(\S+)$", re.MULTILINE)


def nothing_planted(directory: Path) -> Path:
    """A manifest of one bug whose patch changes nothing."""
    manifest = directory / "planted.toml"
    manifest.write_text(
        '[[bug]]\nname = "none"\nbehaviour = "PROC-3"\nbreaks = "Nothing."\nfile = "poolmgr/core/pool.py"\n'
        'found_by = "sim"\n'
    )
    (directory / "none.patch").write_text("")
    return manifest


def test_every_bug_of_the_manifest_has_a_patch_or_says_why_not_and_there_is_no_other_patch():
    assert {bug.patch for bug in PLANTED} == set(HERE.glob("*.patch"))
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    assert all(len(bug.not_planted) > 20 for bug in BUGS if bug not in PLANTED)
    assert len(for_the_simulator(BUGS)) >= MIN_FOR_THE_SIMULATOR
    assert {bug.found_by for bug in BUGS} == {"sim", "chaos"}


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.name)
def test_a_patch_fits_the_code_as_it_is_changes_its_one_file_and_leaves_python(bug, tmp_path):
    patch = bug.patch.read_text()
    assert CHANGED.findall(patch) == [bug.file]
    apply(bug.patch, ROOT, dry_run=True)
    target = tmp_path / bug.file
    target.parent.mkdir(parents=True)
    target.write_bytes((ROOT / bug.file).read_bytes())
    apply(bug.patch, tmp_path)
    assert target.read_bytes() != (ROOT / bug.file).read_bytes()
    compile(target.read_text(), bug.file, "exec")


def test_a_patch_that_the_code_has_outgrown_is_refused(tmp_path):
    patch = tmp_path / "old.patch"
    patch.write_text("--- a/f.py\n+++ b/f.py\n@@ -1,2 +1,2 @@\n a = 1\n-b = 2\n+b = 3\n")
    (tmp_path / "f.py").write_text("a = 1\nb = 22\n")
    with pytest.raises(DoesNotFitError, match=r"old\.patch"):
        apply(patch, tmp_path, dry_run=True)


def test_a_bug_that_changes_nothing_is_missed_and_a_real_one_beside_it_is_found(tmp_path, capsys):
    assert command.main(["--manifest", str(nothing_planted(tmp_path)), "--seeds", "2", "--points-every", "0"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert '"found": 0' in last and '"missed": ["none"]' in last and '"share": 0.0' in last
    command.main(["--only", "one-slot-too-many", "--seeds", "5", "--points-every", "0"])
    assert '"missed": []' in capsys.readouterr().out.splitlines()[-1]


def test_a_clean_tree_that_breaks_a_rule_is_told(tmp_path, monkeypatch, capsys):
    bug = next(bug for bug in PLANTED if bug.name == "one-slot-too-many")
    broken = copy_tree(ROOT, tmp_path / "broken")
    apply(bug.patch, broken)
    monkeypatch.setattr(command, "ROOT", broken)
    manifest = str(nothing_planted(tmp_path))
    assert command.main(["--manifest", manifest, "--seeds", "2", "--points-every", "0"]) == 1
    told = capsys.readouterr().out
    assert "LEASE-1 in 0" in told and '"clean_violations": 0' not in told and '"missed": ["none"]' in told


def test_the_clean_tree_has_the_same_runs_as_the_bugs():
    for stretch in stretches(1_500):
        whole = parts(stretch, 1)
        shared = parts(stretch, 3)
        if stretch.kind == "seeds":
            assert [n for part in shared for n in range(part.first, part.stop)] == list(
                range(stretch.first, stretch.stop)
            )
        elif stretch.kind == "points":
            taken = sorted(n for part in shared for n in range(900)[part.first :: part.stop])
            assert taken == list(range(900)[whole[0].first :: whole[0].stop])
    assert list(stretches(50, 0)) == [Stretch("seeds", 0, 50), Stretch("scenarios", 0, 1)]

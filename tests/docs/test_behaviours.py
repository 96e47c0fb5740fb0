"""docs/behaviours.md is true, and what makes sure of that can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import list_behaviours

TABLE = """
[RST-1]
sentence = "It starts again."
[RST-2]
sentence = "It stops starting."
part = "Half of it."
"""
TEST = """
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.behaviour("RST-1")]


class TestBreaker:
    @pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.behaviour("RST-2"))])
    def test_it_opens(self, n): ...


@pytest.mark.behaviour({extra})
async def test_it_starts(): ...
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small project that keeps the rules."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "docs/behaviours.toml").write_text(TABLE)
    write_test(tmp_path, '"RST-1"')
    assert list_behaviours.main(["--root", str(tmp_path)]) == 0
    return tmp_path


def write_test(root: Path, extra: str) -> None:
    (root / "tests/test_rst.py").write_text(TEST.replace("{extra}", extra))


def check(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What --check says when it fails."""
    assert list_behaviours.main(["--check", "--root", str(root)]) == 1
    return capsys.readouterr().err


def test_every_claimed_behaviour_has_a_test_and_the_page_says_which(capsys):
    assert list_behaviours.main(["--check"]) == 0, capsys.readouterr().err


def test_the_page_has_each_sentence_with_its_tests(root):
    assert list_behaviours.main(["--check", "--root", str(root)]) == 0
    page = (root / "docs/behaviours.md").read_text()
    first, second = page.split("## RST-2")
    both = ["- `tests/test_rst.py::TestBreaker::test_it_opens`", "- `tests/test_rst.py::test_it_starts`"]
    assert "It starts again." in first and [line for line in first.splitlines() if line.startswith("- ")] == both
    assert "It stops starting." in second and "*In part.* Half of it." in second
    assert [line for line in second.splitlines() if line.startswith("- ")] == both[:1]


def test_a_claim_without_a_test_fails_the_check(root, capsys):
    with (root / "docs/behaviours.toml").open("a") as table:
        table.write('[RST-4]\nsentence = "Nobody shows this."\n')
    assert "RST-4 is claimed and no test shows it" in check(root, capsys)


def test_a_marker_that_names_no_claim_fails_the_check(root, capsys):
    write_test(root, '"RST-1", "RST-11"')
    assert "RST-11 is no behaviour of docs/behaviours.toml; tests/test_rst.py::test_it_starts" in check(root, capsys)


def test_a_stale_page_fails_the_check(root, capsys):
    write_test(root, '"RST-2"')
    assert check(root, capsys) == "docs/behaviours.md is stale; `make docs` writes it\n"


@pytest.mark.parametrize(("old", "new"), [('"RST-1")\nasync', "ID)\nasync"), ("test_it_starts", "it_starts")])
def test_a_marker_that_cannot_be_read_or_marks_no_test_is_an_error(root, old, new):
    path = root / "tests/test_rst.py"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=r"malformed node|is no test"):
        list_behaviours.main(["--check", "--root", str(root)])

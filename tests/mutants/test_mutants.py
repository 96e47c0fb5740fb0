"""Faults are put where they count, each is tried on its own, and tests that look at nothing kill none."""

from __future__ import annotations

import json
from fnmatch import fnmatch

import pytest

from tests.mutants import __main__ as command
from tests.mutants.campaign import Trial, trials
from tests.mutants.mutations import LEFT_OUT, Mutation, difference, left_out, mutated, mutations, sample
from tests.mutants.trials import Tier, TrialError, Verdict, preload

CODE = "limit.py"
SOURCE = '''"""Text."""

from __future__ import annotations


def full(used: int | None, limit: int = 3) -> bool | None:
    if used is None:
        return None
    check(used)
    return used >= limit
'''


def a_tree(tmp_path, tests: str):
    """A project of one function, with its tests."""
    root = tmp_path / "root"
    (root / "poolmgr/core").mkdir(parents=True)
    (root / "tests/core").mkdir(parents=True)
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    for package in ("tests", "poolmgr", "poolmgr/core"):
        (root / package / "__init__.py").write_text("")
    (root / "poolmgr/core" / CODE).write_text("def full(used, limit=3):\n    return used >= limit\n")
    (root / "tests/core/test_limit.py").write_text(tests)
    return root


def tried(root, tmp_path, tier: Tier) -> list[Trial]:
    path = f"poolmgr/core/{CODE}"
    chosen = mutations(path, (root / path).read_text())
    return list(trials(root, chosen, [tier], 1, tmp_path / "trees"))


LOOKS_CLOSELY = """
from poolmgr.core.limit import full
def test_full():
    assert [full(n) for n in range(6)] == [False] * 3 + [True] * 3
"""


def test_every_mutation_is_a_change_of_its_own_line_that_is_still_python():
    found = mutations(CODE, SOURCE)
    assert {m.operator for m in found} >= {"NumberReplacer", "RemoveStatement", "AddNot"}
    texts = [mutated(m, SOURCE) for m in found]
    assert len(set(texts)) == len(texts)
    for mutation, text in zip(found, texts, strict=True):
        compile(text, CODE, "exec")
        assert text != SOURCE and mutation.line in (6, 7, 9, 10), mutation


def test_types_that_nothing_evaluates_are_left_alone():
    assert all((m.line, m.column) >= (6, 40) for m in mutations(CODE, SOURCE) if "BinaryOperator" in m.operator)
    assert not mutations(CODE, "def f(a: int | None) -> int | None:\n    b: int | None = a\n    return b\n")


LEAVES_OUT = {
    "@dataclass(frozen=True, slots=True)\nclass A:\n    pass\n": ("slots of a frozen dataclass", "slots=False"),
    "def f(a):\n    return a is S.READY\n": ("is or == with an enum's member", "a == S.READY"),
    "def f(a):\n    return a is not S.READY\n": ("is or == with an enum's member", "a != S.READY"),
    "Both = One | Other\n": ("a union of types, which fails at the import", "One + Other"),
    "match a:\n    case One() | Other():\n        pass\n": (
        "alternatives of a pattern, which have no other operator",
        "One() + Other()",
    ),
    "def f(a: One | Other): ...\n": ("a type that nothing evaluates", "One + Other"),
}


@pytest.mark.parametrize("source", LEAVES_OUT)
def test_what_cannot_be_told_is_left_out_and_counted_by_its_reason(tmp_path, source):
    why, text = LEAVES_OUT[source]
    (tmp_path / CODE).write_text(source)
    counted = left_out(tmp_path, [CODE])
    assert counted.keys() == {why} and counted[why] >= 1
    assert not [m for m in mutations(CODE, source) if text in mutated(m, source)]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("@dataclass(frozen=True, slots=True)\nclass A:\n    pass\n", "frozen=False"),
        ("@dataclass(slots=True)\nclass A:\n    pass\n", "slots=False"),
        ("@dataclass(frozen=True)\nclass A:\n    b: bool = True\n", "b: bool = False"),
        ("def f(a):\n    return a is S.READY\n", "a is not S.READY"),
        ("def f(a):\n    return a == S.READY\n", "a != S.READY"),
        ("def f(a, b):\n    return a is b\n", "a == b"),
        ("def f(a):\n    return a is a.b\n", "a == a.b"),
        ("BOTH = one | other\n", "one & other"),
        ("def f(one, other):\n    return one | other\n", "one + other"),
    ],
)
def test_what_looks_like_it_but_can_be_told_is_not_left_out(source, text):
    assert [m for m in mutations(CODE, source) if text in mutated(m, source)]


def test_a_call_is_left_out_and_what_changed_is_shown_on_one_line():
    (mutation,) = [m for m in mutations(CODE, SOURCE) if m.operator == "RemoveStatement"]
    assert difference(SOURCE, mutated(mutation, SOURCE)) == "check(used) -> pass"


def test_the_sample_depends_on_its_seed_alone_and_takes_one_mutation_of_each_place(tmp_path):
    (tmp_path / CODE).write_text(SOURCE)
    one, again, other = (sample(tmp_path, [CODE], 3, seed) for seed in ("a", "a", "b"))
    assert one == again != other
    whole = sample(tmp_path, [CODE], 999, "a")
    assert (
        len(whole)
        == len({(m.line, m.column) for m in whole})
        == len({(m.line, m.column) for m in mutations(CODE, SOURCE)})
    )


def test_tests_that_look_closely_kill_every_fault_and_no_tests_kill_none(tmp_path):
    root = a_tree(tmp_path, LOOKS_CLOSELY)
    done = tried(root, tmp_path, Tier(("tests/core",)))
    assert {t.verdict for t in done} == {Verdict.KILLED} and len(done) >= 5
    assert {t.by for t in done if "NumberReplacer" in t.mutation.operator} == {"test_full"}
    none = tried(root, tmp_path / "none", Tier(()))
    assert [t.verdict for t in none] == [Verdict.SURVIVED] * len(done)
    assert command.figures(none) == {
        "mutants": len(done), "killed": 0, "survived": len(done), "timeouts": 0, "share": 0.0,
    }  # fmt: skip
    assert (root / "poolmgr/core" / CODE).read_text().endswith("return used >= limit\n")


def test_tests_that_assert_nothing_kill_only_what_cannot_be_run_at_all(tmp_path):
    root = a_tree(tmp_path, "from poolmgr.core.limit import full\ndef test_full():\n    full(1)\n")
    assert {t.verdict for t in tried(root, tmp_path, Tier(("tests/core",)))} == {Verdict.SURVIVED}


def test_a_fault_that_never_ends_is_a_time_out_and_no_kill(tmp_path):
    root = a_tree(
        tmp_path,
        "from poolmgr.core.limit import full\n"
        "def test_full():\n    n = 0\n    while not full(n):\n        n = min(n + 1, 3)\n",
    )
    done = tried(root, tmp_path, Tier(("tests/core",), cpu_seconds=2))
    assert Verdict.TIMEOUT in {t.verdict for t in done}
    assert command.figures(done)["share"] < 1.0


@pytest.mark.parametrize(("about", "first"), [(("limit*",), "test_own"), (("other",), "test_full"), ((), "test_full")])
def test_a_fault_meets_the_tests_of_its_own_module_first(tmp_path, about, first):
    root = a_tree(tmp_path, LOOKS_CLOSELY)
    (root / "tests/core/test_own.py").write_text(LOOKS_CLOSELY.replace("test_full", "test_own"))
    tiers = [Tier(("tests/core/test_limit.py",)), Tier(("tests/core/test_own.py",), about=about)]
    path = f"poolmgr/core/{CODE}"
    chosen = mutations(path, (root / path).read_text())[-1:]
    (done,) = trials(root, chosen, tiers, 1, tmp_path / "trees")
    assert (done.verdict, done.by) == (Verdict.KILLED, first)


def test_the_tiers_have_every_test_of_core_once_but_those_that_start_engines():
    every = {str(path.relative_to(command.ROOT)) for path in (command.ROOT / "tests/core").glob("test_*.py")}
    tiers = command.TIERS.values()
    named = [test for tier in tiers for test in tier.tests if test not in ("tests/core", "tests/runtime")]
    left_out_of_examples = set(command.TIERS["examples"].deselected)
    assert len(named) == len(set(named)) and set(named) <= every
    assert left_out_of_examples == {*named, *command.ENGINES} and left_out_of_examples <= every


def test_every_module_that_tests_are_about_is_one():
    stems = {path.stem for path in (command.ROOT / command.CORE).glob("*.py")}
    patterns = [pattern for tier in command.TIERS.values() for pattern in tier.about]
    assert patterns and all(any(fnmatch(stem, pattern) for stem in stems) for pattern in patterns)


def test_tests_that_fail_without_a_fault_are_an_error_and_kill_nothing(tmp_path):
    root = a_tree(tmp_path, "def test_no():\n    assert 0\n")
    with pytest.raises(Exception, match=r"terminated abruptly|without a fault"):
        tried(root, tmp_path, Tier(("tests/core",)))


def test_a_process_that_has_imported_the_product_is_refused(monkeypatch):
    monkeypatch.setattr("tests.mutants.trials.PRELOADED", ("poolmgr.errors",))
    with pytest.raises(TrialError, match="imported before"):
        preload()


def test_the_command_says_how_many_it_left_out_and_why(monkeypatch, capsys):
    monkeypatch.setattr(command, "trials", lambda *_: iter(()))
    command.main(["--count", "1", "--seed", "x"])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    assert len(said) == len(LEFT_OUT) and all(why in text for why, text in zip(sorted(LEFT_OUT), said, strict=True))


def test_too_few_kills_are_a_failure_of_the_command(monkeypatch, capsys):
    made = [Mutation("poolmgr/core/a.py", n, 0, "AddNot", n) for n in range(20)]

    def answered(killed: int):
        verdicts = [Verdict.KILLED] * killed + [Verdict.SURVIVED] * (20 - killed)
        return lambda *_: iter([Trial(m, v, "", "a -> b") for m, v in zip(made, verdicts, strict=True)])

    for killed, status in ((17, 0), (16, 1)):
        monkeypatch.setattr(command, "trials", answered(killed))
        assert command.main(["--count", "20", "--seed", "x"]) == status
        *before, last = (line for line in capsys.readouterr().out.splitlines() if not line.startswith("left out: "))
        assert json.loads(last)["killed"] == killed and len(before) == 20 - killed
        assert all(line.startswith("survived: poolmgr/core/a.py:") for line in before)

"""The observer sees what is there, and evidence that is missing, cut or doctored is a violation, never a pass."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos import journal, procs, stranger, truth, verdict
from tests.chaos.journal import Journal, Writer
from tests.chaos.live import Live
from tests.chaos.rig import ROOT
from tests.e2e.daemon import eventually
from tests.e2e.engines import SCRIPT, free_port

RIG = uuid.uuid4().hex


@contextmanager
def observing(tmp_path: Path) -> Iterator[Live]:
    """An observer of `RIG`; afterwards its file is complete."""
    file = tmp_path / "observer"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.observer", RIG, str(file)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    live = None
    try:
        assert process.stdout.readline() == b"looking\n"
        live = Live(file)
        yield live
    finally:
        process.stdin.close()
        assert process.wait(10) == 0
        process.stdout.close()
        if live is not None:
            live.close()


@contextmanager
def engine(pool: str, rig: str = RIG, **more: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """(process, port) of a scripted engine that nobody manages."""
    port = free_port()
    marks = {procs.RIG_VARIABLE: rig, procs.POOL_VARIABLE: pool, procs.VERSION_VARIABLE: "1"}
    environment = {**marks, procs.ENGINE_VARIABLE: uuid.uuid4().hex, **more}
    argv = [sys.executable, "-I", "-S", SCRIPT, "--port", str(port)]
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield process, port
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.behaviour("PROC-7")
@pytest.mark.parametrize(("end", "status"), [(signal.SIGKILL, "signal 9"), (signal.SIGTERM, "exit 0")])
def test_birth_port_death_and_exit_status_of_an_engine_are_seen(tmp_path, end, status):
    with observing(tmp_path) as live, engine("a") as (process, port), engine("b", rig="another"):
        (seen,) = eventually(lambda: [e for e in live.engines("a") if "ports" in e] or None, 10)
        assert (seen["pid"], seen["ports"], live.engines("b")) == (process.pid, [port], [])
        assert seen["start"] == procs.stat(process.pid).start
        os.kill(process.pid, end)
        assert eventually(lambda: live.died(process.pid, seen["start"]), 10).said == status
    (life,) = truth.lives(journal.read(tmp_path / "observer"))
    assert life.died is not None and life.ports == (port,) and life.born < life.died


@pytest.mark.behaviour("PROC-7")
def test_a_second_engine_beside_the_first_is_seen_and_one_of_another_version_is_none(tmp_path):
    other = {procs.VERSION_VARIABLE: "2"}
    with observing(tmp_path) as live, engine("a"), engine("a", **other):
        eventually(lambda: len(live.engines("a")) == 2, 10)
    assert journal.read(tmp_path / "observer").of("two") == []
    (tmp_path / "observer").unlink()
    with observing(tmp_path) as live, engine("a"), engine("a"):
        eventually(lambda: len(live.engines("a")) == 2, 10)
    assert len(journal.read(tmp_path / "observer").of("two")) == 1


@pytest.mark.behaviour("PROC-3")
def test_a_stranger_writes_down_each_signal_and_its_sender(tmp_path):
    record = tmp_path / "record"
    process = subprocess.Popen([sys.executable, "-I", "-S", stranger.__file__, str(record)])
    try:
        eventually(lambda: record.exists() and "ready" in record.read_text(), 10)
        os.kill(process.pid, signal.SIGTERM)
        line = f"signal {signal.SIGTERM} from pid {os.getpid()}"
        eventually(lambda: line in record.read_text(), 10)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


# Doctored evidence. A rig's files that are in order first, then one thing wrong in each.

BIRTH = {"pid": 7, "start": 70, "engine": "e", "pool": "a", "v": "1", "parent": 1, "cgroup": "/x"}
NAME = {name: BIRTH[name] for name in ("pid", "start", "engine", "pool", "v")}
GRANT = {"lease": "a.1", "fence": 1, "endpoint": "127.0.0.1:80"}


def write(path: Path, *lines: tuple[str, dict[str, object]]) -> None:
    out = Writer(path)
    for event, fields in lines:
        out.write(event, **fields)
    out.close()


@pytest.fixture
def rig(tmp_path: Path) -> Path:
    """The files of a rig in which all is well."""
    write(tmp_path / "deeds", ("rig", {"slots": {"a": 1}}), ("must-live", {"pool": "a"}), ("may-end", {"pool": ""}))
    write(tmp_path / "observer", ("birth", BIRTH), ("port", {**NAME, "ports": [80]}), ("living", NAME))
    asked = {"op": 1, "kind": "acquire", "pool": "a", "request": "r", "ttl": 3.0}
    write(tmp_path / "history", ("invoke", asked), ("ok", {**asked, "sent": procs.now(), "tries": 1, **GRANT}))
    return tmp_path


def texts(rig: Path) -> list[str]:
    return [violation.text for _, violation in verdict.judge(rig).violations]


def rewrite(path: Path, change) -> None:
    """Lets `change` edit the lines, which are then numbered again as if nobody had."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps({**line, "number": n}) + "\n" for n, line in enumerate(lines)))


@pytest.mark.behaviour("PROC-7")
def test_evidence_that_is_whole_and_in_order_is_no_violation(rig):
    assert texts(rig) == []


@pytest.mark.behaviour("PROC-7")
@pytest.mark.parametrize("name", ["deeds", "observer", "history"])
def test_a_missing_cut_or_damaged_file_is_a_violation(rig, name):
    content = (rig / name).read_bytes()
    whole = content.splitlines(keepends=True)
    for damaged, told in (
        (b"".join(whole[:-1]), "cut off"),
        (content[:-3], "cut off"),
        (b"".join([*whole[:1], *whole[2:]]), "line 1 is missing"),
        (content.replace(b'"event"', b'"eve', 1), "damaged"),
        (b"", "cut off"),
    ):
        (rig / name).write_bytes(damaged)
        assert any(name in text and told in text for text in texts(rig)), (told, texts(rig))
    (rig / name).unlink()
    assert any(f"{name} is missing" in text for text in texts(rig))


@pytest.mark.behaviour("PROC-7")
def test_an_observer_that_saw_nothing_or_looked_away_has_shown_nothing(rig):
    rewrite(rig / "observer", lambda lines: lines.__delitem__(slice(0, 3)))
    assert "evidence is missing: the observer saw no engine" in texts(rig)


@pytest.mark.behaviour("PROC-7")
def test_a_gap_in_what_the_observer_saw_is_a_violation(rig):
    rewrite(rig / "observer", lambda lines: [line.update(at=line["at"] + truth.BLIND + 1) for line in lines[2:]])
    assert any("looked away" in text for text in texts(rig))


@pytest.mark.behaviour("PROC-7")
def test_the_end_of_an_engine_that_had_to_live_is_a_violation_and_of_one_that_might_end_is_none(rig):
    until = next(line["at"] for line in journal.read(rig / "deeds").of("may-end"))

    def die(at: int):
        return lambda lines: lines.__setitem__(2, {**NAME, "event": "death", "at": at})

    rewrite(rig / "observer", lambda lines: lines[0].update(at=until - 100))
    rewrite(rig / "observer", die(until - 1))
    assert verdict.judge(rig).summary()["wrong_signals"] == 1
    rewrite(rig / "observer", die(until + 1))
    assert texts(rig) == []


@pytest.mark.behaviour("PROC-7")
def test_two_engines_at_once_are_a_violation(rig):
    rewrite(rig / "observer", lambda lines: lines.insert(2, {**NAME, "event": "two", "at": procs.now(), "other": {}}))
    assert verdict.judge(rig).summary()["second_engines"] == 1


@pytest.mark.behaviour("LEASE-1")
def test_a_lease_that_names_a_place_where_no_engine_of_its_pool_listens_is_a_violation(rig):
    rewrite(rig / "observer", lambda lines: lines[1].update(ports=[81]))
    assert any("no engine of it ever listened" in text for text in texts(rig))


@pytest.mark.behaviour("LEASE-1", "ENG-2")
def test_a_lease_may_name_an_engine_that_told_of_itself_and_of_its_own_pool_only(rig):
    rewrite(rig / "observer", lambda lines: lines[1].update(ports=[81]))
    for pool, told in (("b", True), ("a", False)):
        line = {"event": "registered", "pool": pool, "pid": 8, "ports": [80], "at": 0}
        rewrite(rig / "deeds", lambda lines, line=line: lines.insert(1, line))
        assert any("no engine of it ever listened" in text for text in texts(rig)) is told


@pytest.mark.behaviour("LEASE-4")
def test_a_lease_is_lost_unless_its_engine_may_have_ended_before_it_was_denied(rig):
    """The observer looks now and then: an engine ended between two looks."""
    until = next(line["at"] for line in journal.read(rig / "deeds").of("may-end"))
    asked = {"event": "invoke", "op": 2, "kind": "renew", "pool": "a", "lease": "a.1", "ttl": 3.0, "at": until + 1}
    denied = {**asked, "event": "ok", "sent": until + 1, "outcome": "EXPIRED", "at": until + 500}

    def early(lines):
        lines[0].update(at=until - 50)
        lines[1].update(at=until - 40, sent=until - 50)
        lines[2:2] = [asked, denied]

    rewrite(rig / "history", early)
    rewrite(rig / "observer", lambda lines: lines[0].update(at=until - 100))
    for since, lost in ((until + 600, 1), (until + 400, 0)):
        death = {**NAME, "event": "death", "at": until + 700, "since": since}
        rewrite(rig / "observer", lambda lines, death=death: lines.__setitem__(2, death))
        assert verdict.judge(rig).summary()["lost_leases"] == lost


@pytest.mark.behaviour("PROC-7")
def test_what_the_harness_itself_saw_go_wrong_is_in_the_verdict_with_its_run(rig):
    told = {"rule": "PROC-6", "text": "wrong", "evidence": ["so"], "kind": "", "event": "violation"}
    run = {"event": "run", "fault": "f", "run": 3, "detail": "d"}
    at = next(line["at"] for line in journal.read(rig / "deeds").of("may-end"))
    rewrite(rig / "deeds", lambda lines: lines.__setitem__(slice(2, 2), [{**run, "at": at}, {**told, "at": at}]))
    ((where, violation),) = verdict.judge(rig).violations
    assert where == "f#3 (d)" and (violation.rule, violation.text, violation.evidence) == ("PROC-6", "wrong", ("so",))


def test_a_restart_is_paired_with_the_first_kill_before_it_that_was_followed_by_service():
    events = ["exec", "serving", "kill-daemon", "exec", "kill-daemon", "exec", "serving", "exec", "serving"]
    deeds = Journal([{"event": event, "at": at} for at, event in enumerate(events)])
    assert verdict.restarts(deeds) == ((2, 5),)

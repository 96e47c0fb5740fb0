"""`poolmgr pool reload`, `rollback`, `generations`: what is asked, what is shown, and when it has failed."""

from __future__ import annotations

import json
import os

import grpc
import pytest

from poolmgr.cli.hints import HINTS
from poolmgr.cli.progress import describe
from poolmgr.v1 import pool_pb2
from tests.cli.scripted_daemon import READY, refusing

CURRENT = pool_pb2.Pool(
    pool_id="chat",
    state=pool_pb2.Pool.READY,
    generation=3,
    spec={
        "engine": pool_pb2.ENGINE_LLAMACPP,
        "model": {"path": "/old.gguf", "digest": "sha256:0", "context_length": 512},
        "args": ["--flash-attn"],
        "env": {"A": "1"},
        "slots": 2,
        "drain_deadline": {"seconds": 7},
    },
)
FAILED = pool_pb2.Pool(
    pool_id="chat",
    state=pool_pb2.Pool.READY,
    generation=3,
    last_error={"reason": "EXIT_CODE", "message": "the new engine exited with 3", "at": {"seconds": 9}},
)
UNDER_WAY = pool_pb2.Pool(
    pool_id="chat", state=pool_pb2.Pool.READY, generation=3, reload_phase="starting", reload_generation=4
)


def moved(generation: int = 4) -> pool_pb2.Pool:
    return pool_pb2.Pool(pool_id="chat", state=pool_pb2.Pool.READY, generation=generation)


def asked(daemon) -> pool_pb2.ReloadPoolRequest:
    (request,) = daemon.requests("ReloadPool")
    return request


def test_a_reload_of_which_nothing_is_said_restarts_the_same(daemon, run):
    daemon.script.update(GetPool=CURRENT, ReloadPool=moved())
    ran = run("pool", "reload", "chat")
    assert ran.code == 0
    assert "4" in ran.out
    assert asked(daemon) == pool_pb2.ReloadPoolRequest(pool_id="chat", strategy=pool_pb2.RELOAD_AUTO, wait={})
    assert not asked(daemon).HasField("spec")


def test_flags_change_the_spec_that_the_pool_has(daemon, run):
    daemon.script.update(GetPool=CURRENT, ReloadPool=moved())
    assert run("pool", "reload", "chat", "--slots", "4", "--env", "B=2").code == 0
    wanted = pool_pb2.PoolSpec()
    wanted.CopyFrom(CURRENT.spec)
    wanted.slots, wanted.env["B"] = 4, "2"
    assert asked(daemon).spec == wanted


def test_another_model_does_not_keep_the_digest_of_the_old_one(daemon, run):
    daemon.script.update(GetPool=CURRENT, ReloadPool=moved())
    run("pool", "reload", "chat", "--model", "new.gguf")
    model = asked(daemon).spec.model
    assert (model.path, model.digest, model.context_length) == (os.path.abspath("new.gguf"), "", 512)


@pytest.mark.parametrize("option", ["--file", "--spec"])
def test_a_file_replaces_the_spec_and_flags_go_over_it(daemon, run, tmp_path, option):
    daemon.script.update(GetPool=CURRENT, ReloadPool=moved())
    file = tmp_path / "spec.toml"
    file.write_text('engine = "COMMAND"\ncommand = "sleep"\nargs = ["1"]\n')
    assert run("pool", "reload", "chat", option, str(file), "--slots", "3").code == 0
    spec = asked(daemon).spec
    assert (spec.engine, spec.command, list(spec.args), spec.slots) == (pool_pb2.ENGINE_COMMAND, "sleep", ["1"], 3)
    assert (spec.model.path, dict(spec.env)) == ("", {})


@pytest.mark.parametrize(
    ("said", "strategy"),
    [
        ("auto", pool_pb2.RELOAD_AUTO),
        ("make-before-break", pool_pb2.RELOAD_MAKE_BEFORE_BREAK),
        ("break-before-make", pool_pb2.RELOAD_BREAK_BEFORE_MAKE),
    ],
)
def test_strategy_deadline_and_wait_are_handed_down(daemon, run, said, strategy):
    daemon.script.update(GetPool=CURRENT, ReloadPool=moved())
    run("pool", "reload", "chat", "--strategy", said, "--drain-deadline", "0", "--wait", "30")
    request = asked(daemon)
    assert (request.strategy, request.wait.seconds, request.HasField("drain_deadline")) == (strategy, 30, True)


def test_a_rollback_names_a_generation_or_leaves_it_to_the_daemon(daemon, run):
    daemon.script.update(GetPool=CURRENT, RollbackPool=moved(2))
    assert run("pool", "rollback", "chat").code == 0
    assert run("pool", "rollback", "chat", "--generation", "2", "--drain-deadline", "5", "--wait", "9").code == 0
    first, second = daemon.requests("RollbackPool")
    assert (first.generation, first.HasField("drain_deadline"), first.wait.seconds) == (0, False, 0)
    assert (second.generation, second.drain_deadline.seconds, second.wait.seconds) == (2, 5, 9)


@pytest.mark.parametrize(("verb", "rpc"), [("reload", "ReloadPool"), ("rollback", "RollbackPool")])
def test_who_waited_for_a_reload_that_failed_sees_why_and_exits_1(daemon, run, verb, rpc):
    daemon.script.update({"GetPool": CURRENT, rpc: FAILED})
    ran = run("pool", verb, "chat", "--wait", "30")
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "error: pool chat stays at generation 3: the new engine exited with 3",
        "reason: EXIT_CODE",
        f"hint: {HINTS['EXIT_CODE']}",
    ]
    assert run("pool", verb, "chat").code == 0


@pytest.mark.parametrize(("verb", "rpc"), [("reload", "ReloadPool"), ("rollback", "RollbackPool")])
def test_who_waited_for_a_reload_that_is_not_over_sees_how_far_it_is(daemon, run, verb, rpc):
    daemon.script.update({"GetPool": CURRENT, rpc: UNDER_WAY})
    ran = run("pool", verb, "chat", "--wait", "3")
    assert ran.code == 1
    assert "still starting on its way to generation 4 after 3 s" in ran.err
    assert "reason: RELOAD_IN_PROGRESS" in ran.err
    assert run("pool", verb, "chat").code == 0


def test_an_error_from_before_the_reload_is_not_held_against_it(daemon, run):
    before = pool_pb2.Pool()
    before.CopyFrom(FAILED)
    after = moved()
    after.last_error.CopyFrom(FAILED.last_error)
    daemon.script.update(GetPool=before, ReloadPool=after)
    assert run("pool", "reload", "chat", "--wait", "3").code == 0


def test_a_reload_under_way_is_shown_with_its_pool(daemon, run):
    daemon.script["GetPool"] = UNDER_WAY
    assert "starting, to generation 4" in run("pool", "show", "chat").out
    daemon.script["GetPool"] = READY
    assert "to generation" not in run("pool", "show", "chat").out


def test_who_waits_at_a_terminal_is_told_how_far_a_reload_is():
    assert describe(UNDER_WAY) == "chat · READY · starting, to generation 4"
    assert describe(READY) == "chat · READY"


def test_generations_are_listed_with_what_became_of_each(daemon, run):
    spec = pool_pb2.PoolSpec(engine=pool_pb2.ENGINE_COMMAND, command="sleep", args=["9"], slots=2)
    generations = [
        pool_pb2.PoolGeneration(generation=1, spec=CURRENT.spec, committed=True),
        pool_pb2.PoolGeneration(generation=2, spec=spec, rolled_back=2, blocked=True),
        pool_pb2.PoolGeneration(generation=3, spec=spec, committed=True, current=True),
    ]
    daemon.script["ListPoolGenerations"] = pool_pb2.ListPoolGenerationsResponse(generations=generations)
    header, first, second, third = run("pool", "generations", "chat").out.splitlines()
    assert header.split()[0] == "GENERATION"
    assert first.split() == ["1", "llamacpp", "/old.gguf", "2"]
    assert "never served, rolled back 2×, blocked" in second
    assert third.split() == ["3", "command", "sleep", "9", "2", "current"]
    shown = json.loads(run("pool", "generations", "chat", "--json").out)
    assert [one["blocked"] for one in shown["generations"]] == [False, True, False]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "RELOAD_IN_PROGRESS"),
        (grpc.StatusCode.FAILED_PRECONDITION, "GENERATION_BLOCKED"),
        (grpc.StatusCode.NOT_FOUND, "GENERATION_NOT_FOUND"),
    ],
)
def test_what_the_daemon_does_not_reload_exits_1_with_a_hint(daemon, run, code, reason):
    daemon.script.update(GetPool=CURRENT, RollbackPool=refusing(code, reason, "no"))
    ran = run("pool", "rollback", "chat", "--generation", "9")
    assert (ran.code, ran.err.splitlines()[-1]) == (1, f"hint: {HINTS[reason]}")


@pytest.mark.parametrize(
    "argv",
    [
        ["reload"],
        ["reload", "chat", "--strategy", "both"],
        ["reload", "chat", "--wait", "-1"],
        ["rollback", "chat", "--generation", "-1"],
        ["generations"],
    ],
)
def test_wrong_usage_of_a_reload_exits_2_and_asks_the_daemon_nothing(daemon, run, argv):
    ran = run("pool", *argv)
    assert (ran.code, daemon.calls) == (2, [])

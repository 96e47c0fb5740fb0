"""`poolmgr pool`: what is asked, and how pools, changes and logs are shown."""

from __future__ import annotations

import json
import os
import threading

import pytest
from google.protobuf.empty_pb2 import Empty

from poolmgr.v1 import pool_pb2
from tests.cli.scripted_daemon import PARKED, READY

SECONDS = 10.0


def created(daemon) -> pool_pb2.CreatePoolRequest:
    (request,) = daemon.requests("CreatePool")
    return request


def test_flags_become_a_spec(daemon, run):
    daemon.script["CreatePool"] = READY
    ran = run(
        *["pool", "create", "chat", "--model", "chat.gguf", "--context", "512", "--slots", "4", "--port", "8081"],
        *["--arg", "--flash-attn", "--arg", "on", "--env", "A=b=c", "--label", "team=search"],
        *["--restart", "always", "--preload"],
    )
    assert ran.code == 0
    assert created(daemon).pool_id == "chat"
    assert created(daemon).spec == pool_pb2.PoolSpec(
        engine=pool_pb2.ENGINE_LLAMACPP,
        model={"path": os.path.abspath("chat.gguf"), "context_length": 512},
        args=["--flash-attn", "on"],
        env={"A": "b=c"},
        slots=4,
        port=8081,
        labels={"team": "search"},
        restart=pool_pb2.RESTART_ALWAYS,
        preload=True,
    )


def test_a_command_alone_is_a_command_pool(daemon, run):
    daemon.script["CreatePool"] = READY
    run("pool", "create", "x", "--command", "sleep")
    assert created(daemon).spec.engine == pool_pb2.ENGINE_COMMAND


def test_a_toml_file_is_written_as_in_the_configuration_and_flags_go_over_it(daemon, run, tmp_path):
    daemon.script["CreatePool"] = READY
    file = tmp_path / "spec.toml"
    file.write_text(
        'engine = "COMMAND"\ncommand = "sleep"\nargs = ["1"]\nslots = 2\ndrain_deadline = 5\n[env]\nA = "1"\n'
    )
    assert run("pool", "create", "x", "--file", str(file), "--slots", "3", "--arg", "9", "--env", "B=2").code == 0
    spec = created(daemon).spec
    assert (spec.command, spec.slots, list(spec.args), dict(spec.env)) == ("sleep", 3, ["9"], {"A": "1", "B": "2"})
    assert spec.drain_deadline.seconds == 5


def test_a_json_file_is_what_json_shows_of_a_spec(daemon, run, tmp_path):
    daemon.script["CreatePool"] = READY
    file = tmp_path / "spec.json"
    file.write_text('{"engine": "ENGINE_COMMAND", "command": "sleep", "drain_deadline": "5s"}')
    assert run("pool", "create", "x", "--file", str(file)).code == 0
    assert created(daemon).spec.drain_deadline.seconds == 5


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("a.toml", 'engine = "COMMAND"\nslot = 3\n', "slot"),
        ("b.toml", "engine = \n", "line 1"),
        ("c.json", '{"slot": 3}', "slot"),
        ("d.json", "{", "d.json"),
    ],
)
def test_a_bad_spec_file_is_wrong_usage_and_named(daemon, run, tmp_path, monkeypatch, name, text, named):
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / name).write_text(text)
    ran = run("pool", "create", "x", "--file", str(tmp_path / name))
    assert ran.code == 2
    assert named in ran.err
    assert daemon.calls == []


def test_pools_are_listed_on_one_line_each(daemon, run):
    daemon.script["ListPools"] = pool_pb2.ListPoolsResponse(pools=[READY, PARKED])
    header, *rows = run("pool", "list").out.splitlines()
    assert header.split()[:2] == ["POOL", "STATE"]
    assert [row.split()[:3] for row in rows] == [["chat", "READY", "llamacpp"], ["chat", "PARKED", "command"]]
    assert "0/4" in rows[0]


def test_an_empty_list_says_how_to_begin(daemon, run):
    daemon.script["ListPools"] = pool_pb2.ListPoolsResponse()
    assert "pool create" in run("pool", "list").out


def test_what_an_engine_wrote_cannot_drive_the_terminal(daemon, run):
    daemon.script["GetPool"] = PARKED
    out = run("pool", "show", "chat").out
    assert "\x1b" not in out
    assert "boom �[2J[red]" in out


def test_preload_waits_and_succeeds_when_the_pool_is_ready(daemon, run):
    daemon.script["PreloadPool"] = READY
    assert run("pool", "preload", "chat", "--wait", "30").code == 0
    (request,) = daemon.requests("PreloadPool")
    assert request.wait.seconds == 30


def test_preload_that_ends_otherwise_exits_1_with_what_ended_the_engine(daemon, run):
    daemon.script["PreloadPool"] = PARKED
    ran = run("pool", "preload", "chat", "--wait", "30")
    assert ran.code == 1
    assert "exited with 3" in ran.err
    assert "reason: EXIT_CODE" in ran.err


def test_preload_without_a_wait_is_done_when_the_start_is_queued(daemon, run):
    daemon.script["PreloadPool"] = pool_pb2.Pool(pool_id="chat", state=pool_pb2.Pool.PROVISIONING)
    assert run("pool", "preload", "chat").code == 0


def test_create_with_a_wait_preloads(daemon, run):
    daemon.script.update(CreatePool=READY, PreloadPool=READY)
    assert run("pool", "create", "x", "--command", "sleep", "--preload", "--wait", "9").code == 0
    assert [name for name, _ in daemon.calls] == ["CreatePool", "PreloadPool"]


@pytest.mark.parametrize("verb", ["drain", "stop"])
def test_a_wait_for_the_end_of_a_pool_fails_when_it_goes_on(daemon, run, verb):
    answer = pool_pb2.Pool(pool_id="chat", state=pool_pb2.Pool.DRAINING)
    daemon.script.update(DrainPool=answer, StopPool=answer)
    assert run("pool", verb, "chat", "--wait", "3").code == 1
    assert run("pool", verb, "chat").code == 0


@pytest.mark.parametrize(
    ("argv", "rpc"),
    [(["undrain", "chat"], "UndrainPool"), (["reset-breaker", "chat"], "ResetBreaker"), (["stop", "chat"], "StopPool")],
)
def test_a_verb_shows_the_pool_as_it_is_then(daemon, run, argv, rpc):
    daemon.script[rpc] = READY
    assert "READY" in run("pool", *argv).out
    assert daemon.requests(rpc)[0].pool_id == "chat"


def test_delete_hands_the_deadline_down(daemon, run):
    daemon.script["DeletePool"] = Empty()
    assert run("pool", "delete", "chat", "--drain-deadline", "0").out == "chat is deleted\n"
    (request,) = daemon.requests("DeletePool")
    assert request.HasField("drain_deadline")


def test_a_terminal_is_shown_how_a_start_is_coming_along(daemon, run, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    seen = threading.Event()

    def watch(_request, _context):
        pool = pool_pb2.Pool(pool_id="chat", state=pool_pb2.Pool.STARTING, progress={"phase": "loading"})
        yield pool_pb2.WatchPoolsResponse(snapshot={"pools": [pool]})
        yield pool_pb2.WatchPoolsResponse(upsert=pool_pb2.Pool(pool_id="chat", draining=True, active_leases=2))
        seen.set()

    def preload(_request, _context):
        assert seen.wait(SECONDS)
        return READY

    daemon.script.update(WatchPools=watch, PreloadPool=preload)
    ran = run("pool", "preload", "chat", "--wait", "9")
    assert ran.code == 0
    assert "chat" in ran.err


def test_changes_are_printed_one_a_line(daemon, run):
    def watch(_request, _context):
        yield pool_pb2.WatchPoolsResponse(snapshot={"pools": [READY], "revision": 4})
        yield pool_pb2.WatchPoolsResponse(upsert=PARKED)
        yield pool_pb2.WatchPoolsResponse(bookmark=6)
        yield pool_pb2.WatchPoolsResponse(resync={"reason": "TOO_SLOW", "revision": 7})
        yield pool_pb2.WatchPoolsResponse(delete={"pool_id": "chat", "revision": 8})

    daemon.script["WatchPools"] = watch
    assert run("pool", "watch").out.splitlines() == [
        "0 chat READY",
        "0 chat PARKED",
        "7 resync: TOO_SLOW, all as it is now follows",
        "8 chat deleted",
    ]
    lines = run("pool", "watch", "--json").out.splitlines()
    assert [next(iter(json.loads(line))) for line in lines] == ["snapshot", "upsert", "bookmark", "resync", "delete"]


def test_logs_are_printed_as_they_are(daemon, run):
    daemon.script["TailLogs"] = lambda _request, _context: iter([pool_pb2.TailLogsResponse(lines=["a [b]", "c"])])
    assert run("pool", "logs", "chat", "-n", "7", "-f").out == "a [b]\nc\n"
    (request,) = daemon.requests("TailLogs")
    assert (request.lines, request.follow) == (7, True)
    assert run("pool", "logs", "chat", "--json").out == '"a [b]"\n"c"\n'

"""The command line against a real server: what is asked, what is shown, how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf.json_format import Parse

from poolmgr.cli.hints import HINTS
from poolmgr.cli.main import main
from poolmgr.errors import Reason
from poolmgr.model.engine import CrashCause
from poolmgr.model.lease import RefusalReason
from poolmgr.v1 import admin_pb2, lease_pb2, pool_pb2
from tests.cli.scripted_daemon import READY, refusing

ROOT = Path(__file__).parents[2]


# How it fails.


@pytest.mark.parametrize("reason", [*Reason, *RefusalReason, *CrashCause])
def test_every_reason_has_a_hint(reason):
    assert HINTS[reason]


def test_no_hint_is_for_a_reason_that_nobody_gives():
    codes = {code.name for code in grpc.StatusCode}
    assert set(HINTS) <= {*Reason, *RefusalReason, *CrashCause, *codes}


def test_a_daemon_that_is_not_there_exits_3_and_says_what_to_do(run, unused_address):
    ran = run("status", "--addr", unused_address)
    assert ran.code == 3
    assert unused_address in ran.err
    assert "reason: UNREACHABLE" in ran.err
    assert "poolmgr serve" in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


def test_what_the_daemon_refuses_exits_1_with_reason_numbers_and_hint(daemon, run):
    daemon.script["GetPool"] = refusing(grpc.StatusCode.NOT_FOUND, "POOL_NOT_FOUND", "no pool 'x'", pool_id="x")
    ran = run("pool", "show", "x")
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "error: no pool 'x'",
        "reason: POOL_NOT_FOUND",
        "pool_id: x",
        f"hint: {HINTS['POOL_NOT_FOUND']}",
    ]


def test_a_reason_of_a_newer_daemon_is_shown_without_a_hint(daemon, run):
    daemon.script["GetPool"] = refusing(grpc.StatusCode.ABORTED, "NEWS", "what?")
    assert run("pool", "show", "x").err == "error: what?\nreason: NEWS\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["pool", "fly"],
        ["pool", "show"],
        ["status", "--addr", "localhost"],
        ["status", "--addr", ":9200"],
        ["pool", "create", "x"],
        ["pool", "create", "x", "--command", "sleep", "--env", "NOVALUE"],
        ["pool", "create", "x", "--command", "sleep", "--slots", "0"],
        ["pool", "create", "x", "--command", "sleep", "--wait", "3"],
        ["pool", "create", "x", "--engine", "abacus"],
        ["pool", "create", "x", "--file", "/nowhere/spec.toml"],
        ["pool", "logs", "x", "-n", "0"],
    ],
)
def test_wrong_usage_exits_2_and_asks_the_daemon_nothing(daemon, run, argv):
    ran = run(*argv)
    assert ran.code == 2
    assert "Traceback" not in ran.err
    assert daemon.calls == []


def test_a_refused_lease_exits_1_with_its_reason_and_retry_time(daemon, run):
    refusal = lease_pb2.Refusal(
        reason=lease_pb2.Refusal.POOL_FULL, message="all 4 are leased", retry_after={"seconds": 2}
    )
    daemon.script["AcquireLease"] = lease_pb2.AcquireLeaseResponse(refusal=refusal)
    ran = run("lease", "acquire", "chat")
    assert ran.code == 1
    assert ran.err.splitlines()[:3] == ["error: all 4 are leased", "reason: POOL_FULL", "retry_after: 2 s"]


# Where the options stand.


@pytest.mark.parametrize("before", [True, False])
def test_address_and_json_may_stand_before_or_after_the_command(daemon, run, monkeypatch, before):
    monkeypatch.delenv("POOL_MANAGERD_ADDR")
    daemon.script["GetStatus"] = admin_pb2.Status(version="1.2")
    options = ["--addr", daemon.address, "--json"]
    ran = run(*options, "status") if before else run("status", *options)
    assert Parse(ran.out, admin_pb2.Status()).version == "1.2"


def test_json_is_protobufs_own_with_original_names_and_zeros(daemon, run):
    daemon.script["GetPool"] = READY
    shown = json.loads(run("pool", "show", "chat", "--json").out)
    assert shown["slots_free"] == 0
    assert shown["state"] == "READY"
    assert "last_error" not in shown
    assert Parse(json.dumps(shown), pool_pb2.Pool()) == READY


# Leases.


def test_a_lease_is_shown_with_its_token_and_endpoint(daemon, run):
    lease = lease_pb2.Lease(lease_id="l1", token="secret", endpoint="127.0.0.1:8081", ttl={"seconds": 15})
    daemon.script["AcquireLease"] = lease_pb2.AcquireLeaseResponse(lease=lease)
    ran = run("lease", "acquire", "chat", "--holder", "me", "--ttl", "15", "--wait", "2", "--priority", "-1")
    assert all(text in ran.out for text in ("l1", "secret", "127.0.0.1:8081"))
    (request,) = daemon.requests("AcquireLease")
    assert (request.holder, request.ttl.seconds, request.wait.seconds, request.priority) == ("me", 15, 2, -1)


@pytest.mark.parametrize(
    ("outcome", "code"), [("RELEASED", 0), ("ALREADY_RELEASED", 0), ("EXPIRED", 1), ("UNKNOWN", 1)]
)
def test_a_release_tells_whether_the_lease_was_there(daemon, run, outcome, code):
    daemon.script["ReleaseLease"] = lease_pb2.ReleaseLeaseResponse(outcome=lease_pb2.Lease.Outcome.Value(outcome))
    ran = run("lease", "release", "l1", "secret")
    assert (ran.code, ran.out) == (code, f"{outcome}\n")


def test_leases_are_listed(daemon, run):
    leases = [lease_pb2.Lease(lease_id="l1", pool_id="chat", holder="[me]")]
    daemon.script["ListLeases"] = lease_pb2.ListLeasesResponse(leases=leases)
    assert "[me]" in run("lease", "list", "--pool", "chat").out
    assert daemon.requests("ListLeases")[0].pool_id == "chat"
    daemon.script["ListLeases"] = lease_pb2.ListLeasesResponse()
    assert run("lease", "list").out == "no live leases\n"


# The daemon and its configuration.


def test_the_status_shows_warnings(daemon, run):
    daemon.script["GetStatus"] = admin_pb2.Status(
        version="1", pools=2, pools_ready=1, pools_by_state={"READY": 1, "PARKED": 1}, warnings=["disk [full]"]
    )
    out = run("status").out
    assert "1 ready of 2: 1 PARKED, 1 READY" in out
    assert "disk [full]" in out


def test_shutdown_leaves_engines_running_unless_told_otherwise(daemon, run):
    daemon.script["Shutdown"] = admin_pb2.ShutdownResponse(engines_left_running=2)
    ended = subprocess.Popen(["/bin/true"])  # stands for the daemon: shutdown waits until it is gone
    daemon.script["GetStatus"] = admin_pb2.Status(pid=ended.pid)
    assert "2 engines go on" in run("shutdown").out
    run("shutdown", "--stop-engines")
    assert ended.wait(0) == 0
    assert [request.stop_engines for request in daemon.requests("Shutdown")] == [False, True]


def test_the_configuration_is_shown_with_origins(daemon, run):
    daemon.script["GetConfig"] = admin_pb2.Config(values=[{"key": "server.addr", "value": '"x"', "origin": "flag"}])
    assert run("config", "show").out.splitlines()[1].split() == ["server.addr", '"x"', "flag"]


def test_a_reload_shows_what_it_did_and_a_dry_run_does_nothing(daemon, run):
    daemon.script["ReloadConfig"] = admin_pb2.ReloadConfigResponse(
        pools_created=["a"], restart_required=["server.addr"]
    )
    ran = run("config", "reload", "--dry-run")
    assert ran.out.split() == ["created", "a", "at", "the", "next", "start", "server.addr"]
    assert daemon.requests("ReloadConfig")[0].validate_only
    daemon.script["ReloadConfig"] = admin_pb2.ReloadConfigResponse()
    assert run("config", "reload").out == "nothing changed\n"


def test_a_file_is_checked_without_a_daemon(run, tmp_path):
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('[pools.chat]\nengine = "COMMAND"\ncommand = "sleep"\n')
    bad.write_text("[server]\nadr = 1\n")
    assert "with 1 pools" in run("config", "check", str(good)).out
    ran = run("config", "check", str(bad))
    assert ran.code == 1
    assert "adr" in ran.err
    assert "reason: INVALID_CONFIG" in ran.err


def test_serve_becomes_the_daemon_with_the_same_flags(monkeypatch):
    class Replaced(Exception):
        pass

    asked = []

    def execv(path, argv):
        asked.append((path, argv))
        raise Replaced

    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(Replaced):
        main(["--addr", "127.0.0.1:1", "serve", "--config", "c.toml", "--set", "a.b=1", "--set", "c.d=2"])
    expected = ["--config=c.toml", "--addr=127.0.0.1:1", "--set=a.b=1", "--set=c.d=2"]
    assert asked == [(sys.executable, [sys.executable, "-m", "poolmgr", *expected])]


# As a program.


def poolmgr(*argv, **environment):
    return subprocess.run(
        [sys.executable, "-c", "from poolmgr.cli.main import main; main()", *argv],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'ext'}", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_program_exits_3_without_a_traceback_when_no_daemon_is_there(unused_address):
    ran = poolmgr("pool", "list", POOL_MANAGERD_ADDR=unused_address)
    assert ran.returncode == 3
    assert ran.stderr.startswith("error: cannot reach poolmgr")
    assert "Traceback" not in ran.stderr


def test_help_does_not_wait_for_the_libraries_of_a_call():
    code = """
import sys
from poolmgr.cli.main import main
try:
    main(["pool", "--help"])
except SystemExit:
    print([name for name in ("grpc", "google.protobuf", "poolmgr.config.load") if name in sys.modules], file=sys.stderr)
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert ran.stderr == "[]\n"

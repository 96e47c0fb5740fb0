"""The shim, spoken to over its own socket."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from pathlib import Path

import pytest
from process_support import IDLE, script

from poolmgr.adapters import shim
from poolmgr.adapters.runtimes import shimlink
from poolmgr.adapters.runtimes.enginedir import EngineDirectory
from poolmgr.adapters.shim import oom, records, wire


class Shim:
    """A shim and a blocking connection to it. Leaves with its engine when the test ends."""

    def __init__(self, path: Path, text: str) -> None:
        self.directory = EngineDirectory(path / "engine")
        self.directory.create(script(text), None, 5.0)
        self.pidfd = shimlink.spawn(self.directory)
        self.connection = self.connect()

    def connect(self) -> socket.socket:
        connection = self.directory.connect()
        assert connection is not None
        connection.setblocking(True)
        return connection

    def say(self, **message: object) -> None:
        self.connection.send(wire.encode(message))

    def hear(self) -> dict | None:
        data, fds, _, _ = socket.recv_fds(self.connection, wire.MESSAGE_BYTES, 1)
        for fd in fds:
            os.close(fd)
        return wire.decode(data) if data else None

    def greet(self) -> dict:
        self.say(op="hello", versions=[1])
        return self.hear()

    def start(self) -> int:
        self.greet()
        self.say(op="start")
        return self.hear()["ident"]["pid"]

    def left(self) -> None:
        """Waits for its end."""
        select.select([self.pidfd], [], [])
        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)

    def close(self) -> None:
        self.connection.close()
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.close(self.pidfd)


@pytest.fixture
def start_shim(tmp_path):
    started = []

    def start(text: str = IDLE) -> Shim:
        started.append(Shim(tmp_path, text))
        return started[-1]

    yield start
    for one in started:
        ident = one.directory.read(wire.IDENT)
        if ident is not None:
            try:
                os.kill(ident["pid"], signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            one.close()
        except ProcessLookupError:
            os.close(one.pidfd)


@pytest.mark.behaviour("PROC-5")
def test_a_shim_imports_nothing_but_the_small_part_of_the_standard_library():
    source = Path(shim.__file__).parent
    imported = {
        line.split()[1].split(".")[0]
        for file in source.glob("*.py")
        for line in file.read_text().splitlines()
        if line.startswith(("import ", "from ")) and not line.startswith(("from .", "from __future__"))
    }
    assert imported <= set(sys.stdlib_module_names) - {"asyncio", "logging", "subprocess", "threading", "typing"}
    assert imported  # the search finds imports


@pytest.mark.behaviour("PROC-5")
def test_a_shim_needs_at_most_12_mb(start_shim):
    one = start_shim()
    one.start()
    pid = one.directory.read(wire.IDENT)["shim_pid"]
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert int(status["VmRSS"].split()[0]) <= 12 * 1024
    assert status["Threads"].strip() == "1"


@pytest.mark.behaviour("PROC-5")
def test_a_shim_hangs_up_on_a_daemon_that_speaks_none_of_its_versions(start_shim):
    one = start_shim()
    one.say(op="hello", versions=[99])
    assert one.hear() is None


@pytest.mark.behaviour("PROC-5")
def test_a_shim_obeys_nobody_who_has_not_greeted_it(start_shim):
    one = start_shim()
    one.say(op="start")
    assert one.hear() is None
    one.left()
    assert one.directory.read(wire.IDENT) is None


@pytest.mark.behaviour("PROC-5", "PROC-7")
def test_an_engine_outlives_its_daemon_and_a_new_one_hears_of_it(start_shim):
    one = start_shim()
    pid = one.start()
    one.connection.close()
    one.connection = one.connect()
    state = one.greet()
    assert state["ident"]["pid"] == pid
    assert (state["exit"], state["empty"]) == (None, False)


@pytest.mark.behaviour("PROC-5", "PROC-7")
def test_a_shim_without_daemon_records_the_exit_and_leaves(start_shim):
    one = start_shim()
    pid = one.start()
    one.connection.close()
    os.kill(pid, signal.SIGSEGV)
    one.left()
    record = one.directory.read(wire.EXIT)
    assert (record["pid"], record["signal"], record["exit_code"]) == (pid, signal.SIGSEGV, None)


@pytest.mark.behaviour("PROC-5")
def test_a_shim_ignores_the_signals_that_end_daemons(start_shim):
    one = start_shim()
    pid = one.start()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.pidfd_send_signal(one.pidfd, number)
    one.say(op="hello", versions=[1])
    assert one.hear()["ident"]["pid"] == pid


@pytest.mark.behaviour("PROC-5")
def test_a_shim_told_to_quit_stays_as_long_as_the_engine_runs(start_shim):
    one = start_shim()
    pid = one.start()
    one.say(op="quit")
    assert one.greet()["ident"]["pid"] == pid
    os.kill(pid, signal.SIGKILL)
    assert one.hear() == {"event": "exit", "exit": one.directory.read(wire.EXIT), "empty": True}
    one.left()


@pytest.mark.behaviour("PROC-5")
def test_a_shim_does_not_start_an_engine_twice(start_shim):
    one = start_shim()
    one.start()
    one.say(op="start")
    assert one.hear()["event"] == "failed"


@pytest.mark.behaviour("PROC-5")
def test_a_record_is_in_place_as_soon_as_the_engine_has_been_reaped(start_shim):
    one = start_shim()
    for _ in range(20):  # the chore that clears the last life's record must never take this life's
        pid = one.start()
        os.kill(pid, signal.SIGKILL)
        assert one.hear()["exit"] == one.directory.read(wire.EXIT)
        assert one.directory.read(wire.EXIT)["pid"] == pid
    one.say(op="quit")
    one.left()
    assert one.directory.read(wire.EXIT)["pid"] == pid


@pytest.mark.behaviour("PROC-5")
def test_the_socket_is_for_its_owner_only(start_shim):
    one = start_shim()
    assert (one.directory.path / wire.SOCK).stat().st_mode & 0o777 == 0o600
    assert one.directory.path.stat().st_mode & 0o777 == 0o700


@pytest.mark.behaviour("PROC-5")
def test_a_socket_path_may_be_longer_than_the_kernel_allows(tmp_path):
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    one = Shim(deep, IDLE)
    assert one.greet()["event"] == "hello"
    one.connection.close()
    one.left()
    os.close(one.pidfd)


@pytest.mark.behaviour("LIVE-3")
@pytest.mark.parametrize(
    ("text", "kills"),
    [
        ("low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 0\n", 3),
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", 2),
        ("low 0\n", 0),
    ],
)
def test_oom_kills_are_counted_in_the_files_of_both_cgroup_versions(tmp_path, text, kills):
    (tmp_path / "events").write_text(text)
    assert oom.kills(str(tmp_path / "events")) == kills
    assert oom.kills(str(tmp_path / "missing")) == oom.kills(None) == 0


@pytest.mark.behaviour("PROC-5")
def test_a_record_is_replaced_as_a_whole(tmp_path):
    path = str(tmp_path / "record")
    assert records.read(path) is None
    records.write(path, {"generation": 1}, durable=True)
    (tmp_path / "record.new").write_text('{"gener')  # what a crash in the middle of a write leaves
    assert records.read(path) == {"generation": 1}
    records.write(path, {"generation": 2}, durable=False)
    assert records.read(path) == {"generation": 2}

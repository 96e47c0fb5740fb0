"""The daemon itself: how it ends and comes back, what it reads again, what it tells to whom."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import grpc
import psutil
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from poolmgr.client import CallError, Client
from poolmgr.client.errors import call_error
from poolmgr.v1 import lease_pb2
from poolmgr.v1 import pool_pb2 as pb
from poolmgr.v1.lease_pb2_grpc import LeaseServiceStub
from poolmgr.v1.pool_pb2_grpc import PoolServiceStub
from tests.e2e.daemon import BRISK, Daemon, eventually
from tests.e2e.engines import SCRIPT, ask, scripted, tell

pytestmark = pytest.mark.e2e

Health = health_pb2.HealthCheckResponse


def ready(daemon: Daemon, pool_id: str = "a", **fields: object) -> pb.Pool:
    with daemon.client() as client:
        client.create_pool(pool_id, scripted(**fields))
        return client.preload(pool_id, wait=15)


def shim_of(daemon: Daemon) -> psutil.Process:
    (shim,) = [p for p in daemon.family() if any(word.endswith("/shim") for word in p.cmdline())]
    return shim


# Its end and its return.


@pytest.mark.behaviour("PROC-8", "PROC-7")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_engines_outlive_the_daemon_and_the_next_one_takes_them_over(own: Daemon, number: signal.Signals) -> None:
    pool = ready(own.start())
    assert own.terminate(number) == (0 if number == signal.SIGTERM else -number)
    assert ask(pool.endpoint, "/v1/completions", {"prompt": "x"})[0] == 200  # nobody manages it, and it serves
    own.start()
    after = own.until("a", lambda p: p.ready)
    assert (after.pid, after.endpoint, after.restart_count, after.generation) == (pool.pid, pool.endpoint, 0, 1)
    with own.client() as client:
        with client.lease("a", holder="e2e") as lease:
            assert ask(lease.endpoint, "/v1/completions", {"prompt": "x"})[0] == 200
            assert client.get_pool("a").state == pb.Pool.READY  # nor is it replaced a moment later
        assert client.stop("a", wait=10).state == pb.Pool.STOPPED
        assert not psutil.pid_exists(pool.pid)
    assert own.shutdown() == 0 and own.family() == []


@pytest.mark.behaviour("PROC-7", "LIVE-3")
def test_the_death_of_an_engine_that_was_taken_over_is_told_and_mended_as_any_other(own: Daemon) -> None:
    pool = ready(own.start())
    own.terminate(signal.SIGKILL)
    own.start().until("a", lambda p: p.ready)
    tell(pool.endpoint, exit=9)
    after = own.until("a", lambda p: p.ready and p.pid != pool.pid)
    assert (after.last_error.reason, after.last_error.exit_code, after.restart_count) == ("EXIT_CODE", 9, 1)
    assert after.endpoint == pool.endpoint
    assert own.shutdown() == 0 and own.family() == []


@pytest.mark.behaviour("PROC-6", "PROC-7", "RST-8")
def test_an_engine_that_died_while_no_daemon_ran_is_counted_once_and_started_again_where_it_is_wanted(
    own: Daemon,
) -> None:
    wanted, unwanted = ready(own.start(), "wanted"), ready(own, "unwanted", preload=True)
    with own.client() as client:
        client.stop("unwanted", wait=10)
    own.terminate(signal.SIGKILL)
    os.kill(wanted.pid, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(wanted.pid), 10)
    for _ in range(2):  # a second daemon finds nothing to count again
        own.start()
        pool = own.until("wanted", lambda p: p.ready)
        assert pool.pid != wanted.pid
        assert (pool.restart_count, pool.last_error.reason) == (1, "SIGNAL")
        with own.client() as client:
            assert client.get_pool("unwanted").state == pb.Pool.STOPPED
        own.terminate(signal.SIGKILL)
    assert unwanted.pid


@pytest.mark.behaviour("PROC-5")
def test_the_death_of_a_shim_harms_no_engine_and_hides_no_crash(own: Daemon) -> None:
    pool = ready(own.start())
    shim = shim_of(own)
    shim.kill()
    eventually(lambda: not shim.is_running() or shim.status() == psutil.STATUS_ZOMBIE, 5)
    with own.client() as client:
        assert client.get_pool("a").pid == pool.pid and ask(pool.endpoint, "/health")[0] == 200
    os.kill(pool.pid, signal.SIGSEGV)
    after = own.until("a", lambda p: p.ready and p.pid != pool.pid, 20)
    assert after.last_error.reason == "SIGNAL" and after.last_error.signal == signal.SIGSEGV
    assert shim_of(own).pid != shim.pid
    assert own.shutdown() == 0 and own.family() == []


@pytest.mark.behaviour("PROC-8", "PROC-3")
def test_stop_engines_ends_every_engine_and_its_shim_before_the_daemon(own: Daemon) -> None:
    own.start()
    pools = [ready(own, f"p{n}") for n in range(3)]
    with own.client() as client:
        assert client.shutdown(stop_engines=True).engines_left_running == 0
    assert own.process is not None and own.process.wait(20) == 0
    assert own.family() == [] and not any(psutil.pid_exists(p.pid) for p in pools)


@pytest.mark.behaviour("PROC-8")
def test_a_shutdown_says_how_many_engines_go_on(own: Daemon) -> None:
    ready(own.start())
    with own.client() as client:
        assert client.shutdown().engines_left_running == 1
    assert own.process is not None and own.process.wait(20) == 0
    (engine,) = [p for p in own.family() if SCRIPT in p.cmdline()]
    assert engine.is_running()
    assert own.start().shutdown() == 0 and own.family() == []


# What it reads again.


def declare(file: Path, **pools: str) -> None:
    """Writes a configuration with these pools of the scripted engine; each value is more TOML of its table."""
    tables = [
        f'[pools.{name}]\nengine = "COMMAND"\ncommand = "{sys.executable}"\n'
        f'args = ["-I", "-S", "{SCRIPT}", "--port", "{{port}}"]\n{more}\n'
        f'[pools.{name}.readiness]\nkind = "HTTP"\npath = "/health"\n'
        for name, more in pools.items()
    ]
    file.write_text("\n".join(tables))


@pytest.mark.behaviour("CFG-3")
def test_sighup_applies_the_difference_of_the_declared_pools_and_touches_no_pool_of_the_api(
    own: Daemon, tmp_path: Path
) -> None:
    own.config = tmp_path / "pools.toml"
    declare(own.config, stays="preload = true", goes="", changes="slots = 1")
    own.start()
    stays, mine = own.until("stays", lambda p: p.ready), ready(own, "mine")
    declare(own.config, stays="preload = true", changes="slots = 3", comes="preload = true")
    offset = own.log_size()
    os.kill(own.pid, signal.SIGHUP)
    line = own.wait_for_log("config_reloaded", offset)
    assert (line["pools_created"], line["pools_updated"], line["pools_deleted"]) == (["comes"], ["changes"], ["goes"])
    with own.client() as client:
        assert own.until("comes", lambda p: p.ready).origin == "config"
        eventually(lambda: {p.pool_id for p in client.list_pools()} == {"stays", "changes", "comes", "mine"}, 10)
        assert client.get_pool("changes").slots_total == 3
        assert client.get_pool("stays").pid == stays.pid and client.get_pool("mine").pid == mine.pid
        assert client.get_pool("mine").origin == "api"
    assert own.shutdown() == 0


@pytest.mark.behaviour("CFG-3", "CFG-1")
@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("[pools.a]\nslotz = 2\n", "'slots'"),
        ("[pools\n", "TOML"),
        ('[pools.b]\nengine = "COMMAND"\ncommand = "/no/such/engine"\n', "/no/such/engine"),
        ('[pools.mine]\nengine = "COMMAND"\ncommand = "/bin/true"\n', "mine"),
    ],
    ids=["unknown key", "no TOML", "cannot run", "belongs to the API"],
)
def test_a_bad_file_changes_nothing_and_says_why(own: Daemon, tmp_path: Path, more: str, named: str) -> None:
    own.config = tmp_path / "pools.toml"
    own.config.write_text("")
    own.start()
    with own.client() as client:
        client.create_pool("mine", scripted())
        before = client.status().revision
        own.config.write_text('[pools.good]\nengine = "COMMAND"\ncommand = "/bin/true"\n' + more)
        with pytest.raises(CallError, match=named) as refused:
            client.reload_config()
        assert refused.value.reason in ("INVALID_CONFIG", "EXECUTABLE_NOT_FOUND", "POOL_EXISTS")
        offset = own.log_size()
        os.kill(own.pid, signal.SIGHUP)
        assert named in str(own.wait_for_log("config_reload_refused", offset)["message"])
        assert [p.pool_id for p in client.list_pools()] == ["mine"] and client.status().revision == before


@pytest.mark.behaviour("CFG-3", "CFG-1")
def test_a_reload_can_be_tried_first_and_tells_what_only_a_restart_takes_up(own: Daemon, tmp_path: Path) -> None:
    own.config = tmp_path / "pools.toml"
    own.config.write_text("")
    own.start()
    own.config.write_text('[leases]\nmax_waiters = 7\n[pools.new]\nengine = "COMMAND"\ncommand = "/bin/true"\n')
    with own.client() as client:
        tried = client.reload_config(validate_only=True)
        assert list(tried.pools_created) == ["new"] and client.list_pools() == []
        done = client.reload_config()
        assert (list(done.pools_created), list(done.restart_required)) == (["new"], ["leases.max_waiters"])
        assert [p.pool_id for p in client.list_pools()] == ["new"]
        assert not client.reload_config().pools_created


@pytest.mark.behaviour("CFG-1", "CFG-2")
def test_the_configuration_is_shown_with_the_origin_of_each_value(daemon: Daemon, client: Client) -> None:
    values = {value.key: (value.value, value.origin) for value in client.config().values}
    assert values["supervision.readiness_interval_ms"] == ("20", "flag")
    assert values["supervision.start_timeout_secs"] == ("120.0", "default")


# Whom it answers.


@pytest.mark.behaviour("PRE-9")
def test_a_client_that_knows_no_protos_finds_and_calls_everything_by_reflection(
    daemon: Daemon, client: Client, pool_id: str
) -> None:
    client.create_pool(pool_id, scripted(slots=3))
    with grpc.insecure_channel(daemon.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        names = set(database.get_services())
        assert {f"poolmgr.v1.{n}Service" for n in ("Pool", "Lease", "Engine", "Admin")} <= names
        assert "grpc.health.v1.Health" in names
        pool = descriptor_pool.DescriptorPool(database)
        method = pool.FindServiceByName("poolmgr.v1.PoolService").FindMethodByName("GetPool")
        request, answer = (message_factory.GetMessageClass(t) for t in (method.input_type, method.output_type))
        assert answer is not pb.Pool
        call = channel.unary_unary("/poolmgr.v1.PoolService/GetPool", request.SerializeToString, answer.FromString)
        found = call(request(pool_id=pool_id), timeout=10)
    assert (found.pool_id, found.spec.slots, found.state) == (pool_id, 3, pb.Pool.PENDING)


@pytest.mark.behaviour("PRE-9")
def test_health_is_told_of_the_daemon_and_of_each_pool_and_watched(
    daemon: Daemon, client: Client, pool_id: str
) -> None:
    client.create_pool(pool_id, scripted())
    with grpc.insecure_channel(daemon.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def check(service: str) -> int:
            return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status)

        assert check("") == Health.SERVING and check(f"pool/{pool_id}") == Health.NOT_SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            check("pool/nobody")
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=f"pool/{pool_id}"), timeout=30)
        assert next(watch).status == Health.NOT_SERVING
        client.preload(pool_id)
        assert next(watch).status == Health.SERVING
        client.stop(pool_id)
        assert next(watch).status == Health.NOT_SERVING
        client.delete(pool_id)
        assert next(watch).status == Health.SERVICE_UNKNOWN
        watch.cancel()


@pytest.mark.behaviour("RST-8")
def test_a_correlation_id_is_taken_and_told_back_or_made(daemon: Daemon) -> None:
    with grpc.insecure_channel(daemon.address) as channel:
        get = PoolServiceStub(channel).GetPool

        def told(*metadata: tuple[str, str]) -> tuple[str, CallError]:
            with pytest.raises(grpc.RpcError) as caught:
                get(pb.GetPoolRequest(pool_id="nobody"), metadata=metadata, timeout=10)
            return dict(caught.value.trailing_metadata())["correlation-id"], call_error(caught.value, daemon.address)

        for key in ("correlation-id", "x-correlation-id"):
            mine = uuid.uuid4().hex
            echoed, error = told((key, mine))
            assert echoed == mine and error.metadata["correlation_id"] == mine
        (one, _), (other, _) = told(), told()
        assert one and other and one != other
        _, call = PoolServiceStub(channel).ListPools.with_call(
            pb.ListPoolsRequest(), metadata=(("correlation-id", "well"),), timeout=10
        )
        assert dict(call.trailing_metadata())["correlation-id"] == "well"


@pytest.mark.behaviour("LEASE-5")
def test_more_calls_at_once_than_the_limit_are_refused_and_the_others_go_on(tmp_path: Path) -> None:
    limit = 4
    daemon = Daemon(tmp_path, {**BRISK, "server.max_concurrent_rpcs": limit})
    try:
        ready(daemon.start())
        with grpc.insecure_channel(daemon.address) as channel:
            acquire = LeaseServiceStub(channel).AcquireLease
            held = acquire(lease_pb2.AcquireLeaseRequest(pool_id="a", holder="holder"), timeout=10).lease
            waiting = [
                acquire.future(
                    lease_pb2.AcquireLeaseRequest(pool_id="a", holder=f"w{n}", wait=Duration(seconds=60)), timeout=60
                )
                for n in range(2 * limit)
            ]
            eventually(lambda: sum(call.done() for call in waiting) == limit, 10)
            refused = [call for call in waiting if call.done()]
            assert {call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            for call in waiting:
                call.cancel()
            client = Client(daemon.address)
            eventually(lambda: nobody_waits(client), 10)
            assert [lease.lease_id for lease in client.list_leases("a")] == [held.lease_id]
            client.close()
        assert daemon.shutdown() == 0
    finally:
        daemon.destroy()


def nobody_waits(client: Client) -> bool:
    """False also while the daemon refuses to say."""
    try:
        return client.get_pool("a").waiting == 0
    except CallError as error:
        if error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return False


# Whom it tells.


@contextmanager
def watching(daemon: Daemon, **request: object) -> Iterator[Iterator[pb.WatchPoolsResponse]]:
    with grpc.insecure_channel(daemon.address) as channel:
        call = PoolServiceStub(channel).WatchPools(pb.WatchPoolsRequest(**request), timeout=30)  # type: ignore[arg-type]
        yield call
        call.cancel()


def revision_of(answer: pb.WatchPoolsResponse) -> int:
    kind = answer.WhichOneof("event")
    return answer.bookmark if kind == "bookmark" else getattr(answer, str(kind)).revision


def until_deleted(changes: Iterator[pb.WatchPoolsResponse], pool_id: str) -> list[pb.WatchPoolsResponse]:
    seen = []
    for change in changes:
        seen.append(change)
        if change.delete.pool_id == pool_id:
            return seen
    raise AssertionError("the watch ended")


def live_through(client: Client, pool_id: str) -> None:
    """Many changes of one pool, and others' in between."""
    client.create_pool(pool_id, scripted())
    client.create_pool(f"{pool_id}-b", scripted())
    client.preload(pool_id, wait=10)
    with client.lease(pool_id, holder="e2e"):
        client.delete(f"{pool_id}-b")
    client.stop(pool_id, wait=10)
    client.delete(pool_id)


def test_a_watcher_gets_a_snapshot_and_then_every_revision_in_order_without_a_gap(
    daemon: Daemon, client: Client
) -> None:
    with watching(daemon) as changes:
        snapshot = next(changes)
        assert snapshot.WhichOneof("event") == "snapshot"
        live_through(client, "watched")
        seen = until_deleted(changes, "watched")
    revisions = [revision_of(change) for change in seen]
    first = snapshot.snapshot.revision + 1
    assert revisions == list(range(first, first + len(revisions))) and len(revisions) > 10
    states = [change.upsert.state for change in seen if change.upsert.pool_id == "watched"]
    order = [pb.Pool.PENDING, pb.Pool.PROVISIONING, pb.Pool.STARTING, pb.Pool.READY, pb.Pool.STOPPING, pb.Pool.STOPPED]
    assert sorted(set(states), key=states.index) == order
    # Again from the middle: what is told is what was told then.
    middle = revisions[len(revisions) // 2]
    with watching(daemon, from_revision=middle) as changes:
        assert until_deleted(changes, "watched") == [c for c in seen if revision_of(c) >= middle]


def test_a_watcher_of_one_pool_is_told_of_it_alone_and_how_far_it_is(daemon: Daemon, client: Client) -> None:
    client.create_pool("one", scripted())
    with watching(daemon, pool_id="one") as changes:
        assert [pool.pool_id for pool in next(changes).snapshot.pools] == ["one"]
        client.create_pool("other", scripted())
        last = client.get_pool("other").revision
        answer = next(changes)
        assert answer.WhichOneof("event") == "bookmark" and answer.bookmark >= last
        client.delete("other")
        client.delete("one")
        seen = until_deleted(changes, "one")
    assert {c.upsert.pool_id for c in seen if c.HasField("upsert")} <= {"one"}
    assert not any(c.delete.pool_id == "other" for c in seen)


def test_a_watcher_from_before_the_daemons_last_start_is_told_to_begin_anew(own: Daemon) -> None:
    pool = ready(own.start())
    own.terminate(signal.SIGKILL)
    own.start()
    with own.client() as client:
        status = client.status()
        assert status.epoch == (pool.revision >> 40) + 1 == status.revision >> 40
    for stale in (pool.revision, status.revision + 1000):
        with watching(own, from_revision=stale) as changes:
            resync, snapshot = next(changes), next(changes)
        assert resync.resync.reason == "EPOCH_CHANGED"
        assert [p.pool_id for p in snapshot.snapshot.pools] == ["a"] and snapshot.snapshot.revision > pool.revision
    assert own.shutdown() == 0


@pytest.mark.behaviour("PROC-1")
def test_the_log_of_an_engine_is_followed_line_by_line_across_its_restart(
    daemon: Daemon, client: Client, pool_id: str
) -> None:
    client.create_pool(pool_id, scripted())
    with pytest.raises(CallError) as none_yet:
        next(client.tail_logs(pool_id))
    assert none_yet.value.reason == "POOL_STATE"
    pool = client.preload(pool_id, wait=10)
    lines = client.tail_logs(pool_id, lines=1, follow=True)
    assert next(lines) == "model loaded"
    tell(pool.endpoint, log="first\nsecond")
    assert [next(lines), next(lines)] == ["first", "second"]
    tell(pool.endpoint, exit=1)
    assert next(lines) == "ending: exit 1"
    assert next(lines).startswith("scripted engine pid=")
    daemon.until(pool_id, lambda p: p.ready)
    client.delete(pool_id)
    assert list(lines)[-1] == "ending: exit 0"  # the end of the log is the end of the stream


@pytest.mark.behaviour("RST-8", "PRE-9")
def test_each_step_of_a_pools_life_is_a_line_in_the_log_with_its_evidence(own: Daemon) -> None:
    pool = ready(own.start())
    os.kill(pool.pid, signal.SIGKILL)
    own.until("a", lambda p: p.ready and p.restart_count == 1)
    assert own.shutdown() == 0
    own.wait_for_log("daemon_stopped", engines_left_running=0)
    of_pool = [line for line in own.log() if line.get("pool_id") == "a"]
    assert all({"ts", "level", "engine", "generation", "restart_count"} <= line.keys() for line in of_pool)
    steps = [(line["old_state"], line["new_state"]) for line in of_pool if line["event"] == "pool_transition"]
    assert steps[:4] == [
        ("PENDING", "PROVISIONING"),
        ("PROVISIONING", "STARTING"),
        ("STARTING", "READY"),
        ("READY", "STOPPING"),
    ]
    assert all(before[1] == after[0] for before, after in pairwise(steps))
    (crashed,) = [line for line in of_pool if line["event"] == "engine_crashed"]
    assert (crashed["reason"], crashed["level"]) == ("SIGNAL", "warning") and crashed["uptime_seconds"] > 0
    (scheduled,) = [line for line in of_pool if line["event"] == "backoff_scheduled"]
    assert scheduled["failure_count"] == 1 and 10 <= scheduled["backoff_ms"] <= 30
    ready_lines = [line for line in of_pool if line["event"] == "pool_ready"]
    assert len(ready_lines) == 2 and ready_lines[0]["pid"] == pool.pid
    assert os.stat(own.state).st_mode & 0o777 == 0o700


@pytest.mark.behaviour("PROC-1", "PROC-5", "PRE-9")
def test_an_engine_is_listed_with_its_directory_which_is_its_users_alone(
    daemon: Daemon, client: Client, pool_id: str
) -> None:
    client.create_pool(pool_id, scripted(env={"GREETING": "hello"}))
    pool = client.preload(pool_id, wait=10)
    (engine,) = client.list_engines(pool_id)
    assert (engine.pid, engine.endpoint, engine.state) == (pool.pid, pool.endpoint, pb.Pool.READY)
    directory = Path(engine.directory)
    assert directory.is_dir() and directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "sock").stat().st_mode & 0o777 == 0o600
    process = psutil.Process(engine.pid)
    environment = process.environ()
    assert environment["GREETING"] == "hello" and environment["CUDA_VISIBLE_DEVICES"] == ""
    assert "HOME" not in environment and "VIRTUAL_ENV" not in environment  # built from empty
    assert os.getsid(engine.pid) == engine.pid
    assert os.readlink(f"/proc/{engine.pid}/fd/0") == "/dev/null"
    assert os.readlink(f"/proc/{engine.pid}/fd/1") == str(directory / "log")

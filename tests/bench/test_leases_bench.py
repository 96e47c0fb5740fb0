"""The judge of bench.leases: what its clients and its observer accept, and what turns them red."""

from __future__ import annotations

import os
import queue
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from bench import adoption, commits, leases, watchers
from bench.adoption import Adoption, Process, Truth
from bench.beside import Samples
from bench.commits import Commits, Counted
from bench.common import judge
from bench.leases import Calls, SessionRounds
from bench.load import Stretch, Target, WrongAnswerError
from bench.session_load import BATCHES, Holder, SessionLoad
from bench.watchers import Crowd, Watcher
from poolmgr.v1 import lease_pb2, pool_pb2

POOLS = ("one", "two", "three")


def below(report):
    values = {**report.figures, **report.ratios}
    return [bar.name for bar, _, met in judge(report.bars, values) if not met]


def reported(answered=0.4, session=25_000.0, echo=4_000.0, unary=2_600.0, busy=0.25):
    rounds = SessionRounds(
        [Stretch(session, 1.0, 0.2)] * 3, {16: [Stretch(echo, 1.0)] * 3, 64: [Stretch(1.0, 1.0)] * 3}
    )
    samples = Samples([Stretch(unary, 1.0)] * 3, [Stretch(echo, 1.0)] * 3)
    unary = {f"lease_{n}": samples for n in (1, 16, 64)}
    calls = Calls(unary, unary, Stretch(5000.0, busy), Stretch(5000.0, busy / 2))
    starts = [Adoption(0.3, 0.31)] * 49 + [Adoption(answered, answered + 0.01)]
    return leases.report(starts, rounds, Commits([0.06], [0.4]), calls)


def test_good_figures_meet_every_bar_under_the_names_that_were_agreed():
    report = reported()
    assert below(report) == []
    assert {"adopt_32_ms_p99", "session_pairs_per_s", "commit_ms_p50", "watch_1000x5_cpu_percent"} < set(report.figures)
    beside = {f"lease_vs_{peer}_{callers}" for peer in ("echo", "tuned_echo") for callers in (1, 16, 64)}
    assert set(report.ratios) == {"session_vs_echo", *beside}
    assert report.figures["full_commit_ms_p50"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        ({"answered": 2.01}, ["adopt_32_ms_p99"]),
        ({"session": 19_900.0}, ["session_vs_echo"]),
        ({"unary": 2_390.0}, ["lease_vs_echo_1", "lease_vs_echo_16", "lease_vs_echo_64"]),
        ({"busy": 0.301}, ["watch_1000x5_cpu_percent"]),
    ],
)
def test_one_bad_figure_is_below_its_own_bar_only(bad, names):
    assert below(reported(**bad)) == names


def test_a_session_is_compared_with_the_better_echo_of_its_own_round():
    session = [Stretch(60.0, 1.0), Stretch(50.0, 1.0), Stretch(90.0, 1.0)]
    echo = {16: [Stretch(10.0, 1.0), Stretch(2.0, 1.0), Stretch(1.0, 1.0)]}
    echo[64] = [Stretch(5.0, 1.0), Stretch(10.0, 1.0), Stretch(10.0, 1.0)]
    assert SessionRounds(session, echo).ratio == pytest.approx(6.0)


class ScriptedDaemon:
    """Answers batches of a session as the contract says, until `spoil` changes an answer."""

    def __init__(self, spoil=lambda response: None):
        self.fence = 10
        self.live = {}
        self.spoil = spoil
        self.request_ids = []

    def answer(self, data):
        request = lease_pb2.SessionRequest.FromString(data)
        response = lease_pb2.SessionResponse(batch_id=request.batch_id, done=True)
        for index, operation in enumerate(request.operations):
            self.operate(operation, response.results.add(index=index))
        self.spoil(response)
        return response.SerializeToString()

    def operate(self, operation, result):
        if operation.HasField("acquire"):
            self.fence += 1
            lease_id = f"{operation.acquire.pool_id}.{self.fence}"
            self.live[lease_id] = f"token {self.fence}"
            self.request_ids.append(operation.acquire.request_id)
            result.acquire.lease.MergeFrom(
                lease_pb2.Lease(
                    lease_id=lease_id,
                    pool_id=operation.acquire.pool_id,
                    fencing_token=self.fence,
                    token=self.live[lease_id],
                )
            )
        else:
            back = operation.release
            right = self.live.pop(back.lease_id, None) == back.token
            result.release.outcome = lease_pb2.Lease.RELEASED if right else lease_pb2.Lease.UNKNOWN


def test_a_holder_gives_back_exactly_what_it_was_given_and_counts_it():
    daemon, holder = ScriptedDaemon(), Holder(POOLS)
    for _ in range(2):
        ahead = [holder.wanted(), holder.wanted()]
        backs = [holder.answered(daemon.answer(batch)) for batch in ahead]
        assert len(daemon.live) == 6
        assert [holder.answered(daemon.answer(back)) for back in backs] == [None, None]
        assert daemon.live == {}
    assert holder.pairs == 12
    assert len(set(daemon.request_ids)) == 12


def spoiled_acquire(field, value):
    def spoil(response):
        result = response.results[1]
        if result.HasField("acquire"):
            setattr(result.acquire.lease, field, value)

    return spoil


def repeat_a_fence(response):
    if response.results[0].HasField("acquire"):
        response.results[1].acquire.lease.fencing_token = response.results[0].acquire.lease.fencing_token


def refuse_one(response):
    if response.results[1].HasField("acquire"):
        response.results[1].acquire.refusal.reason = lease_pb2.Refusal.POOL_FULL


def fail_one(response):
    response.results[1].error.reason = "STORE_UNAVAILABLE"


def leave_one_out(response):
    del response.results[1]


def go_on_later(response):
    response.done = False


def swap_two(response):
    response.results[0].index, response.results[1].index = 1, 0


def answer_another_batch(response):
    response.batch_id += 100


def release_twice(response):
    if response.results[1].HasField("release"):
        response.results[1].release.outcome = lease_pb2.Lease.ALREADY_RELEASED


@pytest.mark.parametrize(
    "spoil",
    [
        spoiled_acquire("pool_id", "three"),
        spoiled_acquire("fencing_token", 1),
        spoiled_acquire("token", ""),
        repeat_a_fence,
        refuse_one,
        fail_one,
        leave_one_out,
        go_on_later,
        swap_two,
        answer_another_batch,
        release_twice,
    ],
)
def test_a_session_that_answers_wrongly_once_is_not_measured(spoil):
    daemon, holder = ScriptedDaemon(spoil), Holder(POOLS)
    with pytest.raises(WrongAnswerError):
        holder.answered(daemon.answer(holder.answered(daemon.answer(holder.wanted()))))


def test_a_fence_that_an_earlier_batch_had_is_refused():
    daemon, holder = ScriptedDaemon(), Holder(POOLS)
    holder.answered(daemon.answer(holder.wanted()))
    daemon.fence = 12
    with pytest.raises(WrongAnswerError, match="after fencing number 13"):
        holder.answered(daemon.answer(holder.wanted()))


def upsert(revision):
    return pool_pb2.WatchPoolsResponse(upsert=pool_pb2.Pool(pool_id="one", revision=revision)).SerializeToString()


def snapshot(revision):
    return pool_pb2.WatchPoolsResponse(
        snapshot=pool_pb2.WatchPoolsResponse.Snapshot(revision=revision)
    ).SerializeToString()


def resync(revision):
    return pool_pb2.WatchPoolsResponse(
        resync=pool_pb2.WatchPoolsResponse.Resync(reason="TOO_SLOW", revision=revision)
    ).SerializeToString()


def test_a_watcher_follows_a_snapshot_and_every_revision_after_it():
    watcher = Watcher()
    for message in (snapshot(7), upsert(8), upsert(9)):
        watcher.take(message)
    assert watcher.revision == 9


@pytest.mark.parametrize(
    "messages",
    [
        [upsert(8)],
        [snapshot(7), upsert(9)],
        [snapshot(7), upsert(8), upsert(8)],
        [snapshot(7), upsert(7)],
        [snapshot(7), resync(8)],
        [snapshot(7), snapshot(8)],
    ],
)
def test_a_watcher_that_misses_or_repeats_a_change_is_not_measured(messages):
    watcher = Watcher()
    for message in messages[:-1]:
        watcher.take(message)
    with pytest.raises(WrongAnswerError):
        watcher.take(messages[-1])


@contextmanager
def serving(method, handler):
    """A gRPC server with one method of bytes; its target names this process."""
    service, _, name = method.strip("/").partition("/")
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield Target("scripted", os.getpid(), f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()


async def test_a_session_is_measured_against_a_real_stream_and_holds_nothing_between_stretches():
    daemon, requests = ScriptedDaemon(), []

    def session(stream, context):
        for data in stream:
            requests.append(data)
            yield daemon.answer(data)

    with serving("/poolmgr.v1.LeaseService/Session", grpc.stream_stream_rpc_method_handler(session)) as target:
        load = await SessionLoad.on(target, POOLS)
        assert len(requests) == 2 * BATCHES
        taken = await load.stretch(0.05)
        assert daemon.live == {}
        assert load.pairs == len(daemon.request_ids) == len(requests) // 2 * len(POOLS)
        assert taken.per_second > 0
        await load.close()


async def test_a_session_that_the_daemon_ends_is_not_measured():
    handler = grpc.stream_stream_rpc_method_handler(lambda stream, context: iter(()))
    with serving("/poolmgr.v1.LeaseService/Session", handler) as target, pytest.raises(WrongAnswerError):
        await SessionLoad.on(target, POOLS)


class ScriptedWatch:
    """Streams to watchers, each with a queue of its own."""

    def __init__(self):
        self.queues = []

    def watch(self, request, context):
        mine = queue.SimpleQueue()
        self.queues.append(mine)
        context.add_callback(lambda: mine.put(None))
        yield snapshot(7)
        yield from iter(mine.get, None)

    def send(self, message, to):
        for each in to:
            each.put(message)


@pytest.mark.parametrize("shared", [True, False])
async def test_a_change_counts_once_every_watcher_has_it(shared, monkeypatch):
    monkeypatch.setattr(watchers, "ARRIVAL_SECONDS", 0.2)
    scripted = ScriptedWatch()
    handler = grpc.unary_stream_rpc_method_handler(scripted.watch)
    with serving(watchers.METHOD, handler) as target:
        crowd = await Crowd.of(target, 3, shared)
        assert crowd.revision == 7
        scripted.send(upsert(8), scripted.queues)
        await crowd.has_seen(8)
        assert crowd.revision == 8
        scripted.send(upsert(9), scripted.queues[1:])
        with pytest.raises(WrongAnswerError, match="1 watchers have not seen"):
            await crowd.has_seen(9)
        scripted.send(upsert(10), scripted.queues[:1])
        with pytest.raises(WrongAnswerError, match="after revision 8"):
            await crowd.has_seen(10)
        await crowd.close()


ENGINES = frozenset({Process(41, 1000), Process(42, 1001)})
TRUTH = Truth(ENGINES, {"one": 41, "two": 42}, frozenset({"one.a", "two.b"}))


@pytest.mark.parametrize(
    "after",
    [
        Truth(frozenset({Process(41, 1000), Process(43, 2000)}), {"one": 41, "two": 43}, TRUTH.leases),
        Truth(frozenset({Process(41, 1000), Process(42, 2000)}), TRUTH.pids, TRUTH.leases),
        Truth(ENGINES | {Process(43, 2000)}, TRUTH.pids, TRUTH.leases),
        Truth(frozenset({Process(41, 1000)}), TRUTH.pids, TRUTH.leases),
        Truth(ENGINES, {"one": 42, "two": 41}, TRUTH.leases),
        Truth(ENGINES, {"one": 41}, TRUTH.leases),
        Truth(ENGINES, TRUTH.pids, frozenset({"one.a"})),
        Truth(ENGINES, TRUTH.pids, TRUTH.leases | {"two.c"}),
    ],
    ids=["restarted", "pid-reused", "doubled", "lost", "swapped", "forgotten", "lease-lost", "lease-doubled"],
)
def test_an_engine_or_lease_that_is_not_the_same_after_a_start_is_an_error(after):
    TRUTH.check(TRUTH)
    with pytest.raises(WrongAnswerError):
        after.check(TRUTH)


def test_the_first_truth_is_held_to_what_the_daemon_tells():
    lying = Truth(ENGINES, {"one": 41, "two": 99}, TRUTH.leases)
    with pytest.raises(WrongAnswerError):
        lying.check(lying)


def test_an_observer_sees_the_processes_with_the_mark_of_its_directory_and_no_others(tmp_path):
    def child(directory):
        return subprocess.Popen(["sleep", "infinity"], env={adoption.MARK: str(directory), "PATH": os.environ["PATH"]})

    ours, others = child(tmp_path), child(tmp_path / "other")
    try:
        assert {process.pid for process in adoption.observed(tmp_path)} == {ours.pid}
        ours.kill()
        ours.wait()
        assert adoption.observed(tmp_path) == frozenset()
    finally:
        for process in (ours, others):
            process.kill()
            process.wait()


def test_writes_of_leases_are_counted_by_the_batch_and_fsyncs_by_the_grant():
    lines = [
        '41 10.001 pwrite64(9</x/state/leases.0>, "...", 812, 4096) = 812',
        '41 10.002 pwrite64(9</x/state/leases.1>, "...", 812, 4096) = 812',
        '42 10.003 pwrite64(7</x/state/state.db-wal>, "...", 24, 0) = 24',
        "42 10.004 fdatasync(7</x/state/state.db-wal>) = 0",
        "43 10.005 +++ exited with 0 +++",
    ]
    assert commits.count(lines, pairs=64, batch=64) == Counted(writes_per_batch=1.0, syncs_per_1000_grants=1000 / 64)


async def test_a_recording_is_timed_on_the_shipped_store_and_is_found_there(tmp_path):
    taken = await commits.measure(tmp_path, POOLS, 2)
    assert (len(taken.batch), len(taken.full)) == (4, 2)
    assert min(taken.batch + taken.full) > 0
    written = b"".join((tmp_path / name).read_bytes() for name in ("leases.0", "leases.1"))
    assert written.count(b"three.") >= 4

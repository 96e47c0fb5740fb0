"""Whatever is asked wrongly gets a typed error, and leaves the host as it was: one table, one comparison."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from poolmgr.client import CallError, Client
from poolmgr.client.errors import call_error
from poolmgr.testing.gguf import write_tiny_llama
from poolmgr.v1 import admin_pb2, engine_pb2, lease_pb2
from poolmgr.v1 import pool_pb2 as pb
from tests.e2e.daemon import Daemon, eventually, processes_of
from tests.e2e.engines import COMPLETES, SCRIPT, free_port, scripted, stranger
from tests.e2e.inventory import Inventory, inventory, place_of_leaves

pytestmark = pytest.mark.e2e

POOL = "bad"
# One try, then a long wait: what a failed start leaves can be looked at.
ONE_TRY = {"backoff_initial_ms": 60_000, "start_timeout_secs": 1}
FIVE_MIB = 5 * 1024 * 1024
C = grpc.StatusCode


@dataclass
class Bench:
    """A serving daemon with one good pool, and the port that every bad pool prefers."""

    daemon: Daemon
    client: Client
    channel: grpc.Channel
    scratch: Path
    port: int = 0
    engine_ids: set[str] = field(default_factory=set)

    def inventory(self) -> Inventory:
        self.engine_ids |= {path.name for path in (self.daemon.state / "engines").iterdir()}
        return inventory(self.daemon, self.scratch, self.engine_ids)

    def file(self, name: str, content: bytes) -> Path:
        path = self.scratch / name
        path.write_bytes(content)
        return path

    def command(self, *flags: object, **fields: object) -> pb.PoolSpec:
        return scripted(*flags, **{"port": self.port, "supervision": ONE_TRY, **fields})  # type: ignore[arg-type]

    def model(self, path: str, **model: str) -> pb.PoolSpec:
        return pb.PoolSpec(engine=pb.ENGINE_LLAMACPP, model=pb.Model(path=path, **model), port=self.port)  # type: ignore[arg-type]

    @contextmanager
    def refuses(self, reason: str, code: grpc.StatusCode, *numbers: str) -> Iterator[None]:
        """The call within is refused with this reason, and with `numbers` among its metadata."""
        with pytest.raises(CallError) as caught:
            yield
        error = caught.value
        assert (error.reason, error.code) == (reason, code), error
        assert error.message and set(numbers) <= set(error.metadata), (error.message, error.metadata)

    def create(self, spec: pb.PoolSpec) -> None:
        self.client.create_pool(POOL, spec)

    def fails(self, spec: pb.PoolSpec, reason: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        """The pool is made, and its start fails with this reason: no process, never READY."""
        self.create(spec)
        self.client.preload(POOL)
        meanwhile()
        pool = self.daemon.until(POOL, lambda p: p.HasField("last_error") and p.state != pb.Pool.STOPPING)
        assert pool.last_error.reason == reason, pool.last_error
        assert pool.last_error.message and pool.state in (pb.Pool.BACKOFF, pb.Pool.PARKED)
        assert (pool.pid, pool.live, pool.ready, pool.endpoint, pool.slots_free) == (0, False, False, "", 0)
        left = self.inventory()  # PRE-8: at most its shim, which waits to start it again
        assert sum(SCRIPT in command for _, command in left.processes) == 1, left.processes
        self.client.delete(POOL)

    def does_not_start(self, reason: str, *named: str, **changes: object) -> None:
        """A second daemon with these changes ends at once, says `reason` and what is wrong, and makes nothing."""
        other = Daemon(**{"directory": self.scratch / "other", **changes})  # type: ignore[arg-type]
        address = str(changes.get("address", "127.0.0.1:0"))
        ended = subprocess.run(other.command(address), capture_output=True, text=True, timeout=20)
        assert ended.returncode == 2 and f"reason: {reason}" in ended.stderr, ended.stderr
        assert all(name in ended.stderr for name in named), ended.stderr
        assert "Traceback" not in ended.stderr and processes_of(other.state) == []
        assert not (self.scratch / "other").exists()


@pytest.fixture(scope="module")
def bench(daemon: Daemon, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with grpc.insecure_channel(daemon.address) as channel:
        bench = Bench(daemon, client, channel, tmp_path_factory.mktemp("scratch"))
        client.create_pool("good", scripted())
        assert client.preload("good", wait=10).ready
        # What a daemon opens on first use, it opens now: threads, imports, the write-ahead log.
        bench.port = free_port()
        bench.fails(bench.command("--crash-at", "load"), "EXIT_CODE")
        _every_rpc(bench, "good", lambda *_: None, only_reads=True)
        yield bench


# What a client or a file says wrongly. Each leaves nothing: no pool is made.


def no_executable(bench: Bench) -> None:
    with bench.refuses("EXECUTABLE_NOT_FOUND", C.FAILED_PRECONDITION, "command"):
        bench.create(bench.command(command="/no/such/engine"))


def no_model(bench: Bench) -> None:
    with bench.refuses("MODEL_NOT_FOUND", C.FAILED_PRECONDITION, "path", "errno"):
        bench.create(bench.model("/no/such/model.gguf"))


def model_that_is_text(bench: Bench) -> None:
    with bench.refuses("MODEL_INVALID", C.FAILED_PRECONDITION, "path", "size"):
        bench.create(bench.model(str(bench.file("notes.gguf", b"not a model, " * 100))))


def model_cut_short(bench: Bench) -> None:
    whole = bench.scratch / "whole.gguf"
    write_tiny_llama(whole)
    with bench.refuses("MODEL_INVALID", C.FAILED_PRECONDITION, "size", "tensors", "minimum"):
        bench.create(bench.model(str(bench.file("cut.gguf", whole.read_bytes()[:200]))))


def model_of_another_digest(bench: Bench) -> None:
    model = bench.scratch / "digest.gguf"
    write_tiny_llama(model)
    wrong = "sha256:" + hashlib.sha256(b"another").hexdigest()
    with bench.refuses("MODEL_DIGEST_MISMATCH", C.FAILED_PRECONDITION, "expected", "actual", "size"):
        bench.create(bench.model(str(model), digest=wrong))


def gpu_on_a_host_without(bench: Bench) -> None:
    with bench.refuses("GPU_REQUIRED", C.FAILED_PRECONDITION, "device_mask", "devices"):
        bench.create(bench.command(device_mask="0,1"))


def bad_pool_id(bench: Bench) -> None:
    with bench.refuses("INVALID_ARGUMENT", C.INVALID_ARGUMENT, "field", "value"):
        bench.client.create_pool("../../etc", bench.command())


def too_many_slots(bench: Bench) -> None:
    with bench.refuses("INVALID_ARGUMENT", C.INVALID_ARGUMENT, "field", "value", "high"):
        bench.create(bench.command(slots=1_000_000_000))


def port_that_is_none(bench: Bench) -> None:
    with bench.refuses("INVALID_ARGUMENT", C.INVALID_ARGUMENT, "field", "value", "high"):
        bench.create(bench.command(port=70_000))


def too_many_arguments(bench: Bench) -> None:
    with bench.refuses("INVALID_ARGUMENT", C.INVALID_ARGUMENT, "field", "value", "high"):
        bench.create(bench.command(*["x"] * 5000))


def lease_for_eleven_days(bench: Bench) -> None:
    with bench.refuses("INVALID_ARGUMENT", C.INVALID_ARGUMENT, "value", "low", "high"):
        bench.client.acquire("good", holder="e2e", ttl=1e6)


def wait_of_less_than_nothing(bench: Bench) -> None:
    request = lease_pb2.AcquireLeaseRequest(pool_id="good", holder="e2e", wait=Duration(seconds=-1))
    _expect(bench, "LeaseService/AcquireLease", request, lease_pb2.AcquireLeaseResponse, C.INVALID_ARGUMENT)


def page_of_a_million(bench: Bench) -> None:
    for method, request, answer in (
        ("PoolService/ListPools", pb.ListPoolsRequest(page_size=10**6), pb.ListPoolsResponse),
        ("LeaseService/ListLeases", lease_pb2.ListLeasesRequest(page_size=10**6), lease_pb2.ListLeasesResponse),
        ("EngineService/ListEngines", engine_pb2.ListEnginesRequest(page_size=10**6), engine_pb2.ListEnginesResponse),
    ):
        _expect(bench, method, request, answer, C.INVALID_ARGUMENT)


def unknown_pool_in_every_rpc(bench: Bench) -> None:
    def refused(code: grpc.StatusCode | None, name: str, answer: object) -> None:
        if name == "AcquireLease":
            assert isinstance(answer, lease_pb2.AcquireLeaseResponse)
            assert answer.refusal.reason == lease_pb2.Refusal.POOL_NOT_FOUND
        else:
            # Nothing in an empty registration is a pool that is not there.
            assert code is (C.INVALID_ARGUMENT if name == "RegisterEngine" else C.NOT_FOUND), name

    assert _every_rpc(bench, "nobody", refused) >= 13


def second_spec_for_one_id(bench: Bench) -> None:
    with bench.refuses("POOL_EXISTS", C.ALREADY_EXISTS, "pool_id", "generation"):
        bench.client.create_pool("good", scripted("--load-seconds", 1))


def message_too_large(bench: Bench) -> None:
    """gRPC itself refuses it before a byte is parsed, with its own words: both numbers are in them."""
    call = bench.channel.unary_unary("/poolmgr.v1.PoolService/CreatePool")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\x0a" + b"x" * FIVE_MIB, timeout=10)
    assert caught.value.code() is C.RESOURCE_EXHAUSTED
    assert str(FIVE_MIB + 1) in caught.value.details() and str(4 * 1024 * 1024) in caught.value.details()


def garbage_on_the_port(bench: Bench) -> None:
    host, _, port = bench.daemon.address.rpartition(":")
    hello = bytes.fromhex("16030100c8010000c40303") + bytes(189)  # a TLS ClientHello's first record
    for noise in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(range(256)) * 64,
        hello,
        b"",
        b"PRI * HTTP/2.0\r\n\r\nSM",
    ):
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(noise)
            assert bench.client.get_pool("good").ready  # while the noise is on the line


def bytes_that_are_no_message(bench: Bench) -> None:
    call = bench.channel.unary_unary("/poolmgr.v1.PoolService/GetPool")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff" * 100, timeout=10)
    assert caught.value.code() in (C.INTERNAL, C.UNKNOWN, C.INVALID_ARGUMENT)
    assert "Traceback" not in caught.value.details()


# What the daemon is started with wrongly: it ends with 2, a reason, and what is wrong by name.


def bad_address(bench: Bench) -> None:
    for address in ("0.0.0.0:9200", "nowhere", "127.0.0.1:70000", "[::1"):
        bench.does_not_start("INVALID_CONFIG", address, address=address)


def unknown_key(bench: Bench) -> None:
    config = bench.file("typo.toml", b"[supervision]\nstart_timeout_sec = 5\n")
    bench.does_not_start("INVALID_CONFIG", "'start_timeout_sec'", "'start_timeout_secs'", "typo.toml:2", config=config)
    bench.does_not_start("INVALID_CONFIG", "server.adr", "server.addr", settings={"server.adr": "x"})


def second_daemon_on_the_address(bench: Bench) -> None:
    bench.does_not_start("ADDRESS", bench.daemon.address, address=bench.daemon.address)


def second_daemon_on_the_state(bench: Bench) -> None:
    other = Daemon(bench.daemon.directory)
    ended = subprocess.run(other.command(), capture_output=True, text=True, timeout=20)
    assert ended.returncode == 2 and "reason: STATE_IN_USE" in ended.stderr and str(bench.daemon.pid) in ended.stderr


# What only shows when an engine is started. The pool is there, failed; its deletion leaves nothing.


def dies_in_load_with_a_code(bench: Bench) -> None:
    bench.fails(bench.command("--crash-at", "load", "--exit-code", 42), "EXIT_CODE")


def dies_in_load_by_a_signal(bench: Bench) -> None:
    bench.fails(bench.command("--crash-at", "load", "--signal", 11), "SIGNAL")


def never_ready(bench: Bench) -> None:
    bench.fails(bench.command("--never-ready"), "START_FAILED")


def lies_that_it_is_ready(bench: Bench) -> None:
    bench.fails(bench.command("--lie-ready", readiness=COMPLETES), "START_FAILED")


def leaves_children_and_dies(bench: Bench) -> None:
    bench.fails(bench.command("--leave-children", 2, "--escape", "--crash-at", "load"), "EXIT_CODE")


def insists_on_a_port_that_is_taken(bench: Bench) -> None:
    taken = free_port()
    with stranger(taken):
        bench.fails(bench.command(port_flag=str(taken)), "PORT_TAKEN")


def stranger_answers_on_its_port(bench: Bench) -> None:
    with later_stranger(bench) as comes:
        bench.fails(bench.command("--no-listen"), "PORT_TAKEN", meanwhile=comes)


def not_an_executable_format(bench: Bench) -> None:
    program = bench.file("program", b"\x7fELF but not really")
    program.chmod(0o755)
    bench.fails(bench.command(command=str(program)), "SPAWN_FAILED")


REFUSED = (
    no_executable, no_model, model_that_is_text, model_cut_short, model_of_another_digest, gpu_on_a_host_without,
    bad_pool_id, too_many_slots, port_that_is_none, too_many_arguments, lease_for_eleven_days,
    wait_of_less_than_nothing, page_of_a_million, unknown_pool_in_every_rpc, second_spec_for_one_id,
    message_too_large, garbage_on_the_port, bytes_that_are_no_message, bad_address, unknown_key,
    second_daemon_on_the_address, second_daemon_on_the_state, dies_in_load_with_a_code, dies_in_load_by_a_signal,
    never_ready, lies_that_it_is_ready, leaves_children_and_dies, insists_on_a_port_that_is_taken,
    stranger_answers_on_its_port, not_an_executable_format,
)  # fmt: skip


@pytest.mark.behaviour("PRE-1", "PRE-2", "PRE-4", "PRE-6", "PRE-8", "CFG-1", "SEC-1", "SEC-3", "LEASE-6", "DRN-5")
@pytest.mark.parametrize("ask_wrongly", REFUSED, ids=lambda function: function.__name__)
def test_bad_input_gets_a_typed_error_and_leaves_the_host_as_it_was(
    bench: Bench, ask_wrongly: Callable[[Bench], None]
) -> None:
    before, bench.port = bench.inventory(), free_port()
    ask_wrongly(bench)
    assert_as_before(bench, before)
    assert_port_is_free(bench)
    assert bench.client.get_pool("good").ready


@pytest.mark.parametrize("leak", ["process", "file", "row", "descriptor", "leaf"])
def test_the_comparison_sees_each_kind_of_thing_that_is_left_behind(bench: Bench, leak: str) -> None:
    before = bench.inventory()
    with (
        planted(bench, leak, before),
        pytest.raises(AssertionError, match={"row": "rows", "leaf": "leaves"}.get(leak, leak)),
    ):
        assert_as_before(bench, before, seconds=0.3)
    assert_as_before(bench, before)


@pytest.mark.behaviour("PRE-5")
def test_the_port_check_sees_a_port_that_is_still_reserved(bench: Bench) -> None:
    bench.port = free_port()
    bench.client.create_pool("holder", scripted(port=bench.port))
    assert bench.client.preload("holder", wait=10).endpoint.endswith(f":{bench.port}")
    with pytest.raises(AssertionError):
        assert_port_is_free(bench)
    bench.client.delete("holder")
    assert_port_is_free(bench)


def assert_as_before(bench: Bench, before: Inventory, seconds: float = 5.0) -> None:
    """A connection's end and a directory's removal may take a moment after the answer; then all must be equal."""
    eventually(lambda: not before.difference(bench.inventory()), seconds, lambda: before.difference(bench.inventory()))


def assert_port_is_free(bench: Bench) -> None:
    """A pool that would like the port gets it."""
    try:
        bench.client.create_pool("probe", scripted(port=bench.port))
        assert bench.client.preload("probe", wait=10).endpoint == f"127.0.0.1:{bench.port}"
    finally:
        bench.client.delete("probe")


@contextmanager
def planted(bench: Bench, leak: str, before: Inventory) -> Iterator[None]:
    """Leaves one thing behind, for as long as the block lasts."""
    state = bench.daemon.state
    if leak == "process":
        sleeper = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()", str(state)])
        yield
        sleeper.kill()
        sleeper.wait()
    elif leak == "file":
        (state / "engines" / "stray").mkdir()
        yield
        (state / "engines" / "stray").rmdir()
    elif leak == "row":
        bench.client.create_pool("stray", scripted())
        yield
        bench.client.delete("stray")
    elif leak == "descriptor":
        host, _, port = bench.daemon.address.rpartition(":")
        with socket.create_connection((host, int(port))):
            yield
    elif leak == "leaf":
        leaf = place_of_leaves(bench.daemon.pid) / next(iter(bench.engine_ids - before.leaves))
        leaf.mkdir()
        yield
        leaf.rmdir()


@contextmanager
def later_stranger(bench: Bench) -> Iterator[Callable[[], object]]:
    """A stranger who takes the pool's port once its engine has been started on it."""
    with ExitStack() as until_the_end:

        def come() -> None:
            bench.daemon.until(POOL, lambda p: p.state == pb.Pool.STARTING)
            until_the_end.enter_context(stranger(bench.port))

        yield come


def _expect(bench: Bench, method: str, request: object, answer: type, code: grpc.StatusCode) -> None:
    call = bench.channel.unary_unary(f"/poolmgr.v1.{method}", type(request).SerializeToString, answer.FromString)  # type: ignore[attr-defined]
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=10)
    error = call_error(caught.value, bench.daemon.address)
    assert (
        error.code is code and error.reason == code.name and any(c.isdigit() for c in "".join(error.metadata.values()))
    )


def _every_rpc(
    bench: Bench, pool_id: str, judge: Callable[[grpc.StatusCode | None, str, object], None], only_reads: bool = False
) -> int:
    """Calls every RPC whose request names a pool, found by the descriptors; how many those are."""
    called = 0
    for file in (pb, lease_pb2, engine_pb2, admin_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                request = method.input_type._concrete_class(**_naming(method, pool_id))
                if not _names_a_pool(method) or (only_reads and not method.name.startswith(("Get", "List"))):
                    continue
                called += 1
                judge(*_call(bench.channel, service.full_name, method, request))
    return called


def _naming(method: object, pool_id: str) -> dict[str, object]:
    fields = method.input_type.fields_by_name  # type: ignore[attr-defined]
    if method.name == "UpdatePool":  # type: ignore[attr-defined]
        return {"pool": pb.Pool(pool_id=pool_id, spec=scripted())}
    more = {"spec": scripted(), "holder": "e2e"}
    return {"pool_id": pool_id, **{k: v for k, v in more.items() if k in fields}} if "pool_id" in fields else {}


def _names_a_pool(method: object) -> bool:
    """All but CreatePool, for which an unknown pool is none."""
    fields = method.input_type.fields_by_name  # type: ignore[attr-defined]
    return ("pool_id" in fields or "pool" in fields) and method.name != "CreatePool"  # type: ignore[attr-defined]


def _call(
    channel: grpc.Channel, service: str, method: object, request: object
) -> tuple[grpc.StatusCode | None, str, object]:
    name, answer = method.name, method.output_type._concrete_class  # type: ignore[attr-defined]
    streams = method.server_streaming  # type: ignore[attr-defined]
    kind = channel.unary_stream if streams else channel.unary_unary
    call = kind(f"/{service}/{name}", type(request).SerializeToString, answer.FromString)  # type: ignore[attr-defined]
    try:
        response = call(request, timeout=10)
        return None, name, next(iter(response)) if streams else response
    except grpc.RpcError as error:
        return error.code(), name, None

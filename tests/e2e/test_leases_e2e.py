"""Leases as clients see them: over a real socket, many at once, with clocks of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from poolmgr.client import Client, LeaseRefused
from poolmgr.convert.common import seconds
from poolmgr.v1 import lease_pb2
from poolmgr.v1.lease_pb2 import Lease
from poolmgr.v1.lease_pb2_grpc import LeaseServiceStub
from tests.e2e.daemon import Daemon, eventually
from tests.e2e.engines import ask, scripted

pytestmark = pytest.mark.e2e

SLOTS, CLIENTS, ROUNDS = 4, 20, 15


@pytest.fixture
def pool(client: Client, pool_id: str) -> str:
    """A READY pool with 4 slots."""
    client.create_pool(pool_id, scripted("--parallel", SLOTS, slots=SLOTS))
    assert client.preload(pool_id, wait=10).slots_free == SLOTS
    return pool_id


@pytest.fixture
def stub(daemon: Daemon) -> Iterator[LeaseServiceStub]:
    with grpc.insecure_channel(daemon.address) as channel:
        yield LeaseServiceStub(channel)


def fill(client: Client, pool: str, slots: int = SLOTS, ttl: float = 60) -> list[Lease]:
    return [client.acquire(pool, holder=f"filler {n}", ttl=ttl) for n in range(slots)]


class Slots:
    """Counts what its clients hold at one time, as they see it: from the answer of acquire to the call of release."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.held = self.most = 0

    def take(self) -> None:
        with self._lock:
            self.held += 1
            self.most = max(self.most, self.held)

    def give(self) -> None:
        with self._lock:
            self.held -= 1


@pytest.mark.behaviour("LEASE-1", "LEASE-5")
def test_twenty_clients_never_hold_more_than_the_four_slots(daemon: Daemon, pool: str) -> None:
    slots, fences = Slots(), set()

    def use(number: int) -> int:
        with daemon.client() as client:
            for _ in range(ROUNDS):
                lease = client.acquire(pool, holder=f"client {number}", wait=60)
                slots.take()
                fences.add(lease.fencing_token)
                assert ask(lease.endpoint, "/health")[0] == 200
                slots.give()
                assert client.release(lease.lease_id, lease.token).outcome == Lease.RELEASED
        return ROUNDS

    with ThreadPoolExecutor(CLIENTS) as threads:
        assert sum(threads.map(use, range(CLIENTS))) == CLIENTS * ROUNDS
    assert 1 < slots.most <= SLOTS and slots.held == 0
    assert len(fences) == CLIENTS * ROUNDS  # no fencing number twice


def test_the_count_of_slots_sees_a_fifth_holder() -> None:
    slots = Slots()
    for _ in range(SLOTS + 1):
        slots.take()
    assert slots.most > SLOTS


@pytest.mark.behaviour("LEASE-1")
def test_a_full_pool_refuses_at_once_when_nobody_wants_to_wait(client: Client, pool: str) -> None:
    fill(client, pool)
    with pytest.raises(LeaseRefused) as refused:
        client.acquire(pool, holder="e2e")
    assert refused.value.reason == "POOL_FULL"
    shown = client.get_pool(pool)
    assert (shown.slots_free, shown.active_leases) == (0, SLOTS)


@pytest.mark.behaviour("LEASE-3", "LEASE-6")
def test_a_lease_that_nobody_renews_frees_its_slot_after_its_ttl_and_the_grace(client: Client, pool: str) -> None:
    fill(client, pool, SLOTS - 1)
    begun = time.monotonic()
    lost = client.acquire(pool, holder="gone", ttl=3)
    taken = client.acquire(pool, holder="next", wait=20)
    assert 3.9 <= time.monotonic() - begun < 8 and taken.fencing_token > lost.fencing_token
    assert client.renew(lost.lease_id, lost.token).outcome == Lease.EXPIRED
    assert client.release(lost.lease_id, lost.token).outcome == Lease.EXPIRED


@pytest.mark.behaviour("LEASE-3")
def test_a_lease_that_is_renewed_outlives_its_ttl(client: Client, pool: str) -> None:
    with client.lease(pool, holder="e2e", ttl=3) as lease:
        begun = time.monotonic()
        eventually(lambda: time.monotonic() - begun > 4.5, 10)  # a ttl and its grace
        assert not lease.lost
        (shown,) = client.list_leases(pool)
        assert shown.lease_id == lease.lease.lease_id
    assert client.list_leases(pool) == []


@pytest.mark.behaviour("LEASE-3")
def test_a_lease_says_when_it_expires_and_a_renewal_moves_that(client: Client, pool: str) -> None:
    lease = client.acquire(pool, holder="e2e", ttl=10)
    assert seconds(lease.ttl) == 10 and abs(lease.expire_time.ToSeconds() - time.time() - 10) < 5
    renewed = client.renew(lease.lease_id, lease.token)
    assert renewed.outcome == Lease.RENEWED
    assert renewed.expire_time.ToNanoseconds() > lease.expire_time.ToNanoseconds()


@pytest.mark.behaviour("LEASE-5")
def test_waiters_are_served_by_priority_and_then_in_the_order_of_their_coming(client: Client, pool: str) -> None:
    leases = fill(client, pool)
    served: list[str] = []

    def wait(holder: str, priority: int) -> None:
        with client.lease(pool, holder=holder, wait=30, priority=priority, ttl=60):
            served.append(holder)

    threads = []
    for holder, priority in (("low", 0), ("first", 5), ("second", 5), ("urgent", 9)):
        threads.append(threading.Thread(target=wait, args=(holder, priority)))
        threads[-1].start()
        eventually(lambda: client.get_pool(pool).waiting == len(threads), 5)
    client.release(leases[0].lease_id, leases[0].token)  # one slot, which each hands to the next
    for thread in threads:
        thread.join(20)
    assert served == ["urgent", "first", "second", "low"]


@pytest.mark.behaviour("LEASE-5")
def test_a_waiter_whose_time_is_over_is_told_so_and_not_later(client: Client, pool: str) -> None:
    fill(client, pool)
    begun = time.monotonic()
    with pytest.raises(LeaseRefused) as refused:
        client.acquire(pool, holder="e2e", wait=0.5)
    assert refused.value.reason == "POOL_FULL" and 0.5 <= time.monotonic() - begun < 3
    assert client.get_pool(pool).waiting == 0


@pytest.mark.behaviour("LEASE-5", "LEASE-1")
def test_a_waiter_whose_client_went_away_is_forgotten_and_takes_no_slot(
    client: Client, daemon: Daemon, pool: str
) -> None:
    leases = fill(client, pool)
    channel = grpc.insecure_channel(daemon.address)
    request = lease_pb2.AcquireLeaseRequest(pool_id=pool, holder="gone", wait=Duration(seconds=60))
    call = LeaseServiceStub(channel).AcquireLease.future(request)
    eventually(lambda: client.get_pool(pool).waiting == 1, 5)
    channel.close()  # the connection, with the call on it
    eventually(lambda: client.get_pool(pool).waiting == 0, 5)
    assert call.done()
    client.release(leases[0].lease_id, leases[0].token)
    assert client.get_pool(pool).slots_free == 1
    assert "gone" not in {lease.holder for lease in client.list_leases(pool)}


@pytest.mark.behaviour("LEASE-4")
def test_a_retry_with_the_same_request_id_gets_the_same_lease(
    client: Client, stub: LeaseServiceStub, pool: str
) -> None:
    def acquire(request_id: str, holder: str = "e2e") -> Lease:
        request = lease_pb2.AcquireLeaseRequest(pool_id=pool, holder=holder, request_id=request_id)
        return stub.AcquireLease(request, timeout=10).lease

    first, retry = acquire("r1"), acquire("r1")
    assert (retry.lease_id, retry.token, retry.fencing_token) == (first.lease_id, first.token, first.fencing_token)
    assert acquire("r2").lease_id != first.lease_id
    assert acquire("r1", holder="another").lease_id != first.lease_id
    assert client.get_pool(pool).active_leases == 3


@pytest.mark.behaviour("LEASE-6")
def test_release_is_idempotent_and_what_is_not_known_is_a_typed_answer(client: Client, pool: str) -> None:
    lease = client.acquire(pool, holder="e2e")
    for lease_id, token in ((lease.lease_id, "wrong"), (f"{pool}.0000", lease.token), ("nobody.1", "x"), ("", "")):
        assert client.release(lease_id, token).outcome == Lease.UNKNOWN
        assert client.renew(lease_id, token).outcome == Lease.UNKNOWN
    assert client.get_pool(pool).active_leases == 1
    assert client.release(lease.lease_id, lease.token).outcome == Lease.RELEASED
    assert client.release(lease.lease_id, lease.token).outcome == Lease.ALREADY_RELEASED
    assert client.renew(lease.lease_id, lease.token).outcome == Lease.ALREADY_RELEASED


@pytest.mark.behaviour("LEASE-6")
def test_a_list_of_leases_shows_no_token_and_pages_in_the_order_of_the_grants(
    client: Client, stub: LeaseServiceStub, pool: str
) -> None:
    granted = fill(client, pool)
    assert all(lease.token for lease in granted)
    listed, token = [], ""
    while True:
        page = stub.ListLeases(lease_pb2.ListLeasesRequest(pool_id=pool, page_size=3, page_token=token), timeout=10)
        listed.extend(page.leases)
        token = page.next_page_token
        if not token:
            break
    assert [lease.lease_id for lease in listed] == [lease.lease_id for lease in granted]
    assert [lease.holder for lease in listed] == [lease.holder for lease in granted]
    assert not any(lease.token for lease in listed)
    assert not any(lease.token.encode() in page.SerializeToString() for lease in granted)


@pytest.mark.behaviour("LEASE-1")
def test_fewer_slots_hold_for_new_leases_and_take_none_away(client: Client, pool: str) -> None:
    leases, pid = fill(client, pool), client.get_pool(pool).pid
    spec = scripted("--parallel", SLOTS, slots=2)
    shown = client.update_pool(pool, spec, ["spec.slots"])
    assert (shown.pid, shown.slots_total, shown.active_leases, shown.slots_free) == (pid, 2, 4, 0)
    for number, lease in enumerate(leases, 1):
        client.release(lease.lease_id, lease.token)
        assert client.get_pool(pool).slots_free == max(0, number - 2)

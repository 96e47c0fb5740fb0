"""The load: concurrent clients of the lease service in a process of their own, which write down all they ask and hear.

An operation is invoked once and ends once: `ok` with an outcome, `fail` where the daemon said no, `unknown` where
nobody can tell whether it took effect. What got no answer is sent again, with the same request id, until its time is
over: that is what a client of LEASE-4 does, and what keeps the unknowns few.

Run as ``python -m tests.chaos.clients FILE``, with a `Plan` as one line of JSON on standard input; then lines say
`quiet` (no call is under way once `quiet` is answered), `resume`, and the end of input ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from poolmgr.v1 import engine_pb2
from poolmgr.v1 import lease_pb2 as pb
from poolmgr.v1.engine_pb2_grpc import EngineServiceStub
from poolmgr.v1.lease_pb2_grpc import LeaseServiceStub
from tests.chaos.batches import Batches, Failed
from tests.chaos.journal import Writer
from tests.chaos.procs import NANOSECONDS, now, seconds

ATTEMPT_SECONDS = 5.0
RETRY_SECONDS = 0.05
# More often than asked for: a stream whose daemon has died is noticed by the next heartbeat.
BEAT_SECONDS = 0.5
# An acquire is given up after this; a renewal and a release go on for the lease's time, and this long at least.
PATIENCE_SECONDS = 30.0
ENGINE_SECONDS = 5.0
# Answers that leave open whether the call took effect.
OPEN = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL"})
CHANNEL = [
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]


@dataclass(frozen=True, slots=True)
class Plan:
    """`workers`: for each pool. `ttls`: seconds, one of them for each lease. `hold`: seconds a lease is kept, at most.

    `abandon`, `again`, `use`: how often a lease is left to expire, its acquire is sent once more, its engine is asked.
    `batched`: which part of the workers speaks on one Session stream. `beats`: engines that heartbeats are sent for.
    """

    address: str
    pools: list[str]
    seed: int
    workers: int = 3
    ttls: list[float] = field(default_factory=lambda: [3.0, 6.0, 15.0, 30.0])
    hold: float = 3.0
    wait: float = 1.0
    abandon: float = 0.05
    again: float = 0.1
    use: float = 0.3
    batched: float = 0.34
    beats: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Held:
    lease_id: str
    token: str
    endpoint: str
    ttl: float
    until: int  # nanoseconds on the boot-time clock: surely held that long


class Gate:
    """Lets calls through until it is shut; `quiet` returns once none is under way."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.asynccontextmanager
    async def call(self):
        await self._open.wait()
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if self._calls == 0:
                self._idle.set()

    async def quiet(self) -> None:
        self._open.clear()
        await self._idle.wait()

    def resume(self) -> None:
        self._open.set()


class Calls:
    """How operations are sent: each as a call of its own. All three raise Failed."""

    via = "call"

    def __init__(self, stub: LeaseServiceStub) -> None:
        self._stub = stub

    async def acquire(self, request: pb.AcquireLeaseRequest, timeout: float) -> pb.AcquireLeaseResponse:
        return await self._called(self._stub.AcquireLease(request, timeout=timeout))

    async def renew(self, request: pb.RenewLeaseRequest, timeout: float) -> pb.RenewLeaseResponse:
        return await self._called(self._stub.RenewLease(request, timeout=timeout))

    async def release(self, request: pb.ReleaseLeaseRequest, timeout: float) -> pb.ReleaseLeaseResponse:
        return await self._called(self._stub.ReleaseLease(request, timeout=timeout))

    async def _called(self, call):
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise Failed(error.code().name, error.details() or "") from error


class BatchedCalls:
    """How operations are sent: in batches on one stream, with those of others."""

    via = "session"

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    async def acquire(self, request: pb.AcquireLeaseRequest, timeout: float) -> pb.AcquireLeaseResponse:
        return (await self._batches.do(pb.LeaseOperation(acquire=request), timeout)).acquire

    async def renew(self, request: pb.RenewLeaseRequest, timeout: float) -> pb.RenewLeaseResponse:
        return (await self._batches.do(pb.LeaseOperation(renew=request), timeout)).renew

    async def release(self, request: pb.ReleaseLeaseRequest, timeout: float) -> pb.ReleaseLeaseResponse:
        return (await self._batches.do(pb.LeaseOperation(release=request), timeout)).release


class Log:
    """Numbers operations, and writes down what came of them."""

    def __init__(self, out: Writer) -> None:
        self._out = out
        self._operations = 0

    def invoke(self, kind: str, name: dict[str, object]) -> int:
        self._operations += 1
        self._out.write("invoke", op=self._operations, kind=kind, **name)
        return self._operations

    def end(self, event: str, operation: int, kind: str, told: dict[str, object]) -> None:
        self._out.write(event, op=operation, kind=kind, **told)


class Caller:
    """Sends operations and writes down what came of them."""

    def __init__(self, calls: Calls | BatchedCalls, log: Log, gate: Gate) -> None:
        self._calls = calls
        self._log = log
        self._gate = gate

    async def acquire(self, pool: str, holder: str, request_id: str, ttl: float, wait: float) -> Held | None:
        request = pb.AcquireLeaseRequest(pool_id=pool, holder=holder, request_id=request_id)
        request.ttl.FromNanoseconds(seconds(ttl))
        request.wait.FromNanoseconds(seconds(wait))
        invoked, answer = await self._operate(
            "acquire",
            lambda timeout: self._calls.acquire(request, timeout + wait),
            now() + seconds(PATIENCE_SECONDS),
            _granted,
            {"pool": pool, "request": request_id, "ttl": ttl},
        )
        if answer is None or not answer.HasField("lease"):
            return None
        lease = answer.lease
        return Held(lease.lease_id, lease.token, lease.endpoint, ttl, invoked + seconds(ttl))

    async def renew(self, pool: str, held: Held) -> bool:
        """Whether it is held on."""
        request = pb.RenewLeaseRequest(lease_id=held.lease_id, token=held.token)
        invoked, answer = await self._operate(
            "renew", lambda t: self._calls.renew(request, t), _patience(held), _outcome,
            {"pool": pool, "lease": held.lease_id, "ttl": held.ttl},
        )  # fmt: skip
        if answer is None or answer.outcome != pb.Lease.RENEWED:
            return False
        held.until = invoked + seconds(held.ttl)
        return True

    async def release(self, pool: str, held: Held) -> None:
        request = pb.ReleaseLeaseRequest(lease_id=held.lease_id, token=held.token)
        await self._operate(
            "release", lambda t: self._calls.release(request, t), _patience(held), _outcome,
            {"pool": pool, "lease": held.lease_id},
        )  # fmt: skip

    async def use(self, pool: str, held: Held) -> None:
        """A small request to the engine, which needs no daemon."""
        host, _, port = held.endpoint.rpartition(":")
        name = {"pool": pool, "lease": held.lease_id, "endpoint": held.endpoint}
        operation = self._log.invoke("use", name)
        try:
            status = await asyncio.wait_for(_get(host, int(port)), ENGINE_SECONDS)
        except (TimeoutError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            self._log.end("fail", operation, "use", {**name, "reason": f"{type(error).__name__} {error}"})
        else:
            self._log.end("ok", operation, "use", {**name, "outcome": status})

    async def _operate(
        self,
        kind: str,
        send: Callable[[float], Awaitable[object]],
        until: int,
        tell: Callable[[object], dict[str, object]],
        name: dict[str, object],
    ) -> tuple[int, object | None]:
        """(when the answered try was sent, its answer); None: refused by an error, or unknown."""
        operation, tries = self._log.invoke(kind, {**name, "via": self._calls.via}), 0
        while True:
            tries += 1
            try:
                async with self._gate.call():
                    sent = now()
                    answer = await send(ATTEMPT_SECONDS)
            except Failed as error:
                if error.code not in OPEN:
                    self._log.end("fail", operation, kind, {**name, "tries": tries, "reason": str(error)})
                    return sent, None
                if now() > until:
                    self._log.end("unknown", operation, kind, {**name, "tries": tries, "reason": str(error)})
                    return sent, None
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._log.end("ok", operation, kind, {**name, "tries": tries, "sent": sent, **tell(answer)})
                return sent, answer


def _granted(answer) -> dict[str, object]:
    if not answer.HasField("lease"):
        return {"refused": pb.Refusal.Reason.Name(answer.refusal.reason)}
    lease = answer.lease
    return {"lease": lease.lease_id, "fence": lease.fencing_token, "endpoint": lease.endpoint}


def _outcome(answer) -> dict[str, object]:
    return {"outcome": pb.Lease.Outcome.Name(answer.outcome)}


def _patience(held: Held) -> int:
    return max(held.until, now() + seconds(PATIENCE_SECONDS))


async def _get(host: str, port: int) -> int:
    """The status of /health."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return int((await reader.readuntil(b"\r\n")).split()[1])
    finally:
        writer.close()


class Worker:
    """One client: takes a lease, renews it, uses the engine, gives it back or leaves it; again and again."""

    def __init__(self, caller: Caller, plan: Plan, pool: str, number: int, ending: asyncio.Event) -> None:
        self._caller = caller
        self._plan = plan
        self._pool = pool
        self._name = f"{pool}/{number}"
        self._rng = random.Random(f"{plan.seed}/{self._name}")
        self._ending = ending

    async def run(self) -> None:
        while not self._ending.is_set():
            await self._one()

    async def _one(self) -> None:
        rng, plan = self._rng, self._plan
        request, ttl = f"{rng.getrandbits(128):032x}", rng.choice(plan.ttls)
        held = await self._caller.acquire(self._pool, self._name, request, ttl, plan.wait)
        if held is None:
            await self._pause(rng.uniform(0.05, 0.3))
            return
        if rng.random() < plan.again:
            await self._caller.acquire(self._pool, self._name, request, ttl, 0.0)
        leave = ttl <= min(plan.ttls) and rng.random() < plan.abandon * len(plan.ttls)
        if await self._keep(held, rng.uniform(0.1, plan.hold)) and not leave:
            await self._caller.release(self._pool, held)

    async def _keep(self, held: Held, length: float) -> bool:
        """Whether it is held to the end."""
        until = now() + seconds(length)
        while now() < until and not self._ending.is_set():
            if self._rng.random() < self._plan.use:
                await self._caller.use(self._pool, held)
            await self._pause(min(held.ttl * self._rng.uniform(0.1, 0.34), (until - now()) / NANOSECONDS))
            if not await self._caller.renew(self._pool, held):
                return False
        return True

    async def _pause(self, length: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), max(0.0, length))


async def beat(stub: EngineServiceStub, engine_id: str, ending: asyncio.Event) -> None:
    """Heartbeats of an engine that registered itself; a stream that breaks is opened again (ENG-3)."""
    while not ending.is_set():
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            stream = stub.Heartbeat()
            while not ending.is_set():
                await stream.write(engine_pb2.HeartbeatRequest(engine_id=engine_id))
                if await stream.read() is grpc.aio.EOF:
                    break
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ending.wait(), BEAT_SECONDS)
            stream.cancel()
        await asyncio.sleep(RETRY_SECONDS)


async def main(file: str) -> None:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    plan, out, gate, ending = Plan(**json.loads(await orders.readline())), Writer(Path(file)), Gate(), asyncio.Event()
    out.write("plan", **asdict(plan))
    channel = grpc.aio.insecure_channel(plan.address, CHANNEL)
    stub, log = LeaseServiceStub(channel), Log(out)
    batches = Batches(stub)
    single, batched = Caller(Calls(stub), log, gate), Caller(BatchedCalls(batches), log, gate)
    workers = [
        asyncio.create_task(
            Worker(batched if number < plan.batched * plan.workers else single, plan, pool, number, ending).run()
        )
        for pool in plan.pools
        for number in range(plan.workers)
    ]
    beats = EngineServiceStub(channel)
    workers += [asyncio.create_task(beat(beats, engine_id, ending)) for engine_id in plan.beats]
    while order := (await orders.readline()).decode().strip():
        if order == "quiet":
            await gate.quiet()
        elif order == "resume":
            gate.resume()
        print(order, flush=True)
    gate.resume()
    ending.set()
    await asyncio.gather(*workers)
    await batches.close()
    await channel.close()
    out.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

"""Whether what clients were told of leases can be true of slots that have one owner at a time (LEASE-1 to LEASE-4).

Pure: operations in, violations out. A lease's *grant* lies between the invocation of its acquire and the answer; grants
happen in the order of their fencing numbers, so none lies later than the answer of a grant with a higher number. From
there on it is *certainly held* until its release is invoked, its engine ends, or its ttl is over since the last try
that was answered well was sent; the daemon's clock starts later than that. What is left open may or may not have taken
effect and proves nothing. More certain holders of one engine than it has slots, at any instant, cannot be linearized.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from tests.chaos.journal import Line
from tests.chaos.procs import NANOSECONDS, seconds

# The daemon may know of an engine's end so much later than the observer: 3 s for a silent shim (PROC-6), and a margin.
NOTICED = seconds(4)
MAX_UNKNOWN_SHARE = 0.05
DENIED = frozenset({"UNKNOWN", "EXPIRED", "ALREADY_RELEASED"})


@dataclass(frozen=True, slots=True)
class Violation:
    """`rule`: a behaviour id. `at`: nanoseconds on the boot-time clock. `evidence`: what it rests on, line by line."""

    rule: str
    at: int
    text: str
    evidence: tuple[str, ...] = ()
    kind: str = ""  # what the figures count it as


@dataclass(frozen=True, slots=True)
class Operation:
    """`answered` None: it never ended. `sent`: when the try was sent that was answered; the invocation otherwise.

    `via`: `session` for one of a batch, `call` for one by itself.
    """

    kind: str
    pool: str
    invoked: int
    sent: int
    answered: int | None
    end: str = "unknown"
    outcome: str = ""
    lease: str = ""
    request: str = ""
    ttl: int = 0
    fence: int = 0
    endpoint: str = ""
    tries: int = 1
    via: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known from elsewhere. `slots` by pool; `deaths`: of engines, by endpoint; all times in nanoseconds.

    `restarts`: (when the daemon was killed, when the next was executed). `forfeited`: when records of leases were
    destroyed on purpose. `grace`: how long a slot stays taken after an expiry (LEASE-3).
    """

    slots: Mapping[str, int]
    deaths: Mapping[str, Sequence[int]] = field(default_factory=dict)
    restarts: Sequence[tuple[int, int]] = ()
    forfeited: Sequence[int] = ()
    grace: int = NANOSECONDS


@dataclass(frozen=True, slots=True)
class Lease:
    """One grant and all that was asked of it. `void`: when its engine ended, if it did."""

    grant: Operation
    calls: tuple[Operation, ...]
    void: int | None

    @property
    def release(self) -> int | None:
        """When the first release was invoked."""
        return min((c.invoked for c in self.calls if c.kind == "release"), default=None)

    def certain_until(self, before: int | None = None) -> int:
        """Until when its ttl surely lasts, by what was answered before (None: ever)."""
        # A try whose answer was lost may have been the one that was granted; each renewal counts from itself.
        granted = self.grant.invoked if self.grant.tries > 1 else self.grant.sent
        renewed = [c.sent for c in self.calls if c.outcome == "RENEWED" and (before is None or _end(c) <= before)]
        return max([granted, *renewed]) + self.grant.ttl


def _end(operation: Operation) -> int:
    """When it was answered; an acknowledged one always was."""
    assert operation.answered is not None
    return operation.answered


def operations(lines: Iterable[Line]) -> list[Operation]:
    """From a client's file: `invoke`, then `ok`, `fail` or `unknown` by the same number."""
    open_: dict[object, Operation] = {}
    done = []
    for line in lines:
        if line["event"] == "invoke":
            open_[line["op"]] = _invoked(line)
        elif line["event"] in ("ok", "fail", "unknown"):
            done.append(_ended(open_.pop(line["op"]), line))
    return sorted([*done, *open_.values()], key=lambda o: o.invoked)


def _invoked(line: Line) -> Operation:
    at = int(line["at"])
    return Operation(
        kind=str(line["kind"]),
        pool=str(line["pool"]),
        invoked=at,
        sent=at,
        answered=None,
        lease=str(line.get("lease", "")),
        request=str(line.get("request", "")),
        ttl=seconds(float(line.get("ttl", 0))),
        via=str(line.get("via", "")),
    )


def _ended(operation: Operation, line: Line) -> Operation:
    return replace(
        operation,
        answered=int(line["at"]),
        sent=int(line.get("sent", operation.sent)),
        end=str(line["event"]),
        outcome=str(line.get("outcome", line.get("refused", line.get("reason", "")))),
        lease=str(line.get("lease", operation.lease)),
        fence=int(line.get("fence", 0)),
        endpoint=str(line.get("endpoint", "")),
        tries=int(line.get("tries", 1)),
    )


def leases(found: Sequence[Operation], facts: Facts) -> list[Lease]:
    """Every acknowledged lease, by fencing number; an acquire that got a lease again is one of its calls."""
    grants: dict[str, Operation] = {}
    calls: dict[str, list[Operation]] = defaultdict(list)
    for operation in found:
        if operation.kind == "acquire" and operation.fence and operation.lease not in grants:
            grants[operation.lease] = operation
        elif operation.lease and operation.kind != "use":
            calls[operation.lease].append(operation)
    made = [Lease(grant, tuple(calls[lease]), _void(grant, facts)) for lease, grant in grants.items()]
    return sorted(made, key=lambda lease: lease.grant.fence)


def _void(grant: Operation, facts: Facts) -> int | None:
    deaths = sorted(facts.deaths.get(grant.endpoint, ()))
    after = bisect_right(deaths, grant.invoked - NOTICED)
    return deaths[after] if after < len(deaths) else None


def check(found: Sequence[Operation], facts: Facts) -> list[Violation]:
    made = leases(found, facts)
    return [
        *check_fences(made),
        *check_slots(made, facts),
        *check_lost(made, facts),
        *check_repeats(found, made, facts),
        *check_unknowns(found),
    ]


def check_fences(made: Sequence[Lease]) -> list[Violation]:
    """A grant that was answered before another was invoked has the lower number, and no number is given twice."""
    problems = []
    ordered = sorted(made, key=lambda lease: lease.grant.fence)
    for one, other in pairwise(ordered):
        if one.grant.fence == other.grant.fence:
            problems.append(_fence_problem(one, other, "is the number of two leases"))
    lowest: Lease | None = None  # of those with a higher number, the one that was answered first
    for lease in reversed(ordered):
        if lowest is not None and _end(lowest.grant) < lease.grant.invoked:
            problems.append(_fence_problem(lease, lowest, "was given after a higher one had been answered"))
        if lowest is None or _end(lease.grant) < _end(lowest.grant):
            lowest = lease
    return problems


def _fence_problem(lease: Lease, other: Lease, what: str) -> Violation:
    text = f"fencing number {lease.grant.fence} {what}"
    return Violation("LEASE-2", lease.grant.invoked, text, (show(lease.grant), show(other.grant)), "fence")


def latest_grants(made: Sequence[Lease]) -> dict[str, int]:
    """By lease id, the latest instant at which it can have been granted: numbers rise in the order of the grants."""
    latest, bound = {}, None
    for lease in sorted(made, key=lambda lease: -lease.grant.fence):
        answered = _end(lease.grant)
        bound = answered if bound is None else min(bound, answered)
        latest[lease.grant.lease] = bound
    return latest


def certain(lease: Lease, latest: int, facts: Facts) -> tuple[int, int]:
    """[from, until) in which its slot is surely taken."""
    ends = [lease.certain_until() + facts.grace]
    if lease.release is not None:
        ends.append(lease.release)
    if lease.void is not None:
        ends.append(lease.void)
    # Told that it is over, a client holds it no longer, whatever it believed before.
    ends += [c.invoked for c in lease.calls if c.kind == "renew" and c.end == "ok" and c.outcome in DENIED]
    return latest, min(ends)


def check_slots(made: Sequence[Lease], facts: Facts) -> list[Violation]:
    """More certain holders of a pool's engine than slots: LEASE-1 is broken at that instant."""
    latest = latest_grants(made)
    events: dict[tuple[str, str], list[tuple[int, int, Lease]]] = defaultdict(list)
    for lease in made:
        begin, end = certain(lease, latest[lease.grant.lease], facts)
        if begin < end:
            where = events[lease.grant.pool, lease.grant.endpoint]
            where += [(begin, 1, lease), (end, -1, lease)]
    problems = []
    for (pool, endpoint), changes in events.items():
        holders: dict[str, Lease] = {}
        for at, change, lease in sorted(changes, key=lambda c: (c[0], c[1])):
            if change < 0:
                holders.pop(lease.grant.lease, None)
                continue
            holders[lease.grant.lease] = lease
            if len(holders) > facts.slots.get(pool, 0):
                text = f"{len(holders)} holders at once of the {facts.slots.get(pool, 0)} slots of {pool} at {endpoint}"
                evidence = tuple(show(held.grant) for held in holders.values())
                problems.append(Violation("LEASE-1", at, text, evidence, "doubled"))
    return problems


def check_lost(made: Sequence[Lease], facts: Facts) -> list[Violation]:
    """Denied before its time was over, while its engine lived and nobody had released it (LEASE-3, LEASE-4)."""
    problems = []
    for lease in made:
        for call in lease.calls:
            if call.end != "ok" or call.outcome not in DENIED or _own_release(lease, call):
                continue
            until = _bound(lease, call, facts)
            if _end(call) < until and not _excused(lease, call, facts):
                left = (until - _end(call)) / NANOSECONDS
                text = f"lease {call.lease} of {call.pool} is {call.outcome} {left:.3f} s before its time"
                problems.append(Violation("LEASE-4", _end(call), text, (show(lease.grant), show(call)), "lost"))
                break
    return problems


def _own_release(lease: Lease, call: Operation) -> bool:
    """Whether our own release explains the answer: an earlier one, or a lost try of this one."""
    earlier = lease.release is not None and lease.release < _end(call) and call.kind != "release"
    return earlier or (call.kind == "release" and call.outcome == "ALREADY_RELEASED" and call.tries > 1)


def _bound(lease: Lease, call: Operation, facts: Facts) -> int:
    """Until when the lease surely lives; one that lives as a daemon comes back gets a whole ttl from then."""
    until = lease.certain_until(before=call.sent)
    for killed, executed in facts.restarts:
        if _end(lease.grant) < killed and executed < until and executed < call.invoked:
            until = max(until, executed + lease.grant.ttl)
    return until


def _excused(lease: Lease, call: Operation, facts: Facts) -> bool:
    end = _end(call)
    if lease.void is not None and lease.void <= end:
        return True
    return any((lease.grant.sent) <= at <= end for at in facts.forfeited)


def check_repeats(found: Sequence[Operation], made: Sequence[Lease], facts: Facts) -> list[Violation]:
    """The same request again while its lease lives is answered with the same lease (LEASE-4)."""
    by_request = {lease.grant.request: lease for lease in reversed(made) if lease.grant.request}
    problems = []
    for repeat in found:
        first = by_request.get(repeat.request) if repeat.kind == "acquire" and repeat.end == "ok" else None
        if first is None or repeat == first.grant or repeat.lease == first.grant.lease:
            continue
        if repeat.invoked < _end(first.grant) or first.release is not None:
            continue
        if _end(repeat) < _bound(first, repeat, facts) and not _excused(first, repeat, facts):
            got = repeat.lease or repeat.outcome
            text = f"request {repeat.request} of {repeat.pool} got {got}, though lease {first.grant.lease} lives"
            problems.append(Violation("LEASE-4", repeat.invoked, text, (show(first.grant), show(repeat)), "lost"))
    return problems


def unknown_share(found: Sequence[Operation]) -> float:
    asked = [o for o in found if o.kind != "use"]
    return sum(o.end == "unknown" for o in asked) / len(asked) if asked else 0.0


def check_unknowns(found: Sequence[Operation]) -> list[Violation]:
    share = unknown_share(found)
    if not any(o.kind == "acquire" and o.fence for o in found):
        return [Violation("LEASE-4", 0, "the history holds no grant: nothing was shown")]
    if share > MAX_UNKNOWN_SHARE:
        return [Violation("LEASE-4", found[-1].invoked, f"{share:.1%} of the operations ended unknown")]
    return []


def live_at(made: Sequence[Lease], facts: Facts, at: int) -> int:
    """How many leases are certainly held at an instant."""
    latest = latest_grants(made)
    spans = (certain(lease, latest[lease.grant.lease], facts) for lease in made)
    return sum(begin <= at < end for begin, end in spans)


def show(operation: Operation) -> str:
    answered = "never" if operation.answered is None else f"{operation.answered / NANOSECONDS:.6f}"
    said = operation.outcome or f"lease {operation.lease} fence {operation.fence} at {operation.endpoint}"
    return (
        f"{operation.kind} {operation.pool} {operation.lease} sent {operation.sent / NANOSECONDS:.6f} "
        f"answered {answered} (tries {operation.tries}): {operation.end} {said}"
    )

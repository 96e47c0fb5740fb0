"""The checker of histories: true ones pass, and each way in which one can be false is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos import history
from tests.chaos.history import Facts, Operation
from tests.chaos.procs import seconds

POOL, AT = "a", "127.0.0.1:9"
FACTS = Facts(slots={POOL: 1})
TTL = 10.0


def acquire(lease: str, fence: int, invoked: float, answered: float, ttl: float = TTL, **more: object) -> Operation:
    return Operation(
        "acquire", POOL, seconds(invoked), seconds(invoked), seconds(answered), "ok", lease=lease,
        request=f"r-{lease}", ttl=seconds(ttl), fence=fence, endpoint=AT,
    ) if not more else replace(acquire(lease, fence, invoked, answered, ttl), **more)  # fmt: skip


def call(kind: str, lease: str, invoked: float, answered: float | None, outcome: str, **more: object) -> Operation:
    end = "unknown" if answered is None else "ok"
    at = None if answered is None else seconds(answered)
    made = Operation(kind, POOL, seconds(invoked), seconds(invoked), at, end, outcome, lease, ttl=seconds(TTL))
    return replace(made, **more)  # type: ignore[arg-type]


def kinds(found: list[Operation], facts: Facts = FACTS) -> list[str]:
    return [violation.kind for violation in history.check(found, facts)]


ONE = acquire("x", 1, 0.0, 0.1)
RELEASED = call("release", "x", 2.0, 2.1, "RELEASED")
NEXT = acquire("y", 2, 2.05, 2.2)


@pytest.mark.behaviour("LEASE-1", "LEASE-2")
def test_a_slot_that_is_handed_on_after_its_release_was_asked_for_is_a_true_history():
    assert kinds([ONE, call("renew", "x", 1.0, 1.1, "RENEWED"), RELEASED, NEXT]) == []


@pytest.mark.behaviour("LEASE-1")
def test_a_second_holder_while_the_first_certainly_holds_is_a_doubled_lease():
    assert kinds([ONE, replace(NEXT, invoked=seconds(1.0), sent=seconds(1.0), answered=seconds(1.9)), RELEASED]) == [
        "doubled"
    ]
    assert kinds([ONE, NEXT]) == ["doubled"]  # nobody released it, and its time is not over
    assert kinds([ONE, NEXT], replace(FACTS, slots={POOL: 2})) == []


@pytest.mark.behaviour("LEASE-3")
@pytest.mark.parametrize(("at", "told"), [(9.0, ["doubled"]), (10.9, ["doubled"]), (11.1, [])])
def test_the_slot_of_a_lease_that_runs_out_is_free_after_its_ttl_and_the_grace(at, told):
    assert kinds([ONE, acquire("y", 2, at - 0.1, at)]) == told


@pytest.mark.behaviour("LEASE-3")
def test_a_renewal_holds_the_slot_for_another_ttl_from_when_it_was_sent():
    renewed = call("renew", "x", 5.0, 9.0, "RENEWED")
    assert kinds([ONE, renewed, acquire("y", 2, 15.5, 15.9)]) == ["doubled"]
    assert kinds([ONE, renewed, acquire("y", 2, 16.1, 16.2)]) == []


@pytest.mark.behaviour("LEASE-1")
def test_the_end_of_an_engine_ends_the_holding_of_its_slots():
    facts = replace(FACTS, deaths={AT: [seconds(1.0)]})
    denied = call("renew", "x", 1.5, 1.6, "EXPIRED")
    assert kinds([ONE, denied, NEXT], facts) == []
    assert "lost" in kinds([ONE, denied, NEXT])


@pytest.mark.behaviour("LEASE-4")
@pytest.mark.parametrize("outcome", ["UNKNOWN", "EXPIRED", "ALREADY_RELEASED"])
@pytest.mark.parametrize("kind", ["renew", "release"])
def test_a_lease_that_is_denied_before_its_time_is_lost(kind, outcome):
    assert kinds([ONE, call(kind, "x", 5.0, 5.1, outcome)]) == ["lost"]
    assert kinds([ONE, call(kind, "x", 10.0, 10.1, outcome)]) == []


@pytest.mark.behaviour("LEASE-3")
def test_a_lease_that_lives_at_a_restart_has_a_whole_ttl_from_then():
    facts = replace(FACTS, restarts=[(seconds(8.0), seconds(9.0))])
    assert kinds([ONE, call("renew", "x", 18.0, 18.5, "EXPIRED")], facts) == ["lost"]
    assert kinds([ONE, call("renew", "x", 18.0, 19.5, "EXPIRED")], facts) == []
    late = replace(FACTS, restarts=[(seconds(8.0), seconds(11.0))])
    assert kinds([ONE, call("renew", "x", 18.0, 18.5, "EXPIRED")], late) == []


@pytest.mark.behaviour("LEASE-6")
def test_what_our_own_release_explains_is_no_loss():
    again = call("release", "x", 3.0, 3.1, "ALREADY_RELEASED", tries=2)
    assert kinds([ONE, again]) == []
    assert kinds([ONE, RELEASED, call("renew", "x", 3.0, 3.1, "ALREADY_RELEASED")]) == []


@pytest.mark.behaviour("LEASE-4")
def test_leases_whose_records_were_destroyed_on_purpose_may_be_denied_and_never_doubled():
    facts = replace(FACTS, forfeited=[seconds(1.0)])
    denied = call("renew", "x", 5.0, 5.1, "UNKNOWN")
    assert kinds([ONE, denied], facts) == []
    assert kinds([ONE, acquire("y", 2, 2.0, 2.1), denied], facts) == ["doubled"]


@pytest.mark.behaviour("LEASE-4")
def test_the_same_request_while_its_lease_lives_gets_the_same_lease():
    same, other = acquire("x", 1, 1.0, 1.1), replace(acquire("z", 2, 1.0, 1.1), request="r-x")
    two = replace(FACTS, slots={POOL: 2})
    assert kinds([ONE, same], two) == []
    assert kinds([ONE, other], two) == ["lost"]
    assert kinds([ONE, replace(other, invoked=seconds(20), sent=seconds(20), answered=seconds(20.1))], two) == []


@pytest.mark.behaviour("LEASE-2")
@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (acquire("x", 5, 0.0, 1.0), acquire("y", 4, 2.0, 3.0), ["fence"]),  # falls though one followed the other
        (acquire("x", 5, 0.0, 3.0), acquire("y", 4, 2.0, 2.5), []),  # at the same time: either order may be
        (acquire("x", 5, 0.0, 1.0), acquire("y", 5, 2.0, 3.0), ["fence"]),  # the same twice
    ],
    ids=["falls", "overlaps", "twice"],
)
def test_fencing_numbers_rise_in_real_time(first, second, told):
    assert kinds([first, second], replace(FACTS, slots={POOL: 2})) == told


@pytest.mark.behaviour("LEASE-2")
def test_a_fall_is_told_also_when_others_lie_between():
    found = [acquire("x", 9, 0.0, 1.0), acquire("y", 7, 0.5, 6.0), acquire("z", 5, 2.0, 3.0)]
    assert kinds(found, replace(FACTS, slots={POOL: 3})) == ["fence"]


@pytest.mark.behaviour("LEASE-1")
def test_a_grant_lies_before_the_answer_of_one_with_a_higher_number():
    """Answered late, it was granted early all the same, and so was held already as another one was."""
    found = [acquire("x", 2, 0.0, 8.0), acquire("y", 3, 0.0, 1.0), call("release", "y", 7.0, 7.1, "RELEASED")]
    assert kinds(found) == ["doubled"]
    unordered = [replace(found[0], fence=4), *found[1:]]
    assert kinds(unordered) == []


@pytest.mark.behaviour("LEASE-4")
def test_more_unknowns_than_one_in_twenty_and_a_history_without_a_grant_show_nothing():
    unknown = call("release", "x", 1.0, None, "")
    assert [v.text for v in history.check([ONE, unknown], FACTS)] == ["50.0% of the operations ended unknown"]
    many = [call("renew", "x", 0.2 + n / 100, 0.2 + n / 100, "RENEWED") for n in range(40)]
    assert kinds([ONE, *many, unknown]) == []
    assert "no grant" in history.check([], FACTS)[0].text


def test_operations_are_read_from_what_a_client_writes_also_one_that_never_ended():
    lines = [
        {"event": "invoke", "at": 5, "op": 1, "kind": "acquire", "pool": POOL, "request": "r", "ttl": 3.0},
        {"event": "invoke", "at": 6, "op": 2, "kind": "renew", "pool": POOL, "lease": "x", "ttl": 3.0},
        {"event": "ok", "at": 9, "op": 1, "kind": "acquire", "pool": POOL, "sent": 7, "tries": 2, "lease": "x",
         "fence": 8, "endpoint": AT},
    ]  # fmt: skip
    first, second = history.operations(lines)
    assert first == Operation(
        "acquire", POOL, 5, 7, 9, "ok", lease="x", request="r", ttl=seconds(3), fence=8, endpoint=AT, tries=2
    )
    assert (second.end, second.answered, second.lease) == ("unknown", None, "x")


# Histories that a right daemon makes: slots are handed out one after the other, answers come a little later.

STEP = st.floats(min_value=0.001, max_value=2.0)


@st.composite
def true_histories(draw):
    """(operations, slots): each slot's holders follow one another; numbers rise with the instant of the grant."""
    slots = draw(st.integers(1, 3))
    grants = []
    for slot in range(slots):
        free_at = draw(STEP)
        for turn in range(draw(st.integers(0, 5))):
            granted = free_at + draw(STEP)
            renewals = draw(st.lists(STEP, max_size=3))
            leaves = draw(st.sampled_from(["release", "expire", "lost reply"]))
            grants.append((granted, f"{slot}-{turn}", renewals, leaves, draw(STEP), draw(STEP)))
            free_at = granted + sum(renewals) + 1.0 + (TTL + 1.0 if leaves == "expire" else 0.0)
    found = []
    for fence, (granted, lease, renewals, leaves, before, after) in enumerate(sorted(grants), start=1):
        found.append(acquire(lease, fence, granted - before, granted + min(after, 0.5)))
        at = granted + 0.5
        for pause in renewals:
            at += pause
            found.append(call("renew", lease, at - 0.0005, at + 0.0004, "RENEWED"))
        if leaves != "expire":
            ends = granted + sum(renewals) + 0.9
            found.append(call("release", lease, ends - 0.3, ends if leaves == "release" else None, "RELEASED"))
    return found, slots


@given(true_histories())
def test_no_history_of_a_right_daemon_is_called_false(made):
    found, slots = made
    told = [v for v in history.check(found, Facts(slots={POOL: slots})) if "unknown" not in v.text]
    assert told == [] or [v.text for v in told] == ["the history holds no grant: nothing was shown"]


@given(true_histories(), st.data())
def test_a_grant_beside_the_holders_of_every_slot_is_always_found(made, data):
    found, slots = made
    made_leases = history.leases(found, Facts(slots={POOL: slots}))
    spans = [history.certain(lease, lease.grant.answered, Facts(slots={POOL: slots})) for lease in made_leases]
    whole = [span for span in spans if span[1] - span[0] > seconds(0.01)]
    if not whole:
        return
    begin, end = data.draw(st.sampled_from(whole))
    middle = (begin + end) / 2e9
    rest = [acquire(f"extra-{n}", 10_000 + n, middle - 0.001, middle) for n in range(slots)]
    later = [replace(o, fence=o.fence + 20_000) if o.fence and o.invoked > seconds(middle) else o for o in found]
    assert "doubled" in kinds([*later, *rest], Facts(slots={POOL: slots}))

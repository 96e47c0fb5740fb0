"""The tables of the lifecycle: what they hold, and what follows for the graph that they are."""

from __future__ import annotations

import itertools

import pytest

from poolmgr.core.lifecycle import (
    ADMISSION,
    COMMANDS,
    TRANSITIONS,
    Admission,
    Command,
    Trigger,
    Verdict,
    admission,
    advance,
)
from poolmgr.errors import InternalError
from poolmgr.model.lease import RefusalReason
from poolmgr.model.pool import BreakerState, PoolState

S, T = PoolState, Trigger

# Written down from the rules a second time, as lines that a person can read: who leaves to where.
EDGES = """
PENDING      START PROVISIONING, ADOPTED STARTING, DOUBTED UNKNOWN, HALT STOPPED, RETRY BACKOFF, PARK PARKED
PENDING      HEARD STARTING, LOSE LOST
PROVISIONING SPAWNED STARTING, STOP STOPPING, RETRY BACKOFF, PARK PARKED, HALT STOPPED
STARTING     BECAME_READY READY, STOP STOPPING, FAIL STOPPING, LOSE LOST
READY        DRAIN DRAINING, STOP STOPPING, FAIL STOPPING, UNREADY STARTING, LOSE LOST
DRAINING     UNDRAIN READY, STOP STOPPING, FAIL STOPPING, UNREADY STARTING, LOSE LOST
STOPPING     HALT STOPPED, RETRY BACKOFF, PARK PARKED, RESUME PROVISIONING
STOPPED      START PROVISIONING, LOSE LOST
BACKOFF      RESUME PROVISIONING, HALT STOPPED
PARKED       RESUME PROVISIONING, HALT STOPPED
UNKNOWN      HALT STOPPED
LOST         HEARD STARTING, STOP STOPPING
"""


def expected() -> dict[tuple[PoolState, Trigger], PoolState]:
    table = {}
    for line in EDGES.strip().splitlines():
        state, _, edges = line.partition(" ")
        for edge in filter(None, edges.strip().split(", ")):
            trigger, target = edge.split()
            table[S(state), T(trigger)] = S(target)
    return table


def successors(state: PoolState) -> set[PoolState]:
    return {target for (source, _), target in TRANSITIONS.items() if source is state}


def reachable(start: PoolState, without: frozenset[PoolState] = frozenset()) -> set[PoolState]:
    seen, todo = {start}, [start]
    while todo:
        new = successors(todo.pop()) - seen - without
        seen |= new
        todo += new
    return seen


@pytest.mark.behaviour("RST-8")
@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(PoolState, Trigger)), ids=str)
def test_a_transition_leads_where_the_rules_say_and_every_other_one_raises(state, trigger):
    target = expected().get((state, trigger))
    if target is None:
        with pytest.raises(InternalError, match=f"{state} by {trigger}"):
            advance(state, trigger)
    else:
        assert advance(state, trigger) is target


def test_every_state_is_reachable_from_pending():
    assert reachable(S.PENDING) == set(S)


@pytest.mark.behaviour("ENG-2", "ENG-3")
def test_a_lost_engine_is_neither_started_nor_counted_as_failed_and_comes_back_only_to_be_probed():
    assert {trigger for source, trigger in TRANSITIONS if source is S.LOST} == {T.HEARD, T.STOP}
    assert {trigger for (_, trigger), target in TRANSITIONS.items() if target is S.LOST} == {T.LOSE}
    assert S.READY not in reachable(S.LOST, without=frozenset({S.STARTING}))


@pytest.mark.parametrize("state", sorted(S))
def test_stopped_is_reachable_from_every_state(state):
    assert S.STOPPED in reachable(state)


def test_no_transition_leads_back_to_pending_or_from_a_state_to_itself():
    assert S.PENDING not in set(TRANSITIONS.values())
    assert not [source for (source, _), target in TRANSITIONS.items() if source is target]


@pytest.mark.behaviour("PRE-1", "PROC-7")
def test_a_pool_becomes_ready_only_out_of_starting_or_by_undrain():
    into = {(source, trigger) for (source, trigger), target in TRANSITIONS.items() if target is S.READY}
    assert into == {(S.STARTING, T.BECAME_READY), (S.DRAINING, T.UNDRAIN)}
    assert S.READY not in reachable(S.STOPPING, without=frozenset({S.STARTING}))


@pytest.mark.behaviour("PRE-8", "PROC-7")
def test_a_state_with_a_process_reaches_one_without_only_through_stopping():
    owners, empty = {S.STARTING, S.READY, S.DRAINING}, {S.BACKOFF, S.PARKED, S.STOPPED, S.PROVISIONING}
    for owner in owners:
        assert not successors(owner) & empty
        assert not reachable(owner, without=frozenset({S.STOPPING})) & empty


@pytest.mark.behaviour("RST-7")
def test_parked_leaves_only_to_another_start_or_to_stopped():
    assert {trigger for source, trigger in TRANSITIONS if source is S.PARKED} == {T.RESUME, T.HALT}
    assert successors(S.PARKED) == {S.PROVISIONING, S.STOPPED}


@pytest.mark.behaviour("PROC-6")
def test_an_engine_in_doubt_is_neither_started_nor_stopped():
    assert successors(S.UNKNOWN) == {S.STOPPED}
    assert all(COMMANDS[command][S.UNKNOWN] is Verdict.REFUSE for command in Command)


def test_every_command_has_a_verdict_in_every_state():
    assert set(COMMANDS) == set(Command)
    assert all(set(row) == set(PoolState) for row in COMMANDS.values())


ACTING = {
    Command.PRELOAD: (T.START,),
    Command.DRAIN: (T.DRAIN, T.STOP, T.HALT),
    Command.UNDRAIN: (T.UNDRAIN,),
    Command.STOP: (T.STOP, T.HALT),
}


@pytest.mark.parametrize("command", Command)
def test_a_command_acts_only_where_the_transitions_let_it(command):
    for state, verdict in COMMANDS[command].items():
        if verdict is Verdict.ACT:
            assert any((state, trigger) in TRANSITIONS for trigger in ACTING[command]), state


@pytest.mark.behaviour("DRN-1")
def test_undrain_is_refused_from_stopping_on():
    row = COMMANDS[Command.UNDRAIN]
    assert {state for state, verdict in row.items() if verdict is not Verdict.REFUSE} == {S.DRAINING, S.READY}


@pytest.mark.behaviour("LEASE-1", "DRN-1")
def test_only_a_ready_pool_grants_and_only_a_pool_on_its_way_to_ready_queues():
    def told(verdict: Admission) -> set[PoolState]:
        return {state for state, (v, _) in ADMISSION.items() if v is verdict}

    assert set(ADMISSION) == set(PoolState)
    assert told(Admission.GRANT) == {S.READY}
    assert told(Admission.QUEUE) == {S.PROVISIONING, S.STARTING, S.BACKOFF}
    assert ADMISSION[S.DRAINING][1] is RefusalReason.POOL_DRAINING


@pytest.mark.behaviour("RST-2", "LEASE-6")
def test_an_open_breaker_is_the_reason_of_a_parked_pool_and_cuts_no_serving_engine_off():
    assert admission(S.PARKED, BreakerState.OPEN) == (Admission.REFUSE, RefusalReason.BREAKER_OPEN)
    assert admission(S.PARKED, BreakerState.CLOSED) == (Admission.REFUSE, RefusalReason.POOL_NOT_READY)
    assert admission(S.READY, BreakerState.OPEN) == ADMISSION[S.READY]

"""Device states: the table, what outranks what, and who gets work (STATE-1 to STATE-3, DEV-2)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolmgr.core import cordons
from poolmgr.core import devices as fold
from poolmgr.core.device_states import HEALTH, RESETS, TIMED, Record, Signal, admits, credited, moved, shown
from poolmgr.core.remembered_devices import Remembered, first_seen
from poolmgr.errors import ClientError, InternalError, Reason
from poolmgr.model.claim import Claim, ClaimKind
from poolmgr.model.device import Absence, DeviceState, Discovery, DriverEvent, DriverEventKind, RecoveryAction
from poolmgr.model.device_health import (
    STATE_NUMBERS,
    Cordon,
    DeviceNote,
    DeviceNoteName,
    DeviceSettings,
    Inadmissible,
    Severity,
    Verdict,
)
from poolmgr.model.xid import XIDS, XidOrigin, XidSeverity
from poolmgr.testing.devices import a_gpu, an_instance

S, N = DeviceState, DeviceNoteName
SETTINGS = DeviceSettings()
HOUR = 3600.0
FAULT, STRAIN = Verdict(Severity.FAULT, "it broke"), Verdict(Severity.STRAIN, "it creaks")


class Bench:
    """A host whose devices are stepped by hand; keeps all notes."""

    def __init__(self, *devices, settings: DeviceSettings = SETTINGS, remembered=None, now=1000.0) -> None:
        self.settings, self.now, self.notes, self.moved = settings, now, [], []
        self.host = fold.Host(remembered=remembered or {}, offset=1e9)
        self.devices = list(devices)
        self.look()

    def tell(self, event: fold.Event) -> None:
        self.host, effects = fold.step(self.host, event, self.now, self.settings)
        self.notes += [one for one in effects if isinstance(one, DeviceNote)]
        self.moved += [one for one in effects if isinstance(one, fold.MoveAway)]

    def look(self, *devices) -> None:
        self.devices = list(devices or self.devices)
        self.tell(fold.Discovered(Discovery(tuple(self.devices), self.now, absence=None)))

    def vanish(self, absence: Absence = Absence.NO_DEVICES) -> None:
        self.tell(fold.Discovered(Discovery((), self.now, absence=absence)))

    def fault(self, number: int = 0, verdict: Verdict = FAULT, code: int = 79) -> None:
        device_id = self.devices[number].device_id
        self.tell(fold.Happened(DriverEvent(DriverEventKind.XID, device_id, self.now, code), verdict))

    def claim(self, number: int, *kinds: ClaimKind) -> None:
        device_id = self.devices[number].device_id
        claims = tuple(
            Claim(f"c{n}", device_id, kind, "chat", self.now, engine_id=f"e{n}") for n, kind in enumerate(kinds)
        )
        self.tell(fold.Claimed({device_id: claims}))

    def wait(self, seconds: float) -> None:
        """As the timer of the runtime does: `Due` at each time that is told."""
        end = self.now + seconds
        while (due := fold.next_due(self.host, self.settings)) is not None and due <= end:
            self.now = max(self.now, due)
            self.tell(fold.Due())
        self.now = end

    def record(self, number: int = 0) -> Record:
        return self.host.records[self.devices[number].device_id]

    def state(self, number: int = 0) -> DeviceState:
        return shown(self.record(number), fold.parent_of(self.host, self.record(number)))[0]

    def admits(self, number: int = 0, holder: str = ""):
        record = self.record(number)
        refused = admits(record, fold.parent_of(self.host, record), holder)
        return refused.reason if refused else None

    def noted(self, name: DeviceNoteName) -> list[DeviceNote]:
        return [note for note in self.notes if note.name is name]


def four() -> Bench:
    return Bench(*(a_gpu(number) for number in range(4)))


# The table.


def test_every_state_of_the_table_leads_to_states_of_the_table():
    assert set(HEALTH) == {S.AVAILABLE, S.DEGRADED, S.QUARANTINED, S.PROBATION}
    assert {to for moves in HEALTH.values() for to in moves.values()} == set(HEALTH)


@pytest.mark.behaviour("STATE-1")
def test_no_state_is_for_ever():
    """From each there is a way to AVAILABLE by time alone, or by time and work."""
    for state in HEALTH:
        seen = state
        for _ in range(3):
            if seen is not S.AVAILABLE:
                seen = HEALTH[seen][TIMED[seen][0]]
        assert seen is S.AVAILABLE


def test_what_the_table_does_not_have_is_a_defect():
    with pytest.raises(InternalError, match="AVAILABLE by PROVED"):
        moved(Record(a_gpu()), Signal.PROVED, "", 0.0, SETTINGS)


@pytest.mark.behaviour("STATE-1")
def test_every_state_has_the_number_that_the_metric_was_promised():
    assert [STATE_NUMBERS[state] for state in DeviceState] == [0, 1, 2, 3, 4, 5, 6]
    names = ("AVAILABLE", "ALLOCATED", "DEGRADED", "QUARANTINED", "RESETTING", "OFFLINE", "PROBATION")
    assert [state.value for state in sorted(DeviceState, key=STATE_NUMBERS.__getitem__)] == list(names)


# Claims, faults, time.


@pytest.mark.behaviour("STATE-1")
def test_a_device_is_allocated_while_somebody_holds_it():
    bench = four()
    assert bench.state() is S.AVAILABLE
    bench.claim(0, ClaimKind.PROCESS)
    assert bench.state() is S.ALLOCATED and bench.admits() is None
    bench.claim(0)
    assert bench.state() is S.AVAILABLE
    assert [(n.fields["from"], n.fields["to"]) for n in bench.noted(N.TRANSITION)] == [
        ("AVAILABLE", "ALLOCATED"),
        ("ALLOCATED", "AVAILABLE"),
    ]


@pytest.mark.behaviour("STATE-1")
def test_a_fault_takes_a_device_out_and_sends_its_work_away():
    bench = four()
    bench.claim(0, ClaimKind.ENGINE)
    bench.fault()
    assert bench.state() is S.QUARANTINED and bench.admits() is Inadmissible.QUARANTINED
    assert [one.device_id for one in bench.moved] == [bench.devices[0].device_id]
    assert bench.noted(N.QUARANTINED)[0].fields == {"reason": "XID 79: it broke", "seconds": HOUR}
    assert [bench.state(n) for n in (1, 2, 3)] == [S.AVAILABLE] * 3


@pytest.mark.behaviour("STATE-1")
def test_after_a_quarantine_comes_probation_with_one_trial_and_healthy_hours_make_it_available():
    bench = four()
    bench.fault()
    bench.wait(HOUR - 1)
    assert bench.state() is S.QUARANTINED
    bench.wait(2)
    assert bench.state() is S.PROBATION and bench.admits() is None
    bench.claim(0, ClaimKind.ENGINE)
    assert bench.admits() is Inadmissible.PROBATION_BUSY and bench.admits(holder="e0") is None
    bench.wait(HOUR - 1)
    assert bench.state() is S.PROBATION
    bench.wait(1)
    assert bench.state() is S.ALLOCATED and bench.admits() is None
    assert bench.record().length == 0.0


@pytest.mark.behaviour("STATE-1")
def test_an_idle_hour_proves_nothing_and_working_hours_add_up():
    bench = four()
    bench.fault()
    bench.wait(HOUR)
    bench.wait(100 * HOUR)
    assert bench.state() is S.PROBATION
    for _ in range(3):
        bench.claim(0, ClaimKind.ENGINE)
        bench.wait(HOUR / 3 - 1)
        bench.claim(0)
        bench.wait(HOUR)
        assert bench.state() is S.PROBATION
    bench.claim(0, ClaimKind.ENGINE)
    bench.wait(4)
    assert bench.state() is S.ALLOCATED


@pytest.mark.behaviour("STATE-1")
def test_a_failure_in_probation_doubles_the_next_quarantine_up_to_a_cap():
    bench, lengths = four(), []
    for _ in range(7):
        bench.fault()
        lengths.append(bench.record().length / HOUR)
        bench.wait(bench.record().length)
        assert bench.state() is S.PROBATION
    assert lengths == [1, 2, 4, 8, 16, 24, 24]


def test_more_faults_of_a_quarantined_device_prolong_it_and_double_nothing():
    bench = four()
    bench.fault()
    bench.fault()  # the same, told by the kernel's log too
    assert bench.record().length == HOUR and len(bench.noted(N.QUARANTINED)) == 1
    bench.wait(HOUR / 2)
    bench.fault()
    bench.fault(verdict=STRAIN)
    bench.wait(HOUR - 1)
    assert bench.state() is S.QUARANTINED and bench.record().reason == "XID 79: it broke"
    bench.wait(1)
    assert bench.state() is S.PROBATION


def test_strain_makes_a_device_the_last_choice_for_a_while():
    bench = four()
    bench.fault(verdict=STRAIN)
    assert bench.state() is S.DEGRADED and bench.admits() is None and bench.moved == []
    bench.wait(HOUR)
    assert bench.state() is S.AVAILABLE


def test_what_the_work_did_wrong_changes_nothing_of_its_device():
    bench = four()
    bench.fault(verdict=Verdict(Severity.HARMLESS, "an illegal address"), code=31)
    assert bench.state() is S.AVAILABLE
    (note,) = bench.noted(N.DRIVER_EVENT)
    assert note.fields["code"] == 31 and note.fields["meaning"] == "an illegal address"


@pytest.mark.parametrize(
    ("code", "severity"),
    [
        (31, Severity.HARMLESS),
        (13, Severity.HARMLESS),
        (79, Severity.FAULT),
        (48, Severity.FAULT),
        (63, Severity.STRAIN),
        (99_999, Severity.STRAIN),
    ],
)
def test_an_xid_is_judged_by_the_catalogue_and_an_unknown_one_is_not_harmless(code, severity):
    assert fold.judge(DriverEvent(DriverEventKind.XID, "GPU-a", 0.0, code)).severity is severity


def test_an_event_of_a_device_that_nobody_knows_is_told_and_does_nothing():
    bench = four()
    event = DriverEvent(DriverEventKind.XID, "GPU-elsewhere", bench.now, 79)
    bench.tell(fold.Happened(event, FAULT))
    assert len(bench.noted(N.DRIVER_EVENT)) == 1 and not bench.noted(N.QUARANTINED)


# Operators.


@pytest.mark.behaviour("STATE-1")
def test_uncordon_ends_a_cordon_and_never_a_quarantine():
    bench = four()
    bench.fault()
    bench.tell(fold.Cordoned(bench.devices[0].device_id, Cordon("new fan", 1.0)))
    bench.tell(fold.Cordoned(bench.devices[0].device_id, None))
    assert bench.state() is S.QUARANTINED and bench.admits() is Inadmissible.QUARANTINED


@pytest.mark.behaviour("STATE-1")
def test_a_cordon_outlasts_a_quarantine_and_keeps_new_work_out_alone():
    bench = four()
    bench.fault()
    bench.tell(fold.Cordoned(bench.devices[0].device_id, Cordon("new fan", 1.0)))
    bench.wait(HOUR)
    assert bench.state() is S.PROBATION and bench.admits() is Inadmissible.CORDONED
    bench.tell(fold.Cordoned(bench.devices[0].device_id, None))
    assert bench.admits() is None
    assert [n.name for n in bench.notes if n.name in (N.CORDONED, N.UNCORDONED)] == [N.CORDONED, N.UNCORDONED]


def test_the_same_cordon_again_changes_nothing():
    bench = four()
    for at in (1.0, 2.0):
        bench.tell(fold.Cordoned(bench.devices[0].device_id, Cordon("new fan", at)))
    assert bench.record().cordon == Cordon("new fan", 1.0) and len(bench.noted(N.CORDONED)) == 1


# Maintenance in a window.


def planned(bench: Bench, starts: float | None = None, ends: float | None = None, drain: bool = False) -> Cordon:
    """`starts` and `ends` in seconds from now; what the bench shows is Unix time."""
    wall = bench.now + bench.host.offset
    of = Cordon(
        "new fan", wall, None if starts is None else wall + starts, None if ends is None else wall + ends, drain
    )
    bench.tell(fold.Cordoned(bench.devices[0].device_id, of))
    return of


@pytest.mark.behaviour("STATE-1")
def test_a_planned_cordon_keeps_work_out_in_its_window_alone():
    bench = four()
    planned(bench, 100.0, 200.0)
    assert bench.admits() is None and bench.noted(N.CORDON_PLANNED) and not bench.noted(N.CORDONED)
    bench.wait(99.0)
    assert bench.admits() is None
    bench.wait(1.0)
    assert bench.admits() is Inadmissible.CORDONED and len(bench.noted(N.CORDONED)) == 1
    bench.wait(99.0)
    assert bench.admits() is Inadmissible.CORDONED
    bench.wait(1.0)
    assert bench.admits() is None and len(bench.noted(N.UNCORDONED)) == 1


@pytest.mark.behaviour("STATE-1")
@pytest.mark.parametrize("drain", [False, True])
def test_work_leaves_a_cordoned_device_when_its_window_begins_and_only_if_that_was_asked_for(drain):
    bench = four()
    planned(bench, 100.0, drain=drain)
    bench.wait(99.0)
    assert bench.moved == [] and fold.to_leave(bench.host, bench.record()) == ""
    bench.wait(1.0)
    assert [one.device_id for one in bench.moved] == ([bench.devices[0].device_id] if drain else [])
    assert fold.to_leave(bench.host, bench.record()) == ("cordoned: new fan" if drain else "")


@pytest.mark.behaviour("STATE-1")
def test_an_uncordon_ends_a_planned_cordon_too():
    bench = four()
    planned(bench, 100.0)
    bench.tell(fold.Cordoned(bench.devices[0].device_id, None))
    bench.wait(200.0)
    assert bench.admits() is None and not bench.noted(N.CORDONED) and bench.record().planned is None


@pytest.mark.behaviour("STATE-1")
@pytest.mark.parametrize(("slept", "refusal"), [(50.0, None), (150.0, Inadmissible.CORDONED), (250.0, None)])
def test_the_next_daemon_keeps_to_a_window_that_began_or_ended_meanwhile(slept, refusal):
    bench = four()
    planned(bench, 100.0, 200.0, drain=True)
    after = Bench(*bench.devices, remembered=fold.to_remember(bench.host), now=bench.now + slept)
    after.wait(0.0)
    assert after.admits() is refusal
    assert [one.device_id for one in after.moved] == ([bench.devices[0].device_id] if refusal else [])


def test_what_is_not_there_cannot_be_cordoned():
    with pytest.raises(ClientError) as refused:
        four().tell(fold.Cordoned("GPU-none", Cordon("", 1.0)))
    assert refused.value.reason is Reason.DEVICE_NOT_FOUND


# What the driver asks for.


@pytest.mark.behaviour("STATE-2")
@pytest.mark.parametrize("action", [action for action in RecoveryAction if action is not RecoveryAction.NONE])
def test_what_the_driver_asks_for_keeps_new_work_out(action):
    bench = Bench(replace(a_gpu(), recovery_action=action))
    assert bench.admits() is Inadmissible.RECOVERY_ACTION
    assert bench.state() is (S.DEGRADED if action is RecoveryAction.DRAIN_P2P else S.RESETTING)


@pytest.mark.behaviour("STATE-2")
def test_a_reset_sends_work_away_and_leads_to_probation():
    gpu = replace(a_gpu(), recovery_action=RecoveryAction.NONE)
    bench = Bench(gpu, a_gpu(1))
    bench.look(replace(gpu, recovery_action=RecoveryAction.DRAIN_AND_RESET), a_gpu(1))
    bench.look()
    assert [one.device_id for one in bench.moved] == [gpu.device_id]
    bench.look(a_gpu(1))
    bench.look(gpu, a_gpu(1))
    assert bench.state() is S.PROBATION and bench.admits() is None


def test_a_driver_that_reports_no_recovery_action_keeps_nothing_out():
    bench = Bench(replace(a_gpu(), recovery_action=None))
    assert bench.state() is S.AVAILABLE and bench.admits() is None


# The budget.


@pytest.mark.behaviour("STATE-3")
@pytest.mark.parametrize(("gpus", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (8, 4)])
def test_never_more_than_half_of_the_gpus_are_quarantined_automatically(gpus, most):
    bench = Bench(*(a_gpu(number) for number in range(gpus)))
    for number in range(gpus):
        bench.fault(number)
    states = [bench.state(number) for number in range(gpus)]
    assert states == [S.QUARANTINED] * most + [S.DEGRADED] * (gpus - most)
    critical = bench.noted(N.DISRUPTION_BUDGET)
    assert [note.device_id for note in critical] == [device.device_id for device in bench.devices[most:]]
    assert critical[0].fields["quarantined"] == most and critical[0].fields["gpus"] == gpus


@pytest.mark.behaviour("STATE-3")
def test_a_cordon_is_a_persons_and_uses_nothing_of_the_budget():
    bench = four()
    for number in (0, 1):
        bench.tell(fold.Cordoned(bench.devices[number].device_id, Cordon("", 1.0)))
    bench.fault(2)
    bench.fault(3)
    assert bench.state(2) is bench.state(3) is S.QUARANTINED


@pytest.mark.behaviour("STATE-3")
def test_the_instances_of_one_gpu_count_once():
    gpus = [replace(a_gpu(number), mig_mode=number == 0) for number in range(2)]
    slices = [an_instance(gpus[0], number) for number in range(2)]
    bench = Bench(*gpus, *slices)
    for number in (2, 3, 0):
        bench.fault(number)
    assert [bench.state(number) for number in (2, 3, 0)] == [S.QUARANTINED] * 3
    bench.fault(1)
    assert bench.state(1) is S.DEGRADED


@pytest.mark.behaviour("STATE-1")
def test_a_state_is_shown_with_the_time_since_which_it_is():
    gpu = replace(a_gpu(), mig_mode=True)
    bench = Bench(gpu, an_instance(gpu, 0), a_gpu(1))
    bench.wait(10)
    bench.claim(2, ClaimKind.PROCESS)
    bench.wait(10)
    bench.claim(2, ClaimKind.PROCESS, ClaimKind.PROCESS)
    bench.fault(0)
    views = [fold.view(bench.host, bench.record(number)) for number in range(3)]
    assert [view.state for view in views] == [S.QUARANTINED, S.QUARANTINED, S.ALLOCATED]
    assert [view.since - 1e9 for view in views] == [1020.0, 1020.0, 1010.0]
    assert views[0].until == views[0].since + HOUR
    assert len([note for note in bench.noted(N.TRANSITION) if note.fields["to"] == "QUARANTINED"]) == 2


# Presence.


@pytest.mark.behaviour("DEV-2")
def test_a_device_that_goes_and_comes_back_is_the_same_device():
    bench = four()
    first, rest = bench.devices[0], bench.devices[1:]
    bench.fault()
    bench.look(*rest)
    bench.devices = [first, *rest]
    assert bench.state() is S.OFFLINE and bench.admits() is Inadmissible.OFFLINE
    assert [note.device_id for note in bench.noted(N.MISSING)] == [first.device_id]
    bench.wait(5)
    bench.look(replace(first, index=7), *rest)
    assert bench.state() is S.QUARANTINED and bench.record().device.index == 7
    assert bench.noted(N.RETURNED)[0].fields["away_seconds"] == 5.0
    assert len(bench.noted(N.FOUND)) == 4


@pytest.mark.behaviour("DEV-2")
def test_fewer_devices_are_told_once_each():
    bench = four()
    bench.vanish()
    bench.vanish()
    assert len(bench.noted(N.MISSING)) == 4


@pytest.mark.parametrize("absence", sorted(fold.UNSEEN))
def test_a_look_that_failed_takes_no_device_away(absence):
    bench = four()
    bench.vanish(absence)
    assert bench.state() is S.AVAILABLE and not bench.noted(N.MISSING)


def test_devices_that_are_gone_are_forgotten_when_there_are_too_many():
    bench = Bench(a_gpu())
    for number in range(1, fold.MAX_OFFLINE + 20):
        bench.wait(1)
        bench.look(a_gpu(number))
    assert len(bench.host.records) == fold.MAX_OFFLINE + 1
    assert a_gpu(0).device_id not in bench.host.records


# MIG.


@pytest.mark.behaviour("DEV-3")
def test_a_partitioned_gpu_takes_no_work_itself_and_its_instances_share_its_fate():
    gpu = replace(a_gpu(), mig_mode=True)
    bench = Bench(gpu, an_instance(gpu, 0), an_instance(gpu, 1), a_gpu(1))
    assert bench.admits(0) is Inadmissible.PARTITIONED and bench.admits(1) is None
    bench.claim(1, ClaimKind.ENGINE)
    assert [bench.state(n) for n in range(3)] == [S.ALLOCATED, S.ALLOCATED, S.AVAILABLE]
    bench.fault(0)
    assert [bench.state(n) for n in range(3)] == [S.QUARANTINED] * 3
    assert bench.admits(2) is Inadmissible.QUARANTINED
    assert {one.device_id for one in bench.moved} == {device.device_id for device in bench.devices[:3]}
    bench.wait(HOUR)
    assert bench.admits(2) is Inadmissible.PROBATION_BUSY  # one trial on the whole GPU
    bench.tell(fold.Cordoned(gpu.device_id, Cordon("", 1.0)))
    assert bench.admits(2) is Inadmissible.CORDONED


# What outlives the daemon.


@pytest.mark.behaviour("STATE-1")
def test_the_next_daemon_knows_of_cordons_and_quarantines_and_how_long_they_last():
    bench = four()
    bench.fault()
    bench.tell(fold.Cordoned(bench.devices[1].device_id, Cordon("new fan", 5.0)))
    kept = fold.to_remember(bench.host)
    assert set(kept) == {device.device_id for device in bench.devices[:2]}
    after = Bench(*bench.devices, remembered=kept)
    assert fold.to_remember(after.host) == kept
    after.wait(HOUR - 1)
    assert after.state() is S.QUARANTINED and after.admits(1) is Inadmissible.CORDONED
    after.wait(1)
    assert after.state() is S.PROBATION


def test_a_daemon_that_never_saw_a_device_remembers_it_all_the_same():
    kept = {"GPU-away": Remembered(cordon=Cordon("at the dealer's", 1.0))}
    assert fold.to_remember(Bench(a_gpu(), remembered=kept).host) == kept


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("fault"), st.integers(0, 3), st.sampled_from([FAULT, STRAIN])),
        st.tuples(st.just("look"), st.sets(st.integers(0, 3)), st.sampled_from([None, *RecoveryAction])),
        st.tuples(st.just("claim"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("cordon"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("wait"), st.floats(0, 3 * HOUR), st.none()),
    ),
    max_size=40,
)


RESTRAINED = set(RecoveryAction) - {RecoveryAction.NONE}


def happen(bench: Bench, everything: list, kind: str, what, how) -> None:
    match kind:
        case "fault":
            bench.fault(what, how)
        case "look":
            seen = tuple(replace(everything[n], recovery_action=how) for n in sorted(what))
            bench.tell(fold.Discovered(Discovery(seen, bench.now, absence=None if seen else Absence.NO_DEVICES)))
        case "claim":
            bench.claim(what, *[ClaimKind.ENGINE] * how)
        case "cordon":
            bench.tell(fold.Cordoned(everything[what].device_id, Cordon("", 1.0) if how else None))
        case "wait":
            bench.wait(what)


@pytest.mark.behaviour("STATE-3")
@given(EVENTS)
def test_whatever_happens_the_budget_holds_and_refusals_agree_with_states(events):
    bench = four()
    everything = list(bench.devices)
    for event in events:
        happen(bench, everything, *event)
        records = [bench.record(number) for number in range(4)]
        assert sum(record.health is S.QUARANTINED for record in records) <= 2
        for number, record in enumerate(records):
            refused, state = bench.admits(number), bench.state(number)
            assert (state is S.OFFLINE) == (refused is Inadmissible.OFFLINE) == (record.gone is not None)
            out = state in (S.QUARANTINED, S.RESETTING, S.OFFLINE) or record.cordon or record.action in RESTRAINED
            assert refused is not None or not out
            assert out or refused is None or record.health is S.PROBATION


# What is told.


def test_a_device_that_is_missing_is_told_with_its_name_its_index_and_its_gpu():
    gpu = replace(a_gpu(3), mig_mode=True)
    slice_ = an_instance(gpu, 0)
    bench = Bench(gpu, slice_, replace(a_gpu(1), index=None))
    bench.vanish()
    told = {note.device_id: note.fields for note in bench.noted(N.MISSING)}
    assert told == {
        gpu.device_id: {"name": gpu.name, "index": "3"},
        slice_.device_id: {"name": slice_.name, "index": "", "parent": gpu.device_id},
        a_gpu(1).device_id: {"name": a_gpu(1).name, "index": ""},
    }


@pytest.mark.parametrize(
    ("holders", "text"),
    [
        (("a",), "held by a"),
        (("b", "a", "b"), "held by a, b"),
        (("c", "b", "a"), "held by a, b, c"),
        (("d", "c", "b", "a"), "held by a, b, c and 1 more"),
        (("e", "d", "c", "b", "a"), "held by a, b, c and 2 more"),
    ],
)
def test_three_of_those_who_hold_a_device_are_named_and_the_others_counted(holders, text):
    claims = tuple(
        Claim(f"c{n}", "GPU-a", ClaimKind.PROCESS, holder, 0.0, engine_id="") for n, holder in enumerate(holders)
    )
    assert shown(Record(a_gpu(), claims=claims)) == (S.ALLOCATED, text)


@pytest.mark.behaviour("STATE-1")
def test_of_a_healthy_device_nothing_is_remembered_but_its_cordon():
    bench = four()
    bench.claim(1, ClaimKind.ENGINE)
    cordon = Cordon("new fan", 5.0)
    bench.tell(fold.Cordoned(bench.devices[0].device_id, cordon))
    expected = Remembered(S.AVAILABLE, "", 0.0, None, 0.0, 0.0, cordon)
    assert fold.to_remember(bench.host) == {bench.devices[0].device_id: expected}


@pytest.mark.behaviour("STATE-1")
def test_work_that_is_proved_is_remembered_by_the_whole_minute():
    bench = four()
    bench.fault()
    bench.wait(HOUR)
    for seconds, proved in ((59.0, 0.0), (1.0, 60.0), (59.0, 60.0), (1.0, 120.0)):
        bench.claim(0, ClaimKind.ENGINE)
        bench.wait(seconds)
        bench.claim(0, ClaimKind.ENGINE)
        assert fold.to_remember(bench.host)[bench.devices[0].device_id].proved == proved
    after = Bench(*bench.devices, remembered=fold.to_remember(bench.host), now=bench.now)
    after.claim(0, ClaimKind.ENGINE)
    after.wait(HOUR - 121.0)
    assert after.state() is S.PROBATION
    after.wait(1.0)
    assert after.state() is S.ALLOCATED


@pytest.mark.behaviour("DEV-2")
def test_how_long_a_device_was_away_is_told_to_the_millisecond():
    bench = four()
    first, *rest = bench.devices
    bench.look(*rest)
    bench.wait(5.12345)
    bench.look(first, *rest)
    assert bench.noted(N.RETURNED)[0].fields == {"name": first.name, "away_seconds": 5.123}


# What an XID means by its severity, where it is the hardware's and where it is not.
MEANT = {
    (XidSeverity.INFO, True): Severity.HARMLESS,
    (XidSeverity.INFO, False): Severity.HARMLESS,
    (XidSeverity.WARNING, True): Severity.STRAIN,
    (XidSeverity.WARNING, False): Severity.HARMLESS,
    (XidSeverity.CRITICAL, True): Severity.FAULT,
    (XidSeverity.CRITICAL, False): Severity.FAULT,
}


@pytest.mark.parametrize(("severity", "hardware"), MEANT)
def test_every_xid_of_the_catalogue_is_judged_by_its_severity_and_by_whether_it_is_the_hardwares(severity, hardware):
    own = [x for x in XIDS.values() if (x.severity, x.origin is XidOrigin.HARDWARE) == (severity, hardware)]
    assert own
    for xid in own:
        judged = fold.judge(DriverEvent(DriverEventKind.XID, "GPU-a", 0.0, xid.code))
        assert judged == Verdict(MEANT[severity, hardware], xid.meaning)


def test_an_event_that_is_no_xid_is_harmless_unless_memory_was_lost():
    lost = fold.judge(DriverEvent(DriverEventKind.ECC_DOUBLE, "GPU-a", 0.0))
    assert lost == Verdict(Severity.FAULT, "an uncorrectable memory error")
    for kind in set(DriverEventKind) - {DriverEventKind.ECC_DOUBLE}:
        assert fold.judge(DriverEvent(kind, "GPU-a", 0.0, text="so it said")) == Verdict(
            Severity.HARMLESS, "so it said"
        )


def test_only_what_is_an_xid_with_a_code_is_judged_by_the_catalogue():
    other = next(kind for kind in DriverEventKind if kind not in (DriverEventKind.XID, DriverEventKind.ECC_DOUBLE))
    for event in (
        DriverEvent(other, "GPU-a", 0.0, 79, text="so it said"),
        DriverEvent(DriverEventKind.XID, "GPU-a", 0.0, text="so it said"),
    ):
        assert fold.judge(event) == Verdict(Severity.HARMLESS, "so it said")


# What is shown, and what is remembered, with its times.


@pytest.mark.behaviour("STATE-1")
def test_an_end_is_shown_of_the_state_that_it_is_the_end_of():
    gpu = replace(a_gpu(), mig_mode=True)
    bench = Bench(gpu, an_instance(gpu, 0), a_gpu(1))
    bench.fault(0)
    bench.fault(2, STRAIN)
    out, slice_, strained = (fold.view(bench.host, bench.record(number)) for number in range(3))
    assert (out.state, out.until) == (S.QUARANTINED, bench.now + HOUR + 1e9)
    assert (slice_.state, slice_.until) == (S.QUARANTINED, None), "it is its GPU that is out"
    assert (strained.state, strained.until) == (S.DEGRADED, bench.now + SETTINGS.degraded + 1e9)
    bench.vanish()
    shown_now = [fold.view(bench.host, bench.record(number)) for number in range(3)]
    assert [(view.state, view.until, view.since) for view in shown_now] == [(S.OFFLINE, None, bench.now + 1e9)] * 3


@pytest.mark.behaviour("STATE-1")
def test_a_device_is_shown_with_its_cordon_those_who_hold_it_and_why_it_takes_no_work():
    bench = four()
    bench.claim(0, ClaimKind.ENGINE, ClaimKind.PROCESS)
    shown_now = fold.view(bench.host, bench.record())
    assert (shown_now.cordon, shown_now.claims, shown_now.refusal) == (None, 2, None)
    assert shown_now.until is None
    of = planned(bench, 100.0)
    assert fold.view(bench.host, bench.record()).cordon == of
    assert fold.view(bench.host, bench.record()).refusal is None
    bench.wait(100.0)
    shown_now = fold.view(bench.host, bench.record())
    assert (shown_now.cordon, shown_now.refusal) == (of, Inadmissible.CORDONED)


@pytest.mark.behaviour("STATE-1")
def test_what_an_earlier_daemon_remembered_is_taken_over_on_this_boots_clock():
    told = Remembered(S.QUARANTINED, "it broke", 1000.0, 4000.0, 7200.0, 0.0, None)
    record = first_seen(a_gpu(), told, 100.0, 950.0)
    assert record == Record(a_gpu(), S.QUARANTINED, "it broke", since=900.0, until=3900.0, length=7200.0)
    assert first_seen(a_gpu(), None, 100.0, 950.0) == Record(a_gpu(), since=950.0)
    tried = Remembered(S.PROBATION, "one trial", 1000.0, None, 7200.0, 120.0, None)
    record = first_seen(a_gpu(), tried, 100.0, 950.0)
    assert (record.until, record.proved, record.length, record.counted) == (None, 120.0, 7200.0, None)


@pytest.mark.behaviour("STATE-1")
def test_the_times_of_a_quarantine_come_back_from_what_is_remembered_of_it():
    bench = four()
    bench.fault()
    before = bench.record()
    (kept,) = fold.to_remember(bench.host).values()
    assert (kept.since, kept.until) == (before.since + 1e9, before.until + 1e9)
    after = Bench(*bench.devices, remembered=fold.to_remember(bench.host), now=bench.now + 10.0)
    assert after.record() == before


@pytest.mark.behaviour("STATE-1")
def test_a_clock_that_goes_back_takes_no_work_away_that_was_proved():
    record = Record(a_gpu(), S.PROBATION, proved=60.0, counted=1000.0)
    assert [credited(record, now).proved for now in (999.5, 1000.0, 1000.5)] == [60.0, 60.0, 60.5]
    assert credited(replace(record, counted=None), 2000.0).proved == 60.0


@pytest.mark.behaviour("STATE-1")
@pytest.mark.parametrize("kind", ClaimKind)
def test_the_one_trial_of_a_probation_is_whatever_was_admitted_and_no_mere_process(kind):
    bench = four()
    bench.fault()
    bench.wait(HOUR)
    bench.claim(0, kind)
    assert bench.admits() is (None if kind is ClaimKind.PROCESS else Inadmissible.PROBATION_BUSY)
    assert bench.admits(holder="e0") is None
    assert bench.admits(holder="e1") is bench.admits()


def test_the_sixty_four_devices_that_went_last_are_still_shown():
    bench = Bench(a_gpu())
    for number in range(1, 70):
        bench.wait(1)
        bench.look(a_gpu(number))
    gone = {device_id for device_id, record in bench.host.records.items() if record.gone is not None}
    assert gone == {a_gpu(number).device_id for number in range(5, 69)}


# Cordons.


@pytest.mark.behaviour("STATE-1")
def test_another_word_of_an_operator_replaces_the_one_before_and_is_told():
    bench = four()
    for cordon in (Cordon("new fan", 1.0), Cordon("new board", 2.0), Cordon("new board", 3.0, drain=True)):
        bench.tell(fold.Cordoned(bench.devices[0].device_id, cordon))
        assert bench.record().cordon == cordon
    assert [note.fields for note in bench.noted(N.CORDONED)] == [
        {"reason": "new fan", "drain": False},
        {"reason": "new board", "drain": False},
        {"reason": "new board", "drain": True},
    ]
    assert [(one.device_id, one.reason) for one in bench.moved] == [(bench.devices[0].device_id, "cordoned: new board")]


@pytest.mark.behaviour("STATE-1")
def test_a_window_that_has_not_begun_or_ended_is_left_as_it_is():
    window = Cordon("new fan", 1.0, starts=100.0, ends=200.0)
    ahead, inside = Record(a_gpu(), planned=window), Record(a_gpu(), cordon=window)
    assert cordons.timed(ahead, 99.9) == ahead
    assert cordons.timed(ahead, 100.0) == cordons.timed(inside, 199.9) == inside
    assert cordons.timed(inside, 200.0) == cordons.timed(ahead, 200.0) == Record(a_gpu())
    assert [cordons.due(record) for record in (ahead, inside, Record(a_gpu()))] == [100.0, 200.0, None]


@pytest.mark.behaviour("STATE-1")
@pytest.mark.parametrize(("starts", "in_force"), [(None, True), (99.0, True), (100.0, True), (101.0, False)])
def test_an_order_is_in_force_at_once_unless_it_begins_later_and_ends_what_was_ordered_before(starts, in_force):
    before = Record(a_gpu(), cordon=Cordon("old", 0.0), planned=Cordon("older", 0.0, 500.0))
    cordon = Cordon("new fan", 1.0, starts=starts)
    after = cordons.ordered(before, cordon, 100.0)
    assert (after.cordon, after.planned) == ((cordon, None) if in_force else (None, cordon))
    lifted = cordons.ordered(before, None, 100.0)
    assert (lifted.cordon, lifted.planned) == (None, None)


@pytest.mark.behaviour("STATE-1", "STATE-2")
def test_work_is_to_leave_what_is_quarantined_drained_or_to_be_reset_and_the_instances_of_it():
    gpu = replace(a_gpu(), mig_mode=True)
    bench = Bench(gpu, an_instance(gpu, 0), a_gpu(1), a_gpu(2))

    def leaving() -> list[str]:
        return [fold.to_leave(bench.host, bench.record(number)) for number in range(3)]

    assert leaving() == ["", "", ""]
    bench.tell(fold.Cordoned(gpu.device_id, Cordon("new fan", 1.0)))
    bench.fault(2, STRAIN)
    assert leaving() == ["", "", ""]
    bench.tell(fold.Cordoned(gpu.device_id, Cordon("new fan", 1.0, drain=True)))
    bench.fault(2)
    assert leaving() == ["cordoned: new fan", "cordoned: new fan", "XID 79: it broke"]
    bench.tell(fold.Cordoned(gpu.device_id, None))
    for action in RecoveryAction:
        bench.look(replace(gpu, recovery_action=action), *bench.devices[1:])
        asks = f"the driver asks: {action}" if action in RESETS else ""
        assert leaving()[:2] == [asks, asks]


@pytest.mark.behaviour("STATE-1")
def test_each_device_whose_cordon_changes_is_told_whatever_is_or_is_not_said_of_the_others():
    kept = {a_gpu(number).device_id: Remembered(cordon=Cordon("old", 1.0)) for number in (1, 3)}
    bench = Bench(*(a_gpu(number) for number in range(4)), remembered=kept)
    assert [note.device_id for note in bench.noted(N.CORDONED)] == list(kept)
    for number in (2, 3, 0):
        bench.notes.clear()
        bench.tell(fold.Cordoned(bench.devices[number].device_id, Cordon("new fan", 2.0)))
        assert [note.device_id for note in bench.noted(N.CORDONED)] == [bench.devices[number].device_id]
    for number in (3, 1):
        bench.notes.clear()
        bench.tell(fold.Cordoned(bench.devices[number].device_id, None))
        (note,) = bench.noted(N.UNCORDONED)
        assert (note.device_id, note.fields) == (bench.devices[number].device_id, {"reason": ""})


@pytest.mark.behaviour("STATE-1")
def test_a_window_that_begins_within_the_rounding_of_a_clock_has_begun_and_one_a_little_later_has_not():
    for seconds, begun in ((cordons.ROUNDING, True), (2 * cordons.ROUNDING, False)):
        bench = four()
        planned(bench, seconds)
        assert (bench.record().cordon is not None) is begun


@pytest.mark.behaviour("TEL-4")
def test_a_drivers_event_is_told_with_what_it_says_and_without_what_it_does_not():
    bench = four()
    device_id = bench.devices[0].device_id
    full = DriverEvent(DriverEventKind.XID, device_id, bench.now, 31, pid=77, text="MMU fault")
    bare = DriverEvent(DriverEventKind.XID, None, bench.now)
    harmless = Verdict(Severity.HARMLESS, "an illegal address")
    for event in (full, bare):
        bench.tell(fold.Happened(event, harmless))
    told, less = bench.noted(N.DRIVER_EVENT)
    common = {"kind": "XID", "source": full.source, "severity": "HARMLESS", "meaning": "an illegal address"}
    assert (told.device_id, told.fields) == (device_id, {**common, "code": 31, "pid": 77, "text": "MMU fault"})
    assert (less.device_id, less.fields) == ("", common)


@pytest.mark.behaviour("STATE-2")
@pytest.mark.parametrize("action", sorted(RESETS))
def test_what_the_driver_still_asks_for_is_told_once_and_repairs_nothing(action):
    bench = Bench(a_gpu(), a_gpu(1))
    for _ in range(3):
        bench.look(replace(a_gpu(), recovery_action=action), a_gpu(1))
        assert (bench.state(), bench.record().health) == (S.RESETTING, S.AVAILABLE)
    assert [(one.device_id, one.reason) for one in bench.moved] == [(a_gpu().device_id, f"the driver asks: {action}")]
    bench.look(a_gpu(), a_gpu(1))
    assert bench.state() is S.PROBATION
    assert (
        bench.record().reason == f"the driver no longer asks for {action.value.lower()}; one trial workload at a time"
    )


@pytest.mark.behaviour("STATE-1")
def test_windows_that_end_at_one_time_are_told_of_each_device():
    bench = four()
    wall = bench.now + bench.host.offset
    for device in bench.devices[:3]:
        bench.tell(fold.Cordoned(device.device_id, Cordon("new fan", wall, ends=wall + 50.0)))
    bench.wait(50.0)
    assert [note.device_id for note in bench.noted(N.UNCORDONED)] == [d.device_id for d in bench.devices[:3]]


def test_a_healthy_device_that_was_cordoned_is_as_it_is_since_it_was_seen_again():
    bench = four()
    bench.tell(fold.Cordoned(bench.devices[0].device_id, Cordon("new fan", 5.0)))
    after = Bench(*bench.devices, remembered=fold.to_remember(bench.host), now=5000.0)
    assert fold.view(after.host, after.record()).since == 5000.0 + after.host.offset

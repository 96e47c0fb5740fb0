"""Whose memory it is (TEL-6), and that nobody is where its mask is not (MASK-3)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolmgr.core.claims import MAX_CLAIMS, Seen, attribute
from poolmgr.model.claim import ClaimKind, ProcessFacts, RunningEngine
from poolmgr.model.device import DeviceProcess
from poolmgr.testing.devices import a_gpu, an_instance

GPUS = [a_gpu(0), a_gpu(1)]
A, B = (gpu.device_id for gpu in GPUS)
CHAT = RunningEngine("e1", "chat", 10, (A,), 5.0)


def seen(processes, **facts) -> Seen:
    return Seen(processes, {fact.pid: fact for fact in facts.values()})


@pytest.mark.behaviour("TEL-6")
def test_an_engine_claims_its_devices_from_its_start_on_before_it_holds_memory():
    found = attribute(seen({A: (), B: ()}), [CHAT], GPUS, (), 9.0)
    (claim,) = found.claims
    assert (claim.kind, claim.device_id, claim.holder, claim.engine_id) == (ClaimKind.ENGINE, A, "chat", "e1")
    assert (claim.measured_bytes, claim.pids, claim.since) == (None, (), 5.0)


@pytest.mark.behaviour("TEL-6")
def test_the_processes_of_an_engines_tree_are_its_claim_with_their_sum():
    processes = {A: (DeviceProcess(10, 100), DeviceProcess(11, 20), DeviceProcess(12, None))}
    worker = ProcessFacts(11, 1, engine_id="e1")
    other = ProcessFacts(12, 1, engine_id="e1")
    (claim,) = attribute(seen(processes, worker=worker, other=other), [CHAT], GPUS, (), 9.0).claims
    assert (claim.measured_bytes, claim.pids) == (120, (10, 11, 12))


@pytest.mark.behaviour("TEL-6")
def test_a_process_that_nobody_announced_is_a_claim_of_its_user_and_container():
    facts = ProcessFacts(77, 123, container_id="f" * 64, user="ada", command="python3")
    (claim,) = attribute(seen({B: (DeviceProcess(77, 4096),)}, one=facts), [], GPUS, (), 9.0).claims
    assert (claim.kind, claim.holder, claim.user) == (ClaimKind.PROCESS, "python3", "ada")
    assert (claim.container_id, claim.measured_bytes, claim.pids, claim.since) == ("f" * 64, 4096, (77,), 9.0)


def test_a_process_of_which_the_host_tells_nothing_is_a_claim_all_the_same():
    (claim,) = attribute(Seen({A: (DeviceProcess(77),)}), [], GPUS, (), 9.0).claims
    assert (claim.holder, claim.user, claim.measured_bytes) == ("pid 77", "", None)


def test_a_pid_that_became_anothers_is_another_claim():
    first = attribute(seen({A: (DeviceProcess(77, 1),)}, one=ProcessFacts(77, 1)), [], GPUS, (), 1.0).claims
    second = attribute(seen({A: (DeviceProcess(77, 1),)}, one=ProcessFacts(77, 2)), [], GPUS, first, 2.0).claims
    assert len(second) == 1 and first[0].claim_id != second[0].claim_id and second[0].since == 2.0


def test_an_engine_that_is_not_ours_any_more_is_a_process_like_any_other():
    left = ProcessFacts(11, 1, engine_id="gone", command="llama-server")
    (claim,) = attribute(seen({A: (DeviceProcess(11, 1),)}, one=left), [], GPUS, (), 9.0).claims
    assert claim.kind is ClaimKind.PROCESS and claim.holder == "llama-server"


@pytest.mark.behaviour("MASK-3")
def test_an_engine_on_a_device_outside_of_its_mask_is_a_violation_with_evidence():
    processes = {A: (DeviceProcess(10, 100),), B: (DeviceProcess(10, 7), DeviceProcess(11, 3))}
    worker = ProcessFacts(11, 1, engine_id="e1")
    found = attribute(seen(processes, worker=worker), [CHAT], GPUS, (), 9.0)
    (violation,) = found.violations
    assert (violation.pool_id, violation.engine_id, violation.device_id) == ("chat", "e1", B)
    assert (violation.used_bytes, violation.pids) == (10, (10, 11))
    assert [claim.device_id for claim in found.claims] == [A, B]


@pytest.mark.behaviour("MASK-3")
def test_an_engine_without_a_device_may_be_on_none():
    found = attribute(Seen({A: (DeviceProcess(10, 1),)}), [replace(CHAT, device_ids=())], GPUS, (), 9.0)
    assert [violation.device_id for violation in found.violations] == [A]


def test_no_use_is_held_against_an_engine_of_whose_mask_nobody_knows():
    found = attribute(Seen({B: (DeviceProcess(10, 1),)}), [replace(CHAT, device_ids=None)], GPUS, (), 9.0)
    assert found.violations == () and len(found.claims) == 1


def test_an_instance_of_a_gpu_that_the_mask_has_as_a_whole_is_within_it():
    gpu = replace(a_gpu(), mig_mode=True)
    part = an_instance(gpu, 0)
    whole = replace(CHAT, device_ids=(gpu.device_id,))
    found = attribute(Seen({part.device_id: (DeviceProcess(10, 1),)}), [whole], [gpu, part], (), 9.0)
    assert found.violations == ()


def test_a_device_that_does_not_answer_keeps_what_was_measured_of_it():
    processes = {A: (DeviceProcess(10, 100),), B: (DeviceProcess(10, 7), DeviceProcess(77, 5))}
    before = attribute(Seen(processes), [CHAT], GPUS, (), 9.0).claims
    assert attribute(Seen(), [CHAT], GPUS, before, 10.0).claims == before
    later = attribute(Seen({A: ()}), [CHAT], GPUS, before, 10.0).claims
    assert [(c.device_id, c.measured_bytes) for c in later] == [(A, None), (B, 7), (B, 5)]


def test_what_an_engine_held_ends_with_it_though_the_device_does_not_answer():
    before = attribute(Seen({A: (DeviceProcess(10, 100),), B: (DeviceProcess(10, 1),)}), [CHAT], GPUS, (), 9.0).claims
    assert len(before) == 2 and attribute(Seen(), [], GPUS, before, 10.0).claims == ()


def test_an_announced_claim_ends_when_it_is_announced_no_more():
    before = attribute(Seen(), [CHAT], GPUS, (), 9.0).claims
    moved = replace(CHAT, device_ids=(B,))
    assert [c.device_id for c in attribute(Seen(), [moved], GPUS, before, 10.0).claims] == [B]


def test_nothing_is_claimed_of_a_device_that_is_gone():
    before = attribute(Seen({A: (DeviceProcess(77, 1),)}), [CHAT], GPUS, (), 9.0).claims
    assert attribute(Seen(), [CHAT], GPUS[1:], before, 10.0).claims == ()


def test_claims_are_bounded_and_what_is_left_out_is_counted():
    crowd = tuple(DeviceProcess(pid, 1) for pid in range(1, MAX_CLAIMS + 6))
    found = attribute(Seen({A: crowd}), [], GPUS, (), 9.0)
    assert (len(found.claims), found.left_out) == (MAX_CLAIMS, 5)

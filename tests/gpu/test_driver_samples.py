"""What the sampler makes of a driver: every field at its cadence or known to be unsupported (TEL-2)."""

from __future__ import annotations

import os

import pytest
from poolmgr_ext.sampler import FIELDS

from tests.gpu import peer_facts
from tests.gpu.checks import energy_faults, field_faults, freshness_faults

pytestmark = pytest.mark.behaviour("SIM-4")
SKIPPED = 0.1  # of the sweeps, on a busy host


def test_the_facts_of_a_peer_are_asked_for_every_field():
    """`processes` is compared where a process holds memory."""
    names = {field.name for field in FIELDS}
    assert peer_facts.STEADY.keys() | peer_facts.MOVING.keys() == names - {"memory_free", "memory_used", "processes"}


@pytest.mark.behaviour("TEL-1")
def test_the_ring_names_its_writer_and_is_ended_with_it(recording):
    assert recording.ended and recording.reader.writer_pid == os.getpid()
    sequence, at_ns = recording.reader.heartbeat()
    assert sequence >= recording.tallies["sweeps"] and at_ns > recording.reader.created_ns
    assert list(recording.reader.device_ids) == list(recording.history)


def test_every_field_is_read_at_its_cadence_or_known_to_be_unsupported(recording):
    sweeps = recording.tallies["sweeps"]
    for device, history in recording.history.items():
        assert list(freshness_faults(history, recording.unsupported[device], sweeps)) == [], device


def test_the_driver_keeps_up_with_the_cadences(recording, driver):
    if driver.host is None:
        assert recording.tallies["skipped"] <= SKIPPED * recording.tallies["sweeps"]
    assert recording.tallies["calls"] > recording.tallies["sweeps"]


def test_every_value_is_one_that_a_device_can_have(recording):
    for device, history in recording.history.items():
        assert list(field_faults(history)) == [], device


def test_energy_rises_by_what_the_power_was(recording):
    for device, history in recording.history.items():
        assert list(energy_faults(history["energy"], history["power"])) == [], device


def test_what_a_device_does_not_tell_is_absent_and_never_zero(recording, peer):
    """Both ways: what nvidia-ml-py is refused has no value, and what it is told has one."""
    for device in recording.history:
        handle = peer.nvmlDeviceGetHandleByUUID(device.encode())
        for name, ask in (peer_facts.STEADY | peer_facts.MOVING).items():
            refused = ask(peer, handle) is None
            assert (recording.latest[device][name] is None) == refused, f"{device} {name}"
            assert (not recording.history[device][name]) == refused, f"{device} {name}"


def test_what_does_not_move_is_what_nvidia_ml_py_is_told(recording, peer):
    for device in recording.history:
        handle = peer.nvmlDeviceGetHandleByUUID(device.encode())
        for name, ask in peer_facts.STEADY.items():
            theirs = ask(peer, handle)
            if theirs is not None:
                assert recording.latest[device][name] == pytest.approx(theirs), f"{device} {name}"


@pytest.mark.behaviour("TEL-3")
def test_statistics_are_those_of_what_was_read(recording):
    seen = 0
    for device, history in recording.history.items():
        for name in ("temperature", "power", "clock_sm", "memory_used"):
            found = recording.reader.statistics(device, name, 600)
            if found is not None and history[name]:
                values = recording.values(device, name)
                assert min(values) <= found.minimum <= found.mean <= found.maximum <= max(values)
                assert 0 < found.count <= len(values)
                seen += 1
    assert seen

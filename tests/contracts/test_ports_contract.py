"""What every Ports keeps to, the host's and the fake alike."""

from __future__ import annotations

import pytest

from poolmgr.adapters.ports import LoopbackPorts
from poolmgr.ports import Ports
from poolmgr.testing.fakes import CountingPorts


@pytest.fixture(params=[LoopbackPorts, CountingPorts])
def ports(request: pytest.FixtureRequest) -> Ports:
    made: Ports = request.param()
    return made


@pytest.mark.behaviour("PRE-5")
def test_no_port_is_handed_out_twice(ports: Ports) -> None:
    assert len({ports.reserve(0) for _ in range(20)}) == 20


@pytest.mark.behaviour("PRE-5")
def test_two_that_prefer_the_same_port_get_neighbours(ports: Ports) -> None:
    first = ports.reserve(41234)
    second = ports.reserve(41234)
    assert second != first
    assert 0 < second - first <= 100


def test_a_released_port_can_be_had_again(ports: Ports) -> None:
    port = ports.reserve(0)
    ports.release(port)
    ports.release(port)  # once more changes nothing
    assert ports.reserve(port) == port


def test_a_claimed_port_is_taken(ports: Ports) -> None:
    port = ports.reserve(0)
    ports.release(port)
    ports.claim(port)
    assert ports.reserve(port) != port

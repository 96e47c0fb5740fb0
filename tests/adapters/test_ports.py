"""`LoopbackPorts` against the host's real ports."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from poolmgr.adapters.ports import LoopbackPorts
from poolmgr.errors import EnvironmentFault, Reason

pytestmark = pytest.mark.behaviour("PRE-5")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def listen(stack: ExitStack, address: str = "127.0.0.1", port: int = 0) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = stack.enter_context(socket.create_server((address, port), family=family))
    return sock.getsockname()[1]


def unused() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_the_preferred_port_is_given_when_it_is_free() -> None:
    preferred = unused()
    assert LoopbackPorts().reserve(preferred) == preferred


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_port_on_which_anybody_listens_on_any_address_is_passed_over(stack: ExitStack, address: str) -> None:
    taken = listen(stack, address)
    assert taken < LoopbackPorts().reserve(taken) <= taken + 100


def test_two_engines_that_start_at_once_never_get_one_port() -> None:
    ports, preferred = LoopbackPorts(), unused()
    first, second = ports.reserve(preferred), ports.reserve(preferred)
    assert first == preferred
    assert first < second <= first + 100


def test_no_preference_gives_any_free_port_and_each_only_once() -> None:
    ports = LoopbackPorts()
    given = {ports.reserve(0) for _ in range(50)}
    assert len(given) == 50
    assert all(1024 <= port <= 65535 for port in given)


def test_a_released_port_can_be_given_again() -> None:
    ports, preferred = LoopbackPorts(), unused()
    ports.release(ports.reserve(preferred))
    assert ports.reserve(preferred) == preferred


def test_releasing_what_was_never_taken_has_no_effect() -> None:
    ports = LoopbackPorts()
    taken = ports.reserve(0)
    ports.release(1)
    assert ports.reserve(taken) != taken


def test_the_port_of_a_recovered_engine_is_taken_although_it_listens(stack: ExitStack) -> None:
    ports, running = LoopbackPorts(), listen(stack)
    ports.claim(running)
    stack.close()
    assert ports.reserve(running) != running


def test_a_whole_neighbourhood_that_is_taken_leads_to_any_other_port() -> None:
    ports, preferred = LoopbackPorts(), 20000
    for port in range(preferred, preferred + 101):
        ports.claim(port)
    assert not preferred <= ports.reserve(preferred) <= preferred + 100


def test_the_search_stops_at_the_last_port_there_is() -> None:
    ports = LoopbackPorts()
    ports.claim(65535)
    assert 1024 <= ports.reserve(65535) < 65535


def test_connections_of_the_engine_before_do_not_push_a_pool_off_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            connection, _ = server.accept()
            connection.close()  # the server closes first: its end goes to TIME_WAIT
            assert client.recv(1) == b""
    with socket.socket() as strict, pytest.raises(OSError, match="in use"):
        strict.bind(("127.0.0.1", port))
    assert LoopbackPorts().reserve(port) == port


def test_a_host_without_a_free_port_is_an_environment_fault_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = LoopbackPorts()
    monkeypatch.setattr("poolmgr.adapters.ports._bindable", lambda *_args, **_kwargs: False)
    with pytest.raises(EnvironmentFault) as failure:
        ports.reserve(8080)
    assert failure.value.reason is Reason.PORT_UNAVAILABLE
    assert failure.value.numbers == {"preferred": 8080, "reserved": 0}

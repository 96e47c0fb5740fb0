"""Where the daemon meets the outside: every call of a port is counted here, and can be failed or be its last."""

from __future__ import annotations

import errno
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolmgr.errors import ClientError, EnvironmentFault, Reason
from tests.sim.timeline import DaemonKilled

if TYPE_CHECKING:
    from tests.sim.world import World


def _spawn_failed(number: int) -> Callable[[], Exception]:
    return lambda: EnvironmentFault(Reason.SPAWN_FAILED, "spawn failed", numbers={"errno": number, "path": "/bin/e"})


def _fault(reason: Reason) -> Callable[[], Exception]:
    return lambda: EnvironmentFault(reason, f"injected {reason}")


_STORE = (_fault(Reason.STORE_UNAVAILABLE),)
_STATE_DIR = (_fault(Reason.STATE_DIR),)

# Every error that the docstring of a port allows, by call. What is not named here never fails.
ERRORS: dict[str, tuple[Callable[[], Exception], ...]] = {
    "runtime.start": (_spawn_failed(errno.EAGAIN), _spawn_failed(errno.ENOENT), *_STATE_DIR),
    "runtime.rest": _STATE_DIR,
    "runtime.remove": _STATE_DIR,
    "runtime.recover": _STATE_DIR,
    "runtime.attach": _STATE_DIR,
    "runtime.probe_host": (_fault(Reason.HOST_FAULT),),
    "store.load": _STORE,
    "store.put_pool": _STORE,
    "store.put_state": _STORE,
    "store.delete_pool": _STORE,
    "store.reserve_fences": _STORE,
    "store.record": _STORE,
    "ports.reserve": (_fault(Reason.PORT_UNAVAILABLE),),
    "kind.check": (lambda: ClientError(Reason.MODEL_NOT_FOUND, "injected: no model"),),
    "kind.describe": (_fault(Reason.UNREACHABLE),),
}


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """The daemon dies at its `call`-th call of a port: `before` it, `during` it or `after` it."""

    call: int
    when: str


@dataclass(frozen=True, slots=True)
class FaultPoint:
    """The `call`-th call of a port fails with the `error`-th of the errors that it may fail with."""

    call: int
    error: int


class Gate:
    """One daemon's. `dead`: the process is gone, and nothing that it does reaches anybody."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.dead = False

    def enter(self, name: str) -> int:
        """Raises DaemonKilled, or one of the port's own errors."""
        if self.dead:
            raise DaemonKilled
        world = self._world
        world.port_calls += 1
        number = world.port_calls
        world.calls_by_name[name] = world.calls_by_name.get(name, 0) + 1
        if world.call_names is not None:
            world.call_names.append(name)
        crash, fault = world.crash_point, world.fault_point
        if crash is not None and crash.call == number and crash.when != "after":
            self._crash(crash.when, name)
        if fault is not None and fault.call == number:
            self._fail(name, fault.error)
        elif name in ERRORS and world.faults_on and world.chance(world.fault_rate):
            self._fail(name, world.rng.randrange(len(ERRORS[name])))
        return number

    def _crash(self, when: str, name: str) -> None:
        world = self._world
        world.crash_points_hit += 1
        world.trace("crash", when, name)
        if when == "before":
            world.kill_daemon("crash point")
            raise DaemonKilled
        world.timeline.after(world.rng.random() * 0.02, world.kill_daemon, "crash point")

    def _fail(self, name: str, which: int) -> None:
        world = self._world
        world.faults_hit[name] = world.faults_hit.get(name, 0) + 1
        error = ERRORS[name][which]()
        world.trace("fault", name, str(error))
        world.oracle.fault(name, error)
        raise error

    def leave(self, number: int) -> None:
        if self.dead:
            raise DaemonKilled
        crash = self._world.crash_point
        if crash is not None and crash.call == number and crash.when == "after":
            self._world.crash_points_hit += 1
            self._world.trace("crash", "after")
            self._world.kill_daemon("crash point")
            raise DaemonKilled


def port(name: str) -> Callable:
    """A method of a simulated port: it goes through its owner's `gate` on the way in and on the way out."""

    def decorate(method: Callable) -> Callable:
        if inspect.iscoroutinefunction(method):

            @functools.wraps(method)
            async def asynchronous(self, *args, **kwargs):
                number = self.gate.enter(name)
                result = await method(self, *args, **kwargs)
                self.gate.leave(number)
                return result

            return asynchronous

        @functools.wraps(method)
        def synchronous(self, *args, **kwargs):
            number = self.gate.enter(name)
            result = method(self, *args, **kwargs)
            self.gate.leave(number)
            return result

        return synchronous

    return decorate

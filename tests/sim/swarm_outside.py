"""What a seed draws of engines that register themselves: by a chance of its own, so that the rest stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from random import Random

from tests.sim.kernel import Script
from tests.sim.registered import Registered
from tests.sim.stage import Stage

SHARE = 0.2  # of the seeds that have any
COMMANDS = ("drain", "undrain", "stop", "preload", "preload")


def tell(stage: Stage, seed: int, length: float) -> None:
    rng = Random(f"outside {seed}")
    if rng.random() >= SHARE:
        return
    for pool_id in ("r", "q")[: rng.choice((1, 1, 2))]:
        engine = stage.outsider(pool_id, _script(rng), rng.choice((1, 2, 3)), rng.choice((4.0, 12.0, 30.0)))
        _people(stage, rng, pool_id)
        _happens(stage, rng, engine, length)


def _script(rng: Random) -> Script:
    return rng.choice(
        (
            Script(),
            Script(load=rng.choice((0.5, 6.0))),
            Script(hang=rng.choice((5.0, 40.0)), well_again=rng.choice((inf, 70.0))),
            Script(crash=rng.choice((3.0, 30.0))),
        )
    )


def _people(stage: Stage, rng: Random, pool_id: str) -> None:
    if rng.random() < 0.7:
        hold, wait = rng.choice((2.0, 9.0, 40.0)), rng.choice((0.0, 3.0, 20.0))
        stage.holder(pool_id, rng.choice((1, 3)), ttl=rng.choice((3.0, 15.0)), hold=hold, wait=wait, think=1.0)


def _happens(stage: Stage, rng: Random, engine: Registered, length: float) -> None:
    things: list[tuple[float, Callable[[], None]]] = [
        (60.0, lambda: engine.hush(rng.choice((3.0, 20.0, 45.0)))),
        (80.0, lambda: engine.crash(rng.choice((1.0, 10.0, 50.0)))),
        (40.0, engine.register_partly),
        (60.0, lambda: engine.say(slots_free=rng.choice((0, 1, engine.slots)))),
        (90.0, lambda: engine.say(draining=rng.random() < 0.5)),
        (90.0, lambda: engine.say(ready=rng.random() < 0.5)),
        (70.0, lambda: engine.command(rng.choice(COMMANDS))),
    ]
    for mean, do in things:
        if rng.random() < 0.5:
            when = rng.expovariate(1 / mean)
            while when < length - 5:
                stage.at(when, do)
                when += rng.expovariate(1 / mean)

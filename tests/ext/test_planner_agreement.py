"""The native planner against its readable twin and against trying everything, on random requests.

HYPOTHESIS_EFFORT=34 compares 10⁵ of them with the twin.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from poolmgr.adapters.planning import NativePlanner
from poolmgr.core.split_search import search as reference
from poolmgr.core.split_valid import validate
from poolmgr.model.plan import Found, LayerProfile, Objective, SplitRequest
from tests.core.helpers import EFFORT
from tests.ext.planner_cases import judged, request_of

pytestmark = pytest.mark.behaviour("SPLIT-4")

Search = Callable[[SplitRequest], Found]
CHUNKS = 10
AGAINST_TWIN = 3000  # requests, times EFFORT
AGAINST_ALL_PLANS = 1500


def differing(one: Search, other: Search, name: str, numbers: range, devices: int, layers: int) -> Iterator[str]:
    for number in numbers:
        request = request_of(random.Random(f"{name}:{number}"), devices, layers)
        validate(request)
        mine, theirs = one(request), other(request)
        if mine != theirs:
            yield f"{name}:{number}: {mine} is not {theirs} for {request}"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_native_answers_are_those_of_the_readable_twin(chunk):
    each = AGAINST_TWIN * EFFORT // CHUNKS
    numbers = range(chunk * each, (chunk + 1) * each)
    assert next(differing(NativePlanner().search, reference, "twin", numbers, 5, 12), None) is None


def test_native_answers_are_the_best_of_all_plans():
    numbers = range(AGAINST_ALL_PLANS * EFFORT)
    assert next(differing(NativePlanner().search, judged, "all", numbers, 4, 6), None) is None


# Faults that have to be noticed


def shifted(request: SplitRequest) -> Found:
    """Running sums that begin one layer late."""
    layers = request.model.layers
    late = replace(request.model, layers=(LayerProfile(0, 0, 0), *layers[:-1]))
    return NativePlanner().search(replace(request, model=late))


def greedy_cuts_forgotten(request: SplitRequest) -> Found:
    """The last stage a layer longer than it has to be, where that makes no difference to what is compared first."""
    found = NativePlanner().search(request)
    if len(found.stages) < 2 or found.stages[-2].first_layer == found.stages[-2].last_layer:
        return found
    *rest, one, last = found.stages
    moved = (replace(one, last_layer=one.last_layer - 1), replace(last, first_layer=last.first_layer - 1))
    return replace(found, stages=(*rest, *moved))


def hop_forgotten(request: SplitRequest) -> Found:
    return NativePlanner().search(replace(request, default_hop_seconds=0.0))


def one_byte_too_many(request: SplitRequest) -> Found:
    generous = tuple(replace(device, vram_free_bytes=device.vram_free_bytes + 1) for device in request.devices)
    return NativePlanner().search(replace(request, devices=generous))


def devices_backwards(request: SplitRequest) -> Found:
    """Ties go to the last device."""
    found = NativePlanner().search(replace(request, devices=request.devices[::-1]))
    last = len(request.devices) - 1
    return replace(found, stages=tuple(replace(stage, device=last - stage.device) for stage in found.stages))


def links_forgotten(request: SplitRequest) -> Found:
    return NativePlanner().search(replace(request, links=()))


def limit_forgotten(request: SplitRequest) -> Found:
    return NativePlanner().search(replace(request, max_devices=0))


def objective_mistaken(request: SplitRequest) -> Found:
    mistaken = Objective.MIN_BOTTLENECK if request.objective is Objective.MIN_LATENCY else request.objective
    return NativePlanner().search(replace(request, objective=mistaken))


FAULTS = [
    shifted, greedy_cuts_forgotten, hop_forgotten, one_byte_too_many, devices_backwards, links_forgotten,
    limit_forgotten, objective_mistaken,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("judge", "name"), [(reference, "twin"), (judged, "all")])
def test_a_planted_fault_is_noticed_within_the_first_requests(fault, judge, name):
    assert next(differing(fault, judge, name, range(300), 4, 6), None) is not None

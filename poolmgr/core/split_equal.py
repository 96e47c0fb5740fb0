"""Engines that cut every layer into equal shards (tensor parallelism: vLLM, TGI; SPLIT-2, SPLIT-7).

n devices each take ⌈weights / n⌉ and their part of the cache, whatever room they have: the one with the least decides.
n divides the attention heads, and the KV heads are a multiple of n or n of them; in the latter case each KV head is
kept on n / kv_heads devices. The request's devices are one group, of as many of them as can be divided over; fewer than
that are proposed, not taken, where the share is more than the smallest has.

All shards of a layer are worked on at once, so that the slowest device gives the time. A layer's parts are brought
together twice, after attention and after the feed-forward block (Megatron-LM, https://arxiv.org/abs/1909.08053), for
which the slowest link of the group is paid each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from poolmgr.core.split_answer import in_gib, in_layers, in_milliseconds, refused
from poolmgr.core.split_changes import MOST_BYTES, Search, is_worth
from poolmgr.core.split_costs import HOST, Tables, at_context, evaluate, objective_of
from poolmgr.core.split_render import equal_shards, ratios
from poolmgr.core.split_sweep import largest
from poolmgr.model.plan import (
    Assignment,
    DeviceProfile,
    Found,
    ModelProfile,
    Objective,
    PlanRefusal,
    Refusal,
    SplitPlan,
    SplitRequest,
)
from poolmgr.model.pool import EngineName

ENGINES = (EngineName.VLLM, EngineName.TGI)
EXCHANGES_PER_LAYER = 2


@dataclass(frozen=True, slots=True)
class Share:
    """What each of a group takes. `seconds` per token of the whole group; `missing`: bytes over all that lack some."""

    members: tuple[int, ...]
    weights: int
    cache: int
    seconds: float
    missing: int


def plan_equal(request: SplitRequest, search: Search) -> SplitPlan:
    """The plan of equal shards. `search` finds the layered plans that are proposed beside it. Needs devices."""
    most = min(request.max_devices or len(request.devices), len(request.devices))
    count = max(n for n in range(1, most + 1) if divides(request.model, n))
    context = _context(request, count)
    share = share_of(request, count, context)
    if share.missing:
        return _refusal(request, search, most, share)
    return _plan(request, search, share, context)


def divides(model: ModelProfile, count: int) -> bool:
    """Whether its heads can be given to so many devices. Of a model whose heads are unknown: to one."""
    if count == 1:
        return True
    if not model.heads or model.heads % count:
        return False
    return not model.kv_heads or model.kv_heads % count == 0 or count % model.kv_heads == 0


def share_of(request: SplitRequest, count: int, context: int = 0) -> Share:
    """Of the `count` devices with the most room, in the request's order."""
    tables = Tables(request)
    ranked = sorted(range(len(request.devices)), key=lambda device: (-tables.room[device], device))
    members = tuple(sorted(ranked[:count]))
    model = at_context(request.model, context)
    parts = min(count, model.kv_heads) if model.kv_heads else count
    weights = -(-sum(layer.resident_bytes for layer in model.layers) // count)
    active = -(-sum(layer.active_bytes for layer in model.layers) // count)
    cache = -(-sum(layer.kv_bytes for layer in model.layers) // parts)
    slowest = max(float(active + cache) / tables.bandwidth[device] for device in members)
    missing = sum(max(0, weights + cache - tables.room[device]) for device in members)
    return Share(members, weights, cache, slowest + tables.hop(HOST, 0) + _exchange(tables, members), missing)


def _exchange(tables: Tables, members: Sequence[int]) -> float:
    slowest = max((tables.hop(a, b) for a in members for b in members if a != b), default=0.0)
    return EXCHANGES_PER_LAYER * tables.layers * slowest


def _context(request: SplitRequest, count: int) -> int:
    """The request's own, or for MAX_CONTEXT the largest at which the share fits; its own where none does."""
    model = request.model
    if objective_of(request) is not Objective.MAX_CONTEXT or not model.context_length:
        return model.context_length
    limit = model.context_limit or model.context_length
    found = largest(lambda tokens: not tokens or not share_of(request, count, tokens).missing, limit)
    return found or model.context_length


def _plan(request: SplitRequest, search: Search, share: Share, context: int) -> SplitPlan:
    devices = [request.devices[member] for member in share.members]
    shares = ratios([1] * len(devices))
    last = len(request.model.layers) - 1
    headroom = {d.device_id: d.vram_free_bytes - d.overhead_bytes - share.weights - share.cache for d in devices}
    smallest = min(headroom, key=lambda name: headroom[name])
    explanation = (
        f"{len(devices)} equal shares of {in_gib(share.weights)} weights and {in_gib(share.cache)} cache, "
        f"{in_milliseconds(share.seconds)} per token",
        f"{smallest} has the least left and limits the share: {in_gib(headroom[smallest])}",
        *_left_out(request, share),
        *_better(request, search, share),
    )
    return SplitPlan(
        fits=True,
        objective=objective_of(request),
        assignments=tuple(
            Assignment(device.device_id, 0, last, share.weights, share.cache, device.overhead_bytes, ratio)
            for device, ratio in zip(devices, shares, strict=True)
        ),
        ratios=shares,
        bottleneck_seconds_per_token=share.seconds,
        latency_seconds_per_token=share.seconds,
        headroom_bytes=headroom,
        context_length=context,
        tensor_parallel=len(devices),
        explanation=explanation,
        renderings=equal_shards(len(devices)),
    )


def _better(request: SplitRequest, search: Search, share: Share) -> Iterator[str]:
    """The fastest of the pipelines that are faster by enough to be told."""
    by_time = sorted(_pipelines(request, search, 1), key=lambda pipeline: pipeline[1])
    what = "per token" if objective_of(request) is Objective.MIN_LATENCY else "in the slowest stage"
    for text, seconds in by_time[:1]:
        if is_worth(share.seconds, seconds):
            both = f"{in_milliseconds(seconds)} {what} instead of {in_milliseconds(share.seconds)}"
            yield f"{text} would be faster: {both}"


def _left_out(request: SplitRequest, share: Share) -> Iterator[str]:
    out = [device.device_id for place, device in enumerate(request.devices) if place not in share.members]
    if out:
        model = request.model
        heads = f"{model.heads} heads and {model.kv_heads} KV heads" if model.heads else "an unknown number of heads"
        yield f"{', '.join(out)} out: {heads} are shared by {len(share.members)}, the most that divide and are allowed"


def _refusal(request: SplitRequest, search: Search, most: int, share: Share) -> SplitPlan:
    count = len(share.members)
    by_room = sorted(share.members, key=lambda place: Tables(request).room[place])
    smallest = request.devices[by_room[0]]
    numbers = (
        f"an equal share of {count} is {in_gib(share.weights)} weights + {in_gib(share.cache)} cache + "
        f"{in_gib(smallest.overhead_bytes)} overhead, the smallest device {smallest.device_id} has "
        f"{in_gib(smallest.vram_free_bytes)} free"
    )
    more = [n for n in range(count + 1, most + 1) if not share_of(request, n).missing]
    proposals = tuple(_proposals(request, search, share))
    if more:
        reason = f"{request.model.heads} heads and {request.model.kv_heads} KV heads cannot be divided by {more[0]}"
        reason = reason if request.model.heads else "the number of its heads is unknown"
        message = f"{reason}, and {numbers}"
        refusal = PlanRefusal(Refusal.NOT_DIVISIBLE, 0, _with(message, proposals))
    else:
        refusal = PlanRefusal(Refusal.SHARE_DOES_NOT_FIT, share.missing, _with(numbers, proposals))
    lacking = f"{in_gib(share.missing)} are missing over all of them"
    return refused(request, refusal, (numbers, lacking, *proposals))


def _with(message: str, proposals: Sequence[str]) -> str:
    return f"{message}; {proposals[0]}" if proposals else message


def _proposals(request: SplitRequest, search: Search, share: Share) -> Iterator[str]:
    """What would fit: fewer devices, a pipeline, both, a smaller context."""
    count = len(share.members)
    for fewer in range(count - 1, 0, -1):
        if divides(request.model, fewer) and not (smaller := share_of(request, fewer)).missing:
            names = ", ".join(request.devices[place].device_id for place in smaller.members)
            yield f"{fewer} device{'s' if fewer > 1 else ''} would fit: {names}"
            break
    yield from (f"{text} would fit" for text, _ in _pipelines(request, search, 2))
    asked = request.model.context_length
    context = largest(lambda tokens: not tokens or not share_of(request, count, tokens).missing, asked)
    if context > 0:
        yield f"a context of {context} instead of {asked} would fit"


def _pipelines(request: SplitRequest, search: Search, least: int) -> Iterator[tuple[str, float]]:
    """Plans of at least so many stages, each a device or an equal group; with what they come to by the objective."""
    if Tables(request).need[-1] > MOST_BYTES:
        return
    for width in range(1, len(request.devices) // 2 + 1):
        if not divides(request.model, width):
            continue
        grouped = _grouped(request, width)
        found = search(grouped)
        costs = evaluate(grouped, found.stages, found.context_length)
        if not costs.fits or len(found.stages) < least:
            continue
        slowest = _exchange(Tables(request), range(len(request.devices))) if width > 1 else 0.0
        seconds = costs.latency if objective_of(request) is Objective.MIN_LATENCY else costs.bottleneck
        yield _pipeline_text(grouped, found, width), seconds + slowest


def _pipeline_text(grouped: SplitRequest, found: Found, width: int) -> str:
    if len(found.stages) == 1:
        return f"{grouped.devices[found.stages[0].device].device_id} alone"
    stages = ", ".join(f"{in_layers(stage)} on {grouped.devices[stage.device].device_id}" for stage in found.stages)
    return f"a pipeline of {len(found.stages)} × {width} ({stages})"


def _grouped(request: SplitRequest, width: int) -> SplitRequest:
    """Groups of devices with like room as one device each, which has n times what its worst member has."""
    if width == 1:
        return request
    tables = Tables(request)
    ranked = sorted(range(len(request.devices)), key=lambda device: (-tables.room[device], device))
    groups = [ranked[start : start + width] for start in range(0, len(ranked) - width + 1, width)]
    devices = tuple(
        DeviceProfile(
            "+".join(request.devices[place].device_id for place in sorted(group)),
            max(0, min(tables.room[place] for place in group)) * width,
            min(tables.bandwidth[place] for place in group) * width,
        )
        for group in groups
    )
    kept = max(1, width // request.model.kv_heads) if request.model.kv_heads else 1
    layers = tuple(replace(layer, kv_bytes=layer.kv_bytes * kept) for layer in request.model.layers)
    most = request.max_devices // width if request.max_devices else 0
    model = replace(request.model, layers=layers)
    return replace(request, model=model, devices=devices, links=(), max_devices=most)

"""How estimates, splits and placements look on a terminal: each device's memory as a bar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final

from rich.text import Text

from poolmgr.cli.output import bytes_text, console, plain, print_fields, print_table
from poolmgr.v1 import placement_pb2, pool_pb2, split_plan_pb2

BAR_WIDTH: Final = 40
# Told apart without colours too: what goes through a pipe has none.
PARTS: Final = (("█", "cyan", "weights"), ("▓", "blue", "KV cache"), ("▒", "yellow", "overhead"), ("░", "dim", "free"))
_SCALES: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def split(plan: split_plan_pb2.SplitPlan) -> None:
    """The picture of a plan, or why there is none."""
    objective = split_plan_pb2.Objective.Name(plan.objective)
    if not plan.fits:
        reason = split_plan_pb2.SplitPlan.Refusal.Reason.Name(plan.refusal.reason)
        _refused(reason, plan.refusal.message, plan.refusal.missing_bytes)
        _sentences(plan.explanation)
        return
    guessed = f"at most {plan.gap:.1%} from the best" if plan.gap else "not proved to be the best"
    proved = "proved optimal" if plan.optimal else guessed
    equal = f"equal shares of {plan.tensor_parallel} devices" if plan.tensor_parallel > 1 else ""
    print_fields(
        [
            ("objective", f"{objective}, {proved}"),
            ("shares", equal),
            ("slowest stage", f"{_time(plan.bottleneck_seconds_per_token)} per token"),
            ("all stages", f"{_time(plan.latency_seconds_per_token)} per token"),
            ("context", f"{plan.context_length:,} tokens per slot" if plan.context_length else ""),
        ]
    )
    print_table(("DEVICE", "LAYERS", "SHARE", "MEMORY", "WEIGHTS", "KV", "OVERHEAD", "FREE"), _shares(plan))
    console().print(_legend())
    _sentences(plan.explanation)
    told = ((name.removeprefix("ENGINE_").lower(), plan.renderings[name]) for name in sorted(plan.renderings))
    print_fields((f"for {engine}", _told(rendering)) for engine, rendering in told)


def placement(plan: placement_pb2.PlacementPlan) -> None:
    """Where it would go, and what became of every device."""
    if plan.fits:
        print_fields(("device", f"{device}  {_bytes(plan.reserve_bytes.get(device, 0))}") for device in plan.device_ids)
    else:
        _refused(plan.refusal.reason, plan.refusal.message, plan.missing_bytes)
    if plan.HasField("split") and plan.split.fits:
        split(plan.split)
    if plan.fates:
        print_table(("DEVICE", "FATE", "WHY"), ((fate.device_id, _fate(fate), fate.message) for fate in plan.fates))
    print_fields([("would stop", ", ".join(plan.evictions))])
    _sentences(plan.explanation)


def memory(estimate: placement_pb2.MemoryEstimate) -> None:
    """What a model needs on one device, and layer by layer."""
    model = estimate.model
    parts = (estimate.weight_bytes, estimate.kv_bytes, estimate.overhead_bytes)
    slots = f", {model.slots} slots" if model.slots > 1 else ""
    print_fields(
        [
            ("model", model.name),
            ("context", f"{model.context_length:,} tokens per slot{slots}" if model.context_length else ""),
            ("weights", _bytes(parts[0])),
            ("KV cache", _bytes(parts[1])),
            ("overhead", f"{_bytes(parts[2])} on each device"),
            ("in host memory", bytes_text(estimate.host_bytes)),
            ("on one device", _bytes(estimate.one_device_bytes)),
            ("corrected by", f"{estimate.factor:.3f}, as measured before" if estimate.factor not in (0, 1) else ""),
        ]
    )
    console().print(bar((*parts, 0), sum(parts)), _legend(3))
    print_table(("LAYERS", "WEIGHTS", "READ PER TOKEN", "KV"), _alike(model.layers))
    _sentences(estimate.explanation)


def explanation(pool: pool_pb2.Pool, now: placement_pb2.PlacementPlan) -> None:
    """How a pool's engine was laid out, and where it would go if it were placed now."""
    if pool.HasField("split_plan"):
        console().print(f"{pool.pool_id} was started with this split:", highlight=False, markup=False)
        split(pool.split_plan)
    console().print(f"placed now, {pool.pool_id} would go to:", highlight=False, markup=False)
    placement(now)


def bar(parts: Sequence[int], whole: int, width: int = BAR_WIDTH) -> Text:
    """`parts` in the order of PARTS, of a `whole` that fills the width. What is there is seen: never less than one
    block, which the longest part gives."""
    total = sum(parts)
    cells = max(1, round(width * total / whole)) if whole > 0 else 0
    lengths = [part * cells // total if total else 0 for part in parts]
    lengths = [max(length, 1) if part else 0 for length, part in zip(lengths, parts, strict=True)]
    longest = max(range(len(parts)), key=lambda number: lengths[number])
    lengths[longest] = max(min(1, lengths[longest]), lengths[longest] + cells - sum(lengths))
    text = Text()
    for length, (block, style, _) in zip(lengths, PARTS, strict=False):
        text.append(block * length, style)
    return text


def _shares(plan: split_plan_pb2.SplitPlan) -> Iterator[Sequence[str | Text]]:
    rows = [
        (one, (one.weight_bytes, one.kv_bytes, one.overhead_bytes, plan.headroom_bytes.get(one.device_id, 0)))
        for one in plan.assignments
    ]
    whole = max((sum(parts) for _, parts in rows), default=0)
    for one, parts in rows:
        layers = f"{one.first_layer}-{one.last_layer}"
        yield (one.device_id, layers, f"{one.ratio:.1%}", bar(parts, whole), *(_bytes(part) for part in parts))


def _alike(layers: Iterable[placement_pb2.LayerProfile]) -> Iterator[Sequence[str]]:
    """Neighbours that need the same on one line."""
    for (weights, active, kv), group in groupby(
        enumerate(layers), lambda each: (each[1].resident_bytes, each[1].active_bytes, each[1].kv_bytes)
    ):
        numbers = [number for number, _ in group]
        run = f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
        yield (run, *(_bytes(count) for count in (weights, active, kv)))


def _refused(reason: str, message: str, missing: int) -> None:
    print_fields(
        [("refused", Text(reason, style="red")), ("why", message), ("missing", bytes_text(missing) if missing else "")]
    )


def _fate(fate: placement_pb2.PlacementPlan.Fate) -> Text:
    return Text(plain(fate.reason).plain, style="green" if fate.reason == "CHOSEN" else "yellow")


def _told(rendering: split_plan_pb2.SplitPlan.Rendering) -> str:
    return " ".join([*(f"{name}={rendering.env[name]}" for name in sorted(rendering.env)), *rendering.args])


def _sentences(texts: Iterable[str]) -> None:
    for text in texts:
        console().print(Text("- ") + plain(text), soft_wrap=True)


def _legend(count: int = len(PARTS)) -> Text:
    return Text("  ").join(Text(f"{block} {name}", style) for block, style, name in PARTS[:count])


def _bytes(count: int) -> str:
    return bytes_text(count) or "0 MiB"


def _time(seconds: float) -> str:
    """In the largest unit of which it is one at least."""
    scale, unit = next((pair for pair in _SCALES if seconds >= pair[0]), _SCALES[-1])
    return f"{seconds / scale:.3g} {unit}"

"""What a search costs: the named sizes, and the time by layers and devices as a table and a chart."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from math import log10
from pathlib import Path
from random import Random
from xml.sax.saxutils import escape

from bench import common
from bench.placement_cases import EIGHT, HOP_SECONDS, SIXTEEN, devices, eighty
from bench.placement_judge import by_subsets, ratio, value_of
from poolmgr.model.plan import Found, LayerProfile, ModelProfile, Objective, SplitRequest

Search = Callable[[SplitRequest], Found]
THREE = "RTX4090+RTX3090+A6000"
OBJECTIVES = {"bottleneck": Objective.MIN_BOTTLENECK, "latency": Objective.MIN_LATENCY}
BITS = (4.85, 8.5, 16.0)
LAYERS = (20, 40, 80, 120, 160, 200)
DEVICES = (1, 2, 3, 4, 6, 8, 12, 16)
FILLED = 0.7  # of all memory, in the table: few devices would not do
SAMPLE_SECONDS = 3e-4  # calls are timed in batches of about so long: shorter than a turn of another process


def batch(search: Search, request: SplitRequest) -> int:
    """Calls for one sample."""
    start = time.perf_counter()
    search(request)
    return max(1, int(SAMPLE_SECONDS / max(1e-9, time.perf_counter() - start)))


def twin(request: SplitRequest) -> SplitRequest:
    """The same, with a model that is another object: what was kept of the one is of no use for the other."""
    return replace(request, model=replace(request.model, layers=(*request.model.layers,)))


def sample(search: Search, request: SplitRequest, calls: int, known: bool = False) -> float:
    """Seconds a call. `known`: each is about the model of the call before, else about another one."""
    pair = (request, request if known else twin(request))
    start = time.perf_counter()
    for call in range(calls):
        search(pair[call & 1])
    return (time.perf_counter() - start) / calls


def timed(search: Search, requests: Sequence[SplitRequest], rounds: int) -> list[list[float]]:
    """Seconds a call, by request and round; every request has its turn in every round."""
    calls = [batch(search, request) for request in requests]
    found: list[list[float]] = [[] for _ in requests]
    for _ in range(rounds):
        for place, request in enumerate(requests):
            found[place].append(sample(search, request, calls[place]))
    return found


def eighties(number: int, objective: Objective) -> list[SplitRequest]:
    """80 layers on so many different GPUs: Llama 3 70B at each number of bits at which it fits, and what fills them."""
    mix = {3: THREE, 8: EIGHT, 16: SIXTEEN}[number]
    return [*(eighty(mix, objective, bits) for bits in BITS), sized(80, number, objective)]


def named_sizes(search: Search, rounds: int) -> dict[str, float]:
    """Of the requests of one size the slowest is the figure."""
    asked = [
        (f"us_80x3_{name}" if number == 3 else f"us_8_different_{name}", request)
        for number, (name, objective) in product((3, 8), OBJECTIVES.items())
        for request in eighties(number, objective)
        if search(request).stages
    ]
    figures: dict[str, float] = {}
    for (figure, _), seconds in zip(asked, timed(search, [request for _, request in asked], rounds), strict=True):
        figures[figure] = max(figures.get(figure, 0.0), common.median(seconds) * 1e6)
    figures["us_80x3"] = max(figures[f"us_80x3_{name}"] for name in OBJECTIVES)
    known = [sample(search, eighty(THREE, Objective.MIN_LATENCY), 100, known=True) for _ in range(rounds)]
    figures["us_80x3_latency_known_model"] = common.median(known) * 1e6
    return figures | sixteen(search, rounds)


def sixteen(search: Search, rounds: int) -> dict[str, float]:
    """Sixteen different devices: the slowest call of all, and the widest gap to what is proved."""
    slowest, gap = 0.0, 0.0
    for request in (each for objective in OBJECTIVES.values() for each in eighties(16, objective)):
        for _ in range(max(3, rounds // 10)):
            start = time.perf_counter()
            found = search(request)
            slowest = max(slowest, time.perf_counter() - start)
        gap = max(gap, gap_of(request, found))
    return {"ms_16_different": slowest * 1e3, "gap_16_different": gap}


def sixteen_proved(search: Search) -> float:
    """How many times worse than the best they are, at the most bits; the judge takes half a minute."""
    worst = 1.0
    for objective in OBJECTIVES.values():
        request = eighty(SIXTEEN, objective, BITS[-1])
        found = search(request)
        value = value_of(request, found.stages, found.context_length)
        worst = max(worst, ratio(request, value, by_subsets(request).value))
    return worst


def gap_of(request: SplitRequest, found: Found) -> float:
    """By what share it may be worse than the best, as its bound says; infinite where it has no plan or no bound."""
    value = value_of(request, found.stages, found.context_length)
    return value / found.lower_bound - 1.0 if found.lower_bound > 0 else float("inf")


def sized(layers: int, number: int, objective: Objective) -> SplitRequest:
    """So many layers, each a little different, on the first of sixteen different devices, which they fill."""
    found = devices("+".join(SIXTEEN.split("+")[:number]))
    each = int(FILLED * sum(d.vram_free_bytes - d.overhead_bytes for d in found) / layers)
    rng = Random(layers)
    weights = [round(each * rng.uniform(0.85, 0.95)) for _ in range(layers)]
    model = ModelProfile(tuple(LayerProfile(size, size, each // 10) for size in weights), "sized", 8192)
    return SplitRequest(model, found, (), HOP_SECONDS, 32768, objective)


def table(search: Search, rounds: int) -> dict[str, float]:
    """µs by objective, layers and devices."""
    sizes = list(product(OBJECTIVES, LAYERS, DEVICES))
    asked = [sized(layers, number, OBJECTIVES[name]) for name, layers, number in sizes]
    taken = timed(search, asked, rounds)
    return {
        f"us_{name}_{layers}x{number}": common.median(seconds) * 1e6
        for (name, layers, number), seconds in zip(sizes, taken, strict=True)
    }


def print_table(figures: dict[str, float]) -> None:
    for name in OBJECTIVES:
        rows = [[str(layers), *(f"{figures[f'us_{name}_{layers}x{n}']:,.0f}" for n in DEVICES)] for layers in LAYERS]
        heading = [f"{n} device{'s' * (n > 1)}" for n in DEVICES]
        common.print_table(f"least {name}: µs a search, by layers and different devices", ["layers", *heading], rows)


# The chart: µs over devices, a line for each number of layers, both axes logarithmic.

WIDTH, HEIGHT, MARGIN = 640, 400, 88
DECADES = (0, 6)  # 1 µs to 1 s
COLOURS = ("#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")


def chart(figures: dict[str, float]) -> str:
    """An SVG with a panel for each objective."""
    panels = "".join(
        f'<g transform="translate({place * WIDTH},0)">{panel(name, figures)}</g>'
        for place, name in enumerate(OBJECTIVES)
    )
    size = f'width="{WIDTH * len(OBJECTIVES)}" height="{HEIGHT}"'
    frame = f'<rect {size} fill="white"/>'
    style = 'font-family="sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{frame}{panels}</svg>\n'


def panel(name: str, figures: dict[str, float]) -> str:
    def across(number: int) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * log10(number) / log10(DEVICES[-1])

    def down(microseconds: float) -> float:
        share = (log10(max(1.0, microseconds)) - DECADES[0]) / (DECADES[1] - DECADES[0])
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share

    parts = [text(WIDTH / 2, 24, f"least {name}: time of a search", "middle")]
    for power in range(DECADES[0], DECADES[1] + 1):
        y = down(10.0**power)
        parts.append(f'<path d="M{MARGIN},{y:.1f}H{WIDTH - MARGIN}" stroke="#ddd"/>')
        parts.append(text(MARGIN - 6, y + 4, f"{10**power:,} µs", "end"))
    parts += [text(across(number), HEIGHT - MARGIN + 18, str(number), "middle") for number in DEVICES]
    parts.append(text(WIDTH / 2, HEIGHT - 12, "different devices", "middle"))
    for layers, colour in zip(LAYERS, COLOURS, strict=True):
        points = [(across(n), down(figures[f"us_{name}_{layers}x{n}"])) for n in DEVICES]
        parts.append(line(points, colour))
        parts.append(text(WIDTH - MARGIN + 6, points[-1][1] + 4, f"{layers} layers", "start"))
    return "".join(parts)


def line(points: Iterable[tuple[float, float]], colour: str) -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>'


def text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def write_chart(path: Path, figures: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(chart(figures))
    common.console.print(f"chart: {path}")

"""What vLLM says of its work: its Prometheus page, as vllm/v1/metrics/loggers.py fills it.

Everything that is read here is published when a step of the engine has ended, never when one begins: an engine that
hangs in the very first step of the only request shows none in flight. A prompt that is computed in several steps moves
no counter before the last, but what its cache takes grows with each.
"""

from __future__ import annotations

import re

from poolmgr.model.engine import Progress

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
# The counters that a step moves; and of the gauges the one that moves with a prompt, under its old name too.
WORK = re.compile(
    r"^vllm:(?:(?:prompt_tokens|generation_tokens|num_preemptions|request_success|spec_decode_num_drafts)_total"
    r"|(?:gpu_|kv_)cache_usage_perc)(?:\{.*\})? \S+$",
    re.MULTILINE,
)


def progress_of(metrics: str, slots: int) -> Progress | None:
    """None for a page of another shape. `slots`: how many requests it works on at once."""
    running, waiting = _total(RUNNING, metrics), _total(WAITING, metrics)
    if running is None:
        return None
    busy = running + (waiting or 0)
    return Progress(busy, repr(WORK.findall(metrics)), max(0, slots - busy))


def _total(gauge: str, metrics: str) -> int | None:
    """Over all engine processes behind one server; None where it is not shown, or shows no number of requests."""
    found = re.findall(rf"^{gauge}(?:\{{.*\}})? (\d{{1,9}})(?:\.\d*)?$", metrics, re.MULTILINE)
    return sum(map(int, found)) if found else None

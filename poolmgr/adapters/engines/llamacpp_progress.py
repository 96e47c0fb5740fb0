"""What llama.cpp's server says of its work: /slots and /metrics, as in its tools/server/README.md.

Both are answered while a batch is computed, but nothing in them moves before it ends; older servers answer only then.
"""

from __future__ import annotations

import re

from poolmgr.model.engine import Progress

# Work that was done for the request of a slot. Which of them there are, and where, differs between versions.
SLOT_COUNTERS = ("n_decoded", "n_prompt_tokens_processed", "n_past")
# Tokens and decode calls. The gauges beside them tell what is in flight, which is no work done.
COUNTERS = re.compile(r"^llamacpp:(?:\w+_total|n_tokens_max) \S+$", re.MULTILINE)


def busy_slots(slots: object) -> int:
    return sum(1 for slot in _objects(slots) if slot.get("is_processing") is True)


def progress_of(slots: object, metrics: str) -> Progress | None:
    """None for an answer of another shape. `metrics`: empty where they are not shown."""
    known = [slot for slot in _objects(slots) if isinstance(slot.get("is_processing"), bool)]
    if not known:
        return None
    busy = busy_slots(known)
    counters = COUNTERS.findall(metrics)
    # Without counters two short requests look alike but for their numbers.
    own = [_work(slot, numbered=not counters) for slot in known]
    return Progress(busy, repr((own, counters)), len(known) - busy)


def _work(slot: dict[str, object], *, numbered: bool) -> tuple[object, ...]:
    places = (slot, *_objects(slot.get("next_token")))
    done = tuple(place[name] for place in places for name in SLOT_COUNTERS if name in place)
    return (slot.get("id_task"), *done) if numbered else done


def _objects(value: object) -> list[dict[str, object]]:
    """The objects of a list, or the one object that stands in its place."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, dict)]

"""Draws docs/lifecycle.md from the tables of poolmgr/core/lifecycle.py. --check: fails when that is not up to date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from poolmgr.core.lifecycle import ADMISSION, COMMANDS, TRANSITIONS, Command, admission  # noqa: E402
from poolmgr.model.pool import BreakerState, PoolState  # noqa: E402

TARGET = ROOT / "docs" / "lifecycle.md"

PAGE = """\
# The life of a pool

Drawn from the tables in `poolmgr/core/lifecycle.py` by `scripts/draw_lifecycle.py`; edit those, then run it.

```mermaid
{diagram}
```

`LOST` is the state of engines that register themselves; no transition of a supervised pool leads there.

## Transitions

What is not in this table cannot happen.

{transitions}

## Commands

`act`: it is done. `done`: it is so already, or becomes so by itself. `refuse`: the command fails, nothing changes.

{commands}

## Admission

What somebody who asks for a slot is told. `grant`: while a slot is free, else queued. `queue`: no slot yet, but one can
come without anybody's help; so too in `STOPPING` on the way to another start. The reason is told where nothing is
granted.

{admission}
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table with padded columns."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    padded = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([padded[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *padded[1:]])


def diagram() -> str:
    """A mermaid state diagram; triggers that share both ends share their arrow."""
    arrows: dict[tuple[PoolState, PoolState], list[str]] = {}
    for (source, trigger), target in TRANSITIONS.items():
        arrows.setdefault((source, target), []).append(trigger)
    lines = [f"    {source} --> {target}: {', '.join(names)}" for (source, target), names in arrows.items()]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {PoolState.PENDING}", *lines])


def admission_rows() -> Iterable[Sequence[str]]:
    for state in ADMISSION:
        told = [admission(state, breaker) for breaker in BreakerState]
        yield f"`{state}`", *(f"{verdict} `{reason}`" for verdict, reason in told)


def page() -> str:
    return PAGE.format(
        diagram=diagram(),
        transitions=table(
            ("from", "trigger", "to"),
            ((f"`{source}`", f"`{trigger}`", f"`{target}`") for (source, trigger), target in TRANSITIONS.items()),
        ),
        commands=table(
            ("state", *Command), ((f"`{s}`", *(COMMANDS[command][s] for command in Command)) for s in PoolState)
        ),
        admission=table(("state", *(f"breaker {b}" for b in BreakerState)), admission_rows()),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the page is not up to date")
    parser.add_argument("--target", type=Path, default=TARGET)
    options = parser.parse_args(arguments)
    target: Path = options.target
    if not options.check:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page(), encoding="utf-8")
        return 0
    if target.exists() and target.read_text(encoding="utf-8") == page():
        return 0
    print(f"{target} is not what the tables say; run scripts/draw_lifecycle.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""Which layers look at a window only, by architecture, where the file itself does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Every n-th layer sees all tokens, the others their window: src/models/*.cpp (set_swa_pattern), and the configurations
# of the models at huggingface.co. An architecture that is not here has no windows, whatever its window's length.
PERIODS: Mapping[str, int] = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3_text": 6,
    "gpt-oss": 2,
    "gpt_oss": 2,
    "cohere2": 4,
    "exaone4": 4,
    "olmo2": 4,
}


def windows(architecture: str, layers: int, window: int, pattern: int | Sequence[object] | None) -> tuple[int, ...]:
    """The window of each layer, 0 for all tokens. `pattern`: of the file, a period or one flag per layer."""
    if window <= 0:
        return (0,) * layers
    if isinstance(pattern, Sequence):
        flags = [bool(flag) for flag in pattern[:layers]]
        return tuple(window if flag else 0 for flag in flags + [False] * (layers - len(flags)))
    period = pattern if pattern else PERIODS.get(architecture, 1)
    return tuple(window if index % period < period - 1 else 0 for index in range(layers))

MIN_LATENCY: int
MIN_BOTTLENECK: int
MAX_CONTEXT: int
BALANCED: int
MAX_STEPS: int
"""Of the parts of a search that are counted, when not told otherwise."""

class Layers:
    """A model's layers, packed: to be kept where the same model is asked about again."""

    def __init__(self, resident: list[int], active: list[int], kv: list[int], windows: list[int]) -> None:
        """Bytes by layer, and tokens beyond which its cache does not grow (0: without end).

        ValueError for none, more than 2048, lists of other lengths, a negative number, or sums above 2**62;
        OverflowError for a number beyond 64 bits.
        """

def search(
    layers: Layers,
    devices: list[tuple[int, int, float]],
    links: list[tuple[int, int, float]],
    default_hop: float,
    objective: int,
    most_devices: int,
    context_length: int,
    context_limit: int,
    steps: int = ...,
) -> tuple[list[tuple[int, int, int]], bool, float, int, int]:
    """Stages (place of the device, first layer, last layer), whether proved, bound in seconds, context, steps taken.

    `devices`: free bytes, overhead bytes, bytes a second. `links`: two places and the seconds of a hop, both ways.
    `most_devices`, `context_length`, `context_limit`: 0 is no limit, unknown, and as `context_length`.
    No stages: nothing fits. ValueError and OverflowError as for Layers, and for numbers that are not finite.
    """

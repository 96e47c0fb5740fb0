"""The port `Planner`: the native search of `poolmgr_ext.planner`, given and giving the model's values."""

from __future__ import annotations

from typing import Final

from poolmgr_ext import planner
from poolmgr_ext.planner import Layers

from poolmgr.errors import ClientError, Reason
from poolmgr.model.plan import Found, LayerProfile, ModelProfile, Objective, SplitRequest, Stage

# Parts of a search that are counted, about a nanosecond each: one that is cut off has taken less than 200 ms.
MAX_STEPS: Final = planner.MAX_STEPS
OBJECTIVES: Final = {
    Objective.MIN_LATENCY: planner.MIN_LATENCY,
    Objective.MIN_BOTTLENECK: planner.MIN_BOTTLENECK,
    Objective.MAX_CONTEXT: planner.MAX_CONTEXT,
    Objective.BALANCED: planner.BALANCED,
}


class NativePlanner:
    """Pure, and may be asked from several threads at a time: it lets go of the interpreter while it searches.

    The model that was asked about last stays packed; layers are frozen, so being the same object is enough to know it.
    `max_steps`: after so many the answer is the best so far, not proved, with its bound.
    """

    def __init__(self, max_steps: int = MAX_STEPS) -> None:
        self._max_steps = max_steps
        self._last: tuple[tuple[LayerProfile, ...], Layers] | None = None

    def search(self, request: SplitRequest) -> Found:
        """Raises ClientError(INVALID_ARGUMENT) for numbers that the search cannot count with."""
        model = request.model
        try:
            stages, optimal, bound, context, _ = planner.search(
                self._packed(model.layers),
                [
                    (device.vram_free_bytes, device.overhead_bytes, device.memory_bandwidth_bytes_per_second)
                    for device in request.devices
                ],
                _hops(request) if request.links else [],
                request.default_hop_seconds,
                OBJECTIVES[request.objective or _by_slots(model)],
                request.max_devices,
                model.context_length,
                model.context_limit,
                self._max_steps,
            )
        except (ValueError, ArithmeticError) as error:
            raise ClientError(Reason.INVALID_ARGUMENT, f"no split can be planned: {error}") from error
        return Found(tuple([Stage(device, first, last) for device, first, last in stages]), optimal, bound, context)

    def _packed(self, layers: tuple[LayerProfile, ...]) -> Layers:
        last = self._last
        if last is not None and last[0] is layers:
            return last[1]
        packed = Layers(
            [layer.resident_bytes for layer in layers],
            [layer.active_bytes for layer in layers],
            [layer.kv_bytes for layer in layers],
            [layer.kv_window for layer in layers],
        )
        self._last = (layers, packed)
        return packed


def _by_slots(model: ModelProfile) -> Objective:
    return Objective.MIN_LATENCY if model.slots <= 1 else Objective.MIN_BOTTLENECK


def _hops(request: SplitRequest) -> list[tuple[int, int, float]]:
    """Places of two devices, and seconds. An id that is not there has place -1, which is refused."""
    places = {device.device_id: place for place, device in enumerate(request.devices)}
    activation = float(request.activation_bytes)
    return [
        (
            places.get(link.device_a, -1),
            places.get(link.device_b, -1),
            float(link.latency_seconds) + activation / float(link.bandwidth_bytes_per_second),
        )
        for link in request.links
    ]

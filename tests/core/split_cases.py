"""Random requests for splits, from a seed: small numbers, so that ties are frequent, and awkward ones."""

from __future__ import annotations

from random import Random

from poolmgr.model.plan import DeviceProfile, LayerProfile, LinkProfile, ModelProfile, SplitRequest


def case(rng: Random, *, most_devices=4, most_layers=7, dyadic=False, linked=None) -> SplitRequest:
    """`dyadic`: every quotient is a power of two's, so that floats are exact."""
    uniform = rng.random() < 0.4
    scale = rng.choice((1, 3, 1000, 123_456_789))
    count = rng.randint(1, most_devices)
    layers = [_layer(rng, scale) for _ in range(rng.randint(1, most_layers))]
    if uniform:
        layers = [layers[0]] * len(layers)
    whole = sum(layer.resident_bytes + layer.kv_bytes for layer in layers)
    devices = tuple(_device(rng, place, whole, count, scale, dyadic) for place in range(count))
    if linked is None:
        linked = rng.random() < 0.4
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count) if linked and rng.random() < 0.7]
    return SplitRequest(
        ModelProfile(
            tuple(layers),
            context_length=rng.choice((0, 1, 5, 16)),
            context_limit=rng.choice((0, 0, 3, 40)),
            slots=rng.choice((1, 4)),
        ),
        devices,
        links=tuple(_link(rng, a, b, scale, dyadic) for a, b in pairs),
        default_hop_seconds=rng.choice((0.0, 0.25, 1.0) if dyadic else (0.0, 0.1, 1e-5, 1.0)),
        activation_bytes=rng.choice((0, 1, 8)) * scale,
        max_devices=rng.choice((0, 0, 0, 1, 2, 3)),
    )


def _layer(rng, scale):
    resident = rng.randint(0, 6) * scale
    active = resident if rng.random() < 0.6 else rng.randint(0, resident)
    return LayerProfile(resident, active, rng.randint(0, 4) * scale, rng.choice((0, 0, 2, 7)))


def _device(rng, place, whole, count, scale, dyadic):
    share = rng.choice((0.3, 0.6, 1.0, 1.3, 2.0, 4.0))
    overhead = rng.choice((0, 0, 1, 2)) * scale
    free = int(whole * share / count) + rng.choice((0, overhead, rng.randint(0, 3) * scale))
    speed = float(rng.choice((1, 1, 2, 4, 8)))
    if not dyadic:
        speed = rng.choice((1.0, 3.0, 3.0, 7.0, rng.uniform(1.0, 10.0)))
    return DeviceProfile(f"gpu{place}", free, speed * (1.0 if dyadic else scale), overhead)


def _link(rng, a, b, scale, dyadic):
    latency = rng.choice((0.0, 0.25, 0.5) if dyadic else (0.0, 0.1, 0.3))
    speed = rng.choice((1.0, 2.0, 16.0)) * (1.0 if dyadic else scale)
    return LinkProfile(f"gpu{a}", f"gpu{b}", latency, speed)

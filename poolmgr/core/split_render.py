"""How an engine is told of a plan (SPLIT-6). The engine has to see the plan's devices in the order of its stages.

llama.cpp. `--tensor-split` is given the number of layers of each device. llama.cpp adds these up in float32 and divides
by their sum; layer i of `--n-gpu-layers` n goes to the first device whose quotient is beyond i / n
(src/llama-model.cpp, `load_tensors`; n counts the output head, and so do a plan's layers). Sums and numbers of layers
are small whole numbers, which float32 holds exactly; a division is rounded, but equal fractions to equal floats and,
with n below 2**12, different ones to different floats in the same order. So the layers come out exactly as planned:
`llamacpp_layers` is that rule once more, and nothing is rendered that it does not give back.

vLLM. A stage of its own for each device; `VLLM_PP_LAYER_PARTITION` says how many of the hidden layers each has. The
output head is none of them and always sits on the last stage, which therefore has one less than the plan says.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate

from poolmgr.model.plan import Rendering
from poolmgr.model.pool import EngineName

# llama.cpp keeps 16 shares (llama_max_devices) and its argument parser (common/arg.cpp) refuses as many as that.
LLAMACPP_MOST_DEVICES = 15


def layered(counts: Sequence[int]) -> dict[str, Rendering]:
    """By engine, for stages with so many layers each. An engine that cannot be told is missing."""
    renderings = {}
    if len(counts) <= LLAMACPP_MOST_DEVICES and (len(counts) == 1 or llamacpp_layers(counts) == list(counts)):
        renderings[EngineName.LLAMACPP.value] = _llamacpp(counts)
    if len(counts) == 1 or counts[-1] > 1:
        renderings[EngineName.VLLM.value] = _vllm(counts)
    if len(counts) == 1:
        renderings[EngineName.TGI.value] = Rendering(("--num-shard", "1"))
    return renderings


def equal_shards(devices: int) -> dict[str, Rendering]:
    """For engines that give every device an equal share of each layer."""
    return {
        EngineName.VLLM.value: Rendering(("--tensor-parallel-size", str(devices), "--pipeline-parallel-size", "1")),
        EngineName.TGI.value: Rendering(("--num-shard", str(devices))),
    }


def llamacpp_layers(shares: Sequence[float], layers: int = 0) -> list[int]:
    """How many layers llama.cpp gives each device for these shares; `layers` 0: as many as the shares' sum."""
    total, splits = 0.0, []
    for share in shares:
        total = _float32(total + _float32(share))
        splits.append(total)
    splits = [_float32(split / total) for split in splits]
    count = layers or int(sum(shares))
    given = [0] * len(splits)
    for layer in range(count):
        place = _float32(layer / count)
        given[next(device for device, split in enumerate(splits) if split > place)] += 1
    return given


def ratios(counts: Sequence[int]) -> tuple[float, ...]:
    """Shares of a whole that add up to exactly 1.0 in any order: multiples of 2**-53, the last one what is left.

    Each but the last is the nearest such multiple; all partial sums are floats, so that none is rounded.
    """
    total, unit = sum(counts), 1 << 53
    ends = [(end * unit * 2 + total) // (total * 2) for end in accumulate(counts)]
    return tuple((end - start) / unit for start, end in zip([0, *ends], ends, strict=False))


def _llamacpp(counts: Sequence[int]) -> Rendering:
    layers = ("--n-gpu-layers", str(sum(counts)))
    if len(counts) == 1:
        return Rendering(("--split-mode", "none", "--main-gpu", "0", *layers))
    shares = ",".join(str(count) for count in counts)
    return Rendering(("--split-mode", "layer", "--tensor-split", shares, "--main-gpu", "0", *layers))


def _vllm(counts: Sequence[int]) -> Rendering:
    args = ("--tensor-parallel-size", "1", "--pipeline-parallel-size", str(len(counts)))
    if len(counts) == 1:
        return Rendering(args)
    hidden = [*counts[:-1], counts[-1] - 1]
    return Rendering(args, {"VLLM_PP_LAYER_PARTITION": ",".join(str(count) for count in hidden)})


def _float32(value: float) -> float:
    """Rounded as C rounds to float. By way of a double a quotient of floats is the same: that has over 2 × 24 bits."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])

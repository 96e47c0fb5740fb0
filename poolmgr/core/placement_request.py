"""Devices as the split planner sees them: free memory by the ledger, speed, and the links between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from poolmgr.core.placement_score import bandwidth_of, sensible
from poolmgr.model.device import Link, LinkKind
from poolmgr.model.memory import MemoryEstimate
from poolmgr.model.placement import Candidate, PlacementAsk
from poolmgr.model.plan import DeviceProfile, LinkProfile, SplitRequest

# Seconds from one device to the next, as CUDA's p2pBandwidthLatencyTest shows them in NVIDIA/cuda-samples#230:
# 1.8 to 2.3 µs over NVLink, 11 to 20 µs through the host. Whether two devices reach each other over PCIe without the
# host is the driver's choice, which NVML's topology does not tell: it is taken that they do not.
LATENCY_SECONDS: Final = {LinkKind.NVLINK: 2.3e-6, LinkKind.PCIE: 15e-6, LinkKind.SYSTEM: 20e-6}
# Bytes a second where the link itself does not say: one NVLink 2 or 3 lane (NVIDIA/nccl-tests#228), PCIe 3.0 x8.
LINK_BANDWIDTH: Final = {LinkKind.NVLINK: 25e9, LinkKind.PCIE: 7.9e9, LinkKind.SYSTEM: 7.9e9}
HOST_BANDWIDTH: Final = 7.9e9
# Of device memory, where no candidate's is known: nothing can be said of speed then, only of what fits.
ASSUMED_BANDWIDTH: Final = 300e9  # a T4's


@dataclass(frozen=True, slots=True)
class Domain:
    """Devices that one engine may have together, at most `most` of them, 0 for all."""

    members: tuple[Candidate, ...]
    most: int


def request(ask: PlacementAsk, estimate: MemoryEstimate, domain: Domain) -> SplitRequest:
    """`domain`: of devices whose free memory is known. A device of unknown speed is taken for as slow as the slowest
    known one."""
    speeds = [speed for one in domain.members if (speed := bandwidth_of(one)) is not None]
    slowest = min(speeds, default=ASSUMED_BANDWIDTH)
    profiles = [
        DeviceProfile(
            one.device.device_id,
            one.memory.free_bytes or 0,
            bandwidth_of(one) or slowest,
            estimate.overhead_bytes,
        )
        for one in domain.members
    ]
    return SplitRequest(
        estimate.model,
        tuple(profiles),
        tuple(links_between(domain.members)) if domain.most != 1 else (),
        LATENCY_SECONDS[LinkKind.PCIE] + estimate.activation_bytes / HOST_BANDWIDTH,
        estimate.activation_bytes,
        ask.objective,
        domain.most,
        ask.engine,
    )


def links_between(members: Sequence[Candidate]) -> Iterator[LinkProfile]:
    """One per pair that shows one; of what the two ends say, the slower counts."""
    for place, one in enumerate(members):
        for other in members[place + 1 :]:
            shown = [*_shown(one, other), *_shown(other, one)]
            if shown:
                slowest = min(_bandwidth(link) for link in shown)
                latency = max(LATENCY_SECONDS[link.kind] for link in shown)
                yield LinkProfile(one.device.device_id, other.device.device_id, latency, slowest)


def _shown(one: Candidate, other: Candidate) -> list[Link]:
    return [link for link in one.device.links if link.peer == other.device.device_id]


def _bandwidth(link: Link) -> float:
    told = sensible(link.bytes_per_second)
    if told is not None:
        return told
    return LINK_BANDWIDTH[link.kind] * (link.lanes or 1 if link.kind is LinkKind.NVLINK else 1)

"""Writes what a scenario says about a device, its model and its place in the host into the state file."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import poolmgr_ext.simstate as simstate

from poolmgr.adapters.simulator.catalogue import ARCHITECTURES, MIB, Model
from poolmgr.adapters.simulator.scenario import Gpu, Scenario
from poolmgr.adapters.simulator.waves import SERIES, Wave, constant

SECOND = 1_000_000_000
HBM_BUS_WIDTH = 3072  # bits: only stacked memory is as wide, and only it tells its temperature
CPUS_PER_NODE = 32
GPUS_ON_ONE_NODE = 4  # hosts with more have two NUMA nodes
SYSTEM_LEVEL = 50  # NVML_TOPOLOGY_SYSTEM: over the link between NUMA nodes
FIRST_BUS = 1
FABRIC_COMPLETED = 3
IDLE_GRAPHICS_MHZ = 210
IDLE_MEMORY_MHZ = 405  # of consumer cards, which clock their memory down
IDLE_POWER_SHARE = 0.15
SERIAL_BASE = 1_650_520_000_000


def device_uuid(model: Model, index: int) -> str:
    """The same for the same model in the same place, so that a device that comes back is the same one."""
    return f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'{model.name}/{index}')}"


def write_device(state: simstate.State, scenario: Scenario, index: int, gpu: Gpu) -> None:
    for name, text in _texts(gpu, index):
        state.set(index, name, text)
    for name, number in (*_identity(gpu, index), *_limits(gpu.model), *_health(gpu.model)):
        state.set(index, name, number)
    node = numa_node(scenario, index)
    state.set(index, "numa_node", node)
    state.set_cpus(index, range(node * CPUS_PER_NODE, (node + 1) * CPUS_PER_NODE))
    state.set(index, "release_delay_ns", round(gpu.release_seconds * SECOND))
    for slot, profile in enumerate(gpu.model.profiles):
        state.set_profile(
            index, slot, profile.name, profile.starts, ordinal=profile.ordinal, profile_id=profile.profile_id,
            slices=profile.slices, memory_slices=profile.memory_slices, maximum=profile.count, sm_count=profile.sms,
            memory_mb=profile.memory_mib, copy=profile.copy, decoder=profile.decoders, encoder=0, jpeg=profile.jpeg,
            ofa=profile.ofa,
        )  # fmt: skip
    for name, number in gpu.numbers:
        state.set(index, name, number)
    for series, wave in {**_idle(gpu.model), **dict(gpu.waves)}.items():
        write_wave(state, index, series, wave)


def write_wave(state: simstate.State, index: int, series: str, wave: Wave, from_ns: int | None = None) -> None:
    low, high, update = SERIES[series]
    state.set_wave(
        index, series, wave.kind, a=wave.a, b=wave.b, period=wave.period, noise=wave.noise, low=low, high=high,
        repeat=wave.repeat, from_ns=from_ns, update_ns=round(update * SECOND), points=wave.points,
    )  # fmt: skip


def numa_node(scenario: Scenario, index: int) -> int:
    given = scenario.gpus[index].numa_node
    if given is not None:
        return given
    count = len(scenario.gpus)
    return 0 if count <= GPUS_ON_ONE_NODE else index * 2 // count


def _texts(gpu: Gpu, index: int) -> Iterator[tuple[str, str]]:
    model = gpu.model
    yield "name", model.name
    yield "uuid", gpu.uuid or device_uuid(model, index)
    yield "serial", "" if model.is_consumer else str(SERIAL_BASE + index)
    yield "part_number", "" if model.is_consumer else f"900-2{model.device_id:04X}-0000-000"
    yield "vbios", f"{model.architecture + 88}.00.{model.device_id >> 8:02X}.00.{model.device_id & 0xFF:02X}"


def _identity(gpu: Gpu, index: int) -> Iterator[tuple[str, int | None]]:
    model = gpu.model
    yield "brand", model.brand
    yield "architecture", model.architecture
    yield "capability_major", model.compute_capability[0]
    yield "capability_minor", model.compute_capability[1]
    yield "cores", model.cores
    yield "sm_count", model.sms
    yield "bus_width", model.bus_width
    yield "pci_domain", 0
    yield "pci_bus", FIRST_BUS + index
    yield "pci_device", 0
    yield "pci_device_id", model.pci_device_id
    yield "minor_number", index
    yield "module_id", None if model.nvlink is None or model.nvlink.wiring == "bridge" else index
    yield "board_id", (FIRST_BUS + index) << 8
    yield "mig_mode", None if not model.profiles else int(gpu.mig is not None)
    yield "mig_pending", None if not model.profiles else int(gpu.mig is not None)
    yield "mig_maximum", model.mig_maximum
    yield "mig_serial", 0
    yield "persistence", 1
    yield "compute_mode", 0
    yield "display_mode", 0
    yield "display_active", 0


def _limits(model: Model) -> Iterator[tuple[str, int | None]]:
    yield "memory_total", model.memory_mib * MIB
    yield "memory_reserved", model.reserved_mib * MIB
    yield "bar1_total", model.bar1_mib * MIB
    yield "power_limit_mw", model.power_watts["default"] * 1000
    yield "power_default_mw", model.power_watts["default"] * 1000
    yield "power_minimum_mw", model.power_watts["minimum"] * 1000
    yield "power_maximum_mw", model.power_watts["maximum"] * 1000
    yield "threshold_shutdown", model.thermal.get("shutdown")
    yield "threshold_slowdown", model.thermal.get("slowdown")
    yield "threshold_memory", model.thermal.get("memory")
    yield "threshold_gpu", model.thermal.get("gpu")
    yield "clock_max_graphics", model.graphics_clock
    yield "clock_max_memory", model.memory_clock
    yield "clock_max_video", model.video_clock
    yield "clock_application", None if model.is_consumer else model.graphics_clock
    yield "fan_count", model.fans
    yield "pcie_generation", model.pcie["generation"]
    yield "pcie_maximum_generation", model.pcie["generation"]
    yield "pcie_width", model.pcie["width"]
    yield "nvlink_count", model.nvlink.links if model.nvlink else 0
    yield "nvlink_version", model.nvlink.version if model.nvlink else None
    yield "nvlink_mbps", model.nvlink.mbps if model.nvlink else None


def _health(model: Model) -> Iterator[tuple[str, int | None]]:
    """Page retirement until Turing, row remapping from Ampere on, each where there is ECC; energy from Volta on."""
    ampere = model.architecture >= ARCHITECTURES["AMPERE"]
    retires = 0 if model.ecc is not None and not ampere else None
    remaps = 0 if model.ecc and ampere else None
    yield "ecc_current", None if model.ecc is None else int(model.ecc)
    yield "ecc_pending", None if model.ecc is None else int(model.ecc)
    for name in ("retired_single", "retired_double", "retired_pending"):
        yield name, retires
    for name in ("remapped_corrected", "remapped_uncorrected", "remap_pending", "remap_failure"):
        yield name, remaps
    yield "pcie_replays", 0
    yield "energy_mj", 0 if model.architecture >= ARCHITECTURES["VOLTA"] else None
    yield "recovery_action", 0 if model.architecture >= ARCHITECTURES["TURING"] else None


def _idle(model: Model) -> dict[str, Wave]:
    """What a device shows that does nothing. What is left out it does not tell."""
    memory = IDLE_MEMORY_MHZ if model.is_consumer else model.memory_clock
    waves = {
        "temperature": constant(34),
        "power": constant(model.power_watts["default"] * IDLE_POWER_SHARE),
        "clock_graphics": constant(IDLE_GRAPHICS_MHZ),
        "clock_sm": constant(IDLE_GRAPHICS_MHZ),
        "clock_memory": constant(memory),
        "bar1_used": constant(MIB),
        "memory_used": constant(0),
    }
    for series in ("utilization", "memory_utilization", "encoder", "decoder", "pcie_tx", "pcie_rx"):
        waves[series] = constant(0)
    if model.architecture >= ARCHITECTURES["AMPERE"]:
        waves |= {"jpeg": constant(0), "ofa": constant(0)}
    if model.bus_width >= HBM_BUS_WIDTH:
        waves["memory_temperature"] = constant(38)
    if model.video_clock:
        waves["clock_video"] = constant(round(model.video_clock / 2))
    if model.fans:
        waves["fan"] = constant(30)
    if model.nvlink:
        waves |= {"nvlink_tx": constant(0), "nvlink_rx": constant(0)}
    return waves


def write_topology(state: simstate.State, scenario: Scenario) -> None:
    count = len(scenario.gpus)
    for one in range(count):
        for other in range(count):
            near = numa_node(scenario, one) == numa_node(scenario, other)
            state.set_ancestor(one, other, scenario.level if near else SYSTEM_LEVEL)
    wiring = _Wiring(state, scenario)
    for link in scenario.links:
        wiring.join(link.first, link.second, link.lanes)
    if not scenario.links:
        wiring.wire(scenario.nvlink)


class _Wiring:
    """Hands out each GPU's links from the first on. Links that nobody uses are down."""

    def __init__(self, state: simstate.State, scenario: Scenario) -> None:
        self.state = state
        self.models = [gpu.model for gpu in scenario.gpus]
        self.used = [0] * len(self.models)

    def wire(self, how: str) -> None:
        if how == "auto":
            for wiring, then in (("switch", "switch"), ("mesh", "all")):
                group = [i for i, m in enumerate(self.models) if m.nvlink and m.nvlink.wiring == wiring]
                self._group(group, then)
        else:
            self._group([i for i, m in enumerate(self.models) if m.nvlink], how)

    def _group(self, gpus: list[int], how: str) -> None:
        if how == "switch" and len(gpus) > 1:
            for gpu in gpus:
                self._switch(gpu)
        elif how == "pairs":
            for first, second in zip(gpus[::2], gpus[1::2], strict=False):
                self.join(first, second, min(self._left(first), self._left(second)))
        elif how == "all" and len(gpus) > 1:
            lanes = max(1, min(self._left(gpu) for gpu in gpus) // (len(gpus) - 1))
            for i, first in enumerate(gpus):
                for second in gpus[i + 1 :]:
                    self.join(first, second, lanes)

    def _left(self, gpu: int) -> int:
        links = self.models[gpu].nvlink
        return links.links - self.used[gpu] if links else 0

    def join(self, first: int, second: int, lanes: int) -> None:
        for _ in range(min(lanes, self._left(first), self._left(second))):
            for gpu, peer in ((first, second), (second, first)):
                self.state.set_link(gpu, self.used[gpu], peer)
                self.used[gpu] += 1

    def _switch(self, gpu: int) -> None:
        while self._left(gpu) > 0:
            self.state.set_link(gpu, self.used[gpu], simstate.PEER_SWITCH)
            self.used[gpu] += 1
        if self.models[gpu].architecture >= ARCHITECTURES["HOPPER"]:
            self.state.set(gpu, "fabric", FABRIC_COMPLETED)

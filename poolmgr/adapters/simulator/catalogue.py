"""The GPU models that the simulated driver can show, from catalogue.toml: each figure with its source."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

CATALOGUE = Path(__file__).parent / "catalogue.toml"
MIB = 1024 * 1024
NVIDIA_VENDOR = 0x10DE

# NVML's numbers (nvmlBrandType_t, nvmlDeviceArchitecture_t).
BRANDS = {"TESLA": 2, "GEFORCE": 5, "NVIDIA_RTX": 13, "NVIDIA": 14}
ARCHITECTURES = {"PASCAL": 4, "VOLTA": 5, "TURING": 6, "AMPERE": 7, "ADA": 8, "HOPPER": 9, "BLACKWELL": 10}


@dataclass(frozen=True, slots=True)
class MigProfile:
    """A way to cut a GPU. `ordinal` is NVML_GPU_INSTANCE_PROFILE_*; `starts` the places in memory slices."""

    name: str
    profile_id: int
    ordinal: int
    slices: int
    memory_slices: int
    count: int
    memory_mib: int
    sms: int
    copy: int
    decoders: int
    jpeg: int
    ofa: int
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NvLinks:
    """`mbps`: megabytes a second of one link, one way. `wiring`: switch, mesh or bridge."""

    links: int
    version: int
    mbps: int
    wiring: str


@dataclass(frozen=True, slots=True)
class Model:
    """MHz, watts, degrees Celsius, MiB, bits. What is None is not told by the device."""

    name: str
    brand: int
    architecture: int
    compute_capability: tuple[int, int]
    device_id: int
    memory_mib: int
    reserved_mib: int
    bar1_mib: int
    memory_clock: int
    bus_width: int
    bandwidth_gbs: float
    sms: int
    cores: int
    graphics_clock: int
    video_clock: int | None
    power_watts: Mapping[str, int]
    thermal: Mapping[str, int]
    pcie: Mapping[str, int]
    nvlink: NvLinks | None
    fans: int
    ecc: bool | None
    mig_maximum: int | None
    profiles: tuple[MigProfile, ...]
    sources: Mapping[str, str]

    @property
    def pci_device_id(self) -> int:
        """As NVML tells it: the device above the vendor."""
        return self.device_id << 16 | NVIDIA_VENDOR

    @property
    def is_consumer(self) -> bool:
        return self.brand == BRANDS["GEFORCE"]


def _model(table: dict[str, Any], cuts: Mapping[str, dict[str, Any]]) -> Model:
    cut = cuts.get(table.pop("mig", ""), None)
    table.pop("names")
    capability = table.pop("compute_capability")
    profiles = tuple(MigProfile(**{**p, "starts": tuple(p["starts"])}) for p in cut["profiles"]) if cut else ()
    nvlink = table.pop("nvlink", None)
    sources = table.pop("sources") | ({"mig": cut["source"]} if cut else {})
    return Model(
        brand=BRANDS[table.pop("brand")],
        architecture=ARCHITECTURES[table.pop("architecture")],
        compute_capability=(capability[0], capability[1]),
        video_clock=table.pop("video_clock", None),
        thermal=table.pop("thermal", {}),
        nvlink=NvLinks(**nvlink) if nvlink else None,
        ecc=table.pop("ecc", None),
        mig_maximum=cut["maximum"] if cut else None,
        profiles=profiles,
        sources=sources,
        **table,
    )


@cache
def models() -> Mapping[str, Model]:
    """Every model by each of its short names, in capitals."""
    document = tomllib.loads(CATALOGUE.read_text())
    found: dict[str, Model] = {}
    for table in document["model"]:
        names = table["names"]
        model = _model(dict(table), document["mig"])
        found.update((name.upper(), model) for name in names)
    return found


def find(name: str) -> Model:
    """By a short name in any case, or by the name that the driver tells. KeyError: with names that are near."""
    known = models()
    asked = name.strip().upper().replace(" ", "-")
    if asked in known:
        return known[asked]
    for model in known.values():
        if model.name.upper() == name.strip().upper():
            return model
    near = difflib.get_close_matches(asked, known, n=3, cutoff=0.5) or sorted(known)
    raise KeyError(f"no GPU model {name!r} in the catalogue; there are {', '.join(near)}")

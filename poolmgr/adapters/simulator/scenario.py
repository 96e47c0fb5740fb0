"""Scenarios of the simulated driver: TOML files, and shorthands such as `2xA100-80GB+1xT4` (docs/simulator.md)."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import poolmgr_ext.simstate as simstate

from poolmgr.adapters.simulator.catalogue import Model, find
from poolmgr.adapters.simulator.faults import Fault, read_fault, unsupported
from poolmgr.adapters.simulator.positions import syntax_line
from poolmgr.adapters.simulator.reading import Document, Table
from poolmgr.adapters.simulator.waves import SERIES, Wave, read_wave

MAX_GPUS: int = simstate.MAX_DEVICES
MAX_INSTANCES = 7
DRIVER = "580.95.05"
CUDA = "13.0"
PART = re.compile(r"(?:(\d+)x)?([A-Za-z][\w .-]*?)(?:\[([\w.+,\s-]*)\])?", re.ASCII)
UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
LEVELS = {"single": 10, "multiple": 20, "hostbridge": 30, "node": 40, "system": 50}
NVLINK = ("auto", "none", "pairs", "all", "switch")
PROCESS_KINDS = {"compute": 0, "graphics": 1, "mps": 2}
SETTABLE = (
    "pstate", "throttle", "recovery_action", "ecc_current", "ecc_pending", "retired_single", "retired_double",
    "retired_pending", "remapped_corrected", "remapped_uncorrected", "remap_pending", "remap_failure",
    "pcie_generation", "pcie_width", "pcie_replays", "power_limit_mw", "persistence", "compute_mode", "display_mode",
    "display_active", "mig_pending", "memory_total", "memory_reserved", "fabric", "threshold_slowdown",
    "threshold_shutdown", "numa_node", "fan_count", "nvlink_count",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gpu:
    """`mig` None: MIG is off, or not there. `numbers` are the device's own, by their names in the state file."""

    model: Model
    mig: tuple[str, ...] | None = None
    uuid: str = ""
    numa_node: int | None = None
    release_seconds: float = 0.0
    waves: tuple[tuple[str, Wave], ...] = ()
    numbers: tuple[tuple[str, int | None], ...] = ()
    missing: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class NvLink:
    first: int
    second: int
    lanes: int


@dataclass(frozen=True, slots=True)
class Process:
    """Bytes; `at` and `until` in seconds after the start. `pid` 0: one is invented, which never runs."""

    gpu: int
    held: int
    pid: int = 0
    instance: int | None = None
    kind: int = 0
    at: float = 0.0
    until: float | None = None
    growth: float = 0.0
    maximum: int = 0
    load: int = 0
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """`level` is the PCIe relation between GPUs of one NUMA node, `nvlink` how they are wired where models can:
    "auto" as the model is sold (bridges are not)."""

    name: str
    gpus: tuple[Gpu, ...]
    driver: str = DRIVER
    cuda: str = CUDA
    call_cost_us: float = 0.0
    nvlink: str = "auto"
    level: int = LEVELS["node"]
    links: tuple[NvLink, ...] = ()
    processes: tuple[Process, ...] = ()
    faults: tuple[Fault, ...] = ()


def load(text_or_shorthand: str | Path) -> Scenario:
    """A file's path, a TOML text or a shorthand. Raises ClientError(INVALID_SCENARIO): line, key and what is there."""
    given = str(text_or_shorthand)
    if "\n" not in given and (given.endswith(".toml") or "/" in given):
        document = Document("", given)
        try:
            document = Document(Path(given).read_text(), given)
        except (OSError, UnicodeDecodeError) as error:
            raise document.wrong((), f"the scenario cannot be read: {error}", line=0) from error
        return _read(document, Path(given).parent)
    if "\n" in given or "=" in given:
        return _read(Document(given, "scenario"), Path())
    return shorthand(given)


def shorthand(text: str) -> Scenario:
    """`2xA100-80GB+1xT4`; in brackets MIG instances: `A100-40GB[3g.20gb,2g.10gb]`."""
    document = Document("", f"scenario {text!r}")
    gpus: list[Gpu] = []
    for part in text.split("+") if text.count("[") == 0 else re.split(r"\+(?![^\[]*\])", text):
        match = PART.fullmatch(part.strip())
        if match is None:
            raise document.wrong((), f"{part!r} is not of the form COUNTxMODEL or COUNTxMODEL[PROFILE,…]")
        try:
            model = find(match[2])
        except KeyError as error:
            raise document.wrong((), error.args[0]) from error
        mig = None if match[3] is None else tuple(p.strip() for p in match[3].split(",") if p.strip())
        _check_profiles(document, (), model, mig)
        gpus += [Gpu(model, mig)] * int(match[1] or 1)
    _check_count(document, len(gpus))
    return Scenario(text, tuple(gpus))


def _check_count(document: Document, count: int) -> None:
    if not 0 < count <= MAX_GPUS:
        raise document.wrong((), f"has {count} GPUs; 1 to {MAX_GPUS} can be simulated")


def _check_profiles(document: Document, path: tuple[str | int, ...], model: Model, mig: tuple[str, ...] | None) -> None:
    if mig is None:
        return
    known = [profile.name for profile in model.profiles]
    if not known:
        raise document.wrong(path, f"{model.name} has no MIG")
    for name in mig:
        if name not in known:
            raise document.wrong(path, f"{model.name} has no MIG profile {name!r}; there are {', '.join(known)}")
    if len(mig) > (model.mig_maximum or 0):
        raise document.wrong(path, f"{len(mig)} instances are too many; at most {model.mig_maximum} fit")


def _read(document: Document, folder: Path) -> Scenario:
    try:
        values = tomllib.loads(document.text)
    except tomllib.TOMLDecodeError as error:
        raise document.wrong((), f"is not TOML: {error}", syntax_line(error)) from error
    root = Table(document, (), values)
    gpus = tuple(gpu for table in root.tables("gpu") for gpu in _read_gpu(table, folder))
    _check_count(document, len(gpus))
    topology = Table(document, ("topology",), root.raw("topology", {}))
    scenario = Scenario(
        name=root.text("name", "scenario"),
        gpus=gpus,
        driver=root.text("driver", DRIVER),
        cuda=_cuda(root),
        call_cost_us=root.number("call_cost_us", 0.0, high=1e6),
        nvlink=topology.choice("nvlink", NVLINK, "auto"),
        level=LEVELS[topology.choice("level", LEVELS, "node")],
        links=tuple(_read_link(table, len(gpus)) for table in topology.tables("link")),
        processes=tuple(_read_process(table, gpus) for table in root.tables("process")),
        faults=tuple(fault for table in root.tables("fault") for fault in read_fault(table, len(gpus))),
    )
    topology.done()
    root.done()
    return scenario


def _cuda(root: Table) -> str:
    text = root.text("cuda", CUDA)
    if not re.fullmatch(r"\d{1,3}\.\d{1,2}", text):
        raise root.wrong("cuda", f"has to be of the form 13.0, not {text!r}")
    return text


def _read_gpu(table: Table, folder: Path) -> list[Gpu]:
    name = table.text("model")
    try:
        model = find(name)
    except KeyError as error:
        raise table.wrong("model", error.args[0]) from error
    count = table.whole("count", 1, low=1, high=MAX_GPUS)
    mig = table.texts("mig") if "mig" in table.values else None
    _check_profiles(table.document, (*table.path, "mig"), model, mig)
    uuid = table.text("uuid", "")
    if uuid and (count > 1 or not UUID.fullmatch(uuid)):
        raise table.wrong("uuid", "has to be of one GPU, and of the form GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")
    table.taken.update(SERIES)
    gpu = Gpu(
        model,
        mig,
        uuid,
        numa_node=table.whole("numa_node", high=63) if "numa_node" in table.values else None,
        release_seconds=table.number("release_seconds", 0.0, high=3600),
        waves=tuple((series, read_wave(table, series, folder)) for series in SERIES if series in table.values),
        numbers=_read_numbers(table),
        missing=tuple(unsupported(table, "unsupported", name) for name in table.texts("unsupported")),
    )
    table.done()
    return [gpu] * count


def _read_numbers(table: Table) -> tuple[tuple[str, int | None], ...]:
    inner = Table(table.document, (*table.path, "set"), table.raw("set", {}))
    found: list[tuple[str, int | None]] = []
    for name in inner.values:
        if name not in SETTABLE:
            raise inner.wrong(name, f"cannot be set; there are {', '.join(SETTABLE)}")
        value = inner.raw(name)
        if value is False:
            found.append((name, None))
        else:
            found.append((name, inner.size(name) if name.startswith("memory") else inner.whole(name)))
    return tuple(found)


def _read_link(table: Table, gpus: int) -> NvLink:
    ends = table.raw("gpus")
    if not (isinstance(ends, list) and len(ends) == 2 and all(type(e) is int and 0 <= e < gpus for e in ends)
            and ends[0] != ends[1]):  # fmt: skip
        raise table.wrong("gpus", f"has to be two different GPUs of 0 to {gpus - 1}, not {ends!r}")
    link = NvLink(ends[0], ends[1], table.whole("lanes", low=1, high=18))
    table.done()
    return link


def _read_process(table: Table, gpus: tuple[Gpu, ...]) -> Process:
    gpu = table.whole("gpu", high=len(gpus) - 1)
    instances = gpus[gpu].mig
    instance = table.whole("instance", high=MAX_INSTANCES - 1) if "instance" in table.values else None
    if instance is not None and instance >= len(instances or ()):
        raise table.wrong("instance", f"is {instance}; GPU {gpu} has {len(instances or ())} MIG instances")
    process = Process(
        gpu,
        table.size("memory"),
        table.whole("pid", 0, high=2**31),
        instance,
        PROCESS_KINDS[table.choice("kind", PROCESS_KINDS, "compute")],
        table.number("at", 0.0, high=1e7),
        table.number("until", high=1e7) if "until" in table.values else None,
        table.size("grows_per_second", 0),
        table.size("up_to", 0),
        table.whole("load", 0, high=100),
        table.flag("hidden", False),
    )
    table.done()
    return process

"""A simulated host: its state file, and live control over it while programs use it (SIM-1, SIM-2)."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from pathlib import Path

import poolmgr_ext.simstate as simstate

from poolmgr.adapters.simulator import build
from poolmgr.adapters.simulator.faults import KINDS, Fault, read_fault
from poolmgr.adapters.simulator.reading import Document, Table
from poolmgr.adapters.simulator.scenario import SETTABLE, Process, Scenario, load
from poolmgr.adapters.simulator.waves import SERIES, Wave, constant
from poolmgr.errors import ClientError, EnvironmentFault, Reason

SECOND = 1_000_000_000
INVENTED_PID = 4_190_000  # below the kernel's limit of 2**22, and above what hosts that run for weeks reach
STATE_VARIABLE = "POOLMGR_SIM_STATE"
DAEMON_PREFIX = "simulated-gpus-"
LIBRARY_NAMES = ("libnvidia-ml.so.1", "libnvidia-ml.so")
Value = int | float | None


def library_path() -> Path:
    """The simulated driver. EnvironmentFault HOST_FAULT where it was not built."""
    folder = Path(str(simstate.__file__)).parent
    found = sorted(folder.glob("libsimnvml*.so"))
    if not found:
        raise EnvironmentFault(Reason.HOST_FAULT, f"the simulated driver is not in {folder}; build the extension")
    return found[0]


def _link(link: Path, target: Path) -> None:
    """Also where one is that leads elsewhere, to a library of another installation; readers always find one of both."""
    if link.is_symlink() and link.readlink() == target:
        return
    fresh = link.with_name(f"{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)


def environment(state_path: str | Path) -> dict[str, str]:
    """What a program needs to find the driver as libnvidia-ml. Makes a directory of links beside the state."""
    state = Path(state_path).absolute()
    folder = state.with_name(state.name + ".lib")
    folder.mkdir(exist_ok=True)
    for name in LIBRARY_NAMES:
        _link(folder / name, library_path())
    before = os.environ.get("LD_LIBRARY_PATH", "")
    path = f"{folder}:{before}" if before else str(folder)
    return {STATE_VARIABLE: str(state), "LD_LIBRARY_PATH": path}


def of_daemon(scenario: str, directory: Path, boot_id: str) -> LiveHost:
    """The GPUs of a daemon with this state directory. Those of an earlier one of this boot, where the scenario is the
    same: its engines run on, and hold memory. Raises ClientError(INVALID_SCENARIO), EnvironmentFault(HOST_FAULT).
    """
    loaded = load(scenario)
    text = Path(scenario).read_text() if Path(scenario).is_file() else scenario
    path = directory / (DAEMON_PREFIX + hashlib.sha256(f"{boot_id} {text}".encode()).hexdigest()[:12])
    for old in directory.glob(f"{DAEMON_PREFIX}*"):
        if old.is_file() and old != path:
            old.unlink()
    if path.exists():
        with suppress(EnvironmentFault):  # of another version: made anew
            return LiveHost(path)
    return SimulatedHost(loaded, path)


class LiveHost:
    """Control over a state file that exists. GPUs go by index or UUID. ClientError INVALID_SCENARIO or
    DEVICE_NOT_FOUND: what was asked is not there; EnvironmentFault HOST_FAULT: the file is no state file."""

    def __init__(self, path: str | Path, state: simstate.State | None = None) -> None:
        self.path = Path(path)
        try:
            self.state = state or simstate.State(self.path)
        except OSError as error:
            raise EnvironmentFault(Reason.HOST_FAULT, f"{path} is no state of the simulated driver: {error}") from error

    def index(self, gpu: int | str) -> int:
        """Of an index, a GPU's UUID or a unique beginning of one."""
        count = self.state.device_count
        if isinstance(gpu, int) or gpu.isdecimal():
            if int(gpu) < count:
                return int(gpu)
            raise ClientError(Reason.DEVICE_NOT_FOUND, f"there is no GPU {gpu}; there are 0 to {count - 1}")
        found = [i for i in range(count) if self.uuid(i).startswith(gpu)]
        if len(found) == 1:
            return found[0]
        known = ", ".join(self.uuid(i) for i in range(count))
        raise ClientError(Reason.DEVICE_NOT_FOUND, f"{gpu!r} names {len(found)} GPUs; there are {known}")

    def uuid(self, gpu: int | str) -> str:
        return str(self.state.get(self.index(gpu), "uuid"))

    def uuids(self) -> tuple[str, ...]:
        return tuple(self.uuid(i) for i in range(self.state.device_count))

    def set(self, gpu: int | str, name: str, value: Value | Wave) -> None:
        """A series to a waveform or constant (None: not told), or one of the device's numbers."""
        device = self.index(gpu)
        if name in SERIES:
            wave = value if isinstance(value, Wave) else Wave("absent") if value is None else constant(value)
            low, high, _ = SERIES[name]
            if wave.kind == "constant" and not low <= wave.a <= high:
                raise ClientError(Reason.INVALID_SCENARIO, f"{name} is {wave.a:g}, outside of {low:g} to {high:g}")
            build.write_wave(self.state, device, name, wave)
        elif name in SETTABLE and not isinstance(value, Wave):
            self.state.set(device, name, None if value is None else int(value))
        else:
            known = ", ".join((*SERIES, *SETTABLE))
            raise ClientError(Reason.INVALID_SCENARIO, f"{name!r} cannot be set; there are {known}")

    def value(self, gpu: int | str, name: str) -> float | None:
        """A series now, or a number; None where it is not told."""
        device = self.index(gpu)
        return self.state.series(device, name) if name in SERIES else self.state.get(device, name)

    def fault(self, kind: str, gpu: int | str | None = None, **values: object) -> None:
        """One of a scenario's faults, now or in `at` seconds."""
        given = {"kind": kind, **values} | ({} if gpu is None else {"gpu": self.index(gpu)})
        document = Document("", f"fault {kind!r}" if kind in KINDS else "fault")
        self.apply(read_fault(Table(document, (), given), self.state.device_count))

    def apply(self, faults: list[Fault] | tuple[Fault, ...]) -> None:
        start = simstate.now()
        for fault in faults:
            device = simstate.EVERY_DEVICE if fault.gpu is None else fault.gpu
            a = self._profile(device, fault.profile) if fault.profile else fault.a
            at = None if fault.at is None else start + round(fault.at * SECOND)
            try:
                self.state.fault(fault.kind, device, a, fault.b, fault.c, at)
            except OSError as error:
                raise ClientError(Reason.INVALID_SCENARIO, f"too many faults are planned: {error}") from error

    def _profile(self, device: int, name: str) -> int:
        known = self.state.profiles(device)
        if name not in known:
            there = ", ".join(known) or "none"
            raise ClientError(Reason.INVALID_SCENARIO, f"GPU {device} has no MIG profile {name!r}; there are {there}")
        return known.index(name)

    def xid(self, gpu: int | str, code: int) -> None:
        self.fault("xid", gpu, code=code)

    def mig_create(self, gpu: int | str, profile: str) -> str:
        """The UUID of the new instance. ClientError INVALID_SCENARIO where there is no room, or MIG is off."""
        device = self.index(gpu)
        try:
            slot = self.state.mig_create(device, self._profile(device, profile))
        except OSError as error:
            why = "there is no room for it" if error.errno == errno.ENOSPC else "MIG is off"
            raise ClientError(Reason.INVALID_SCENARIO, f"GPU {device}: no {profile} can be made: {why}") from error
        return next(str(i["uuid"]) for i in self.state.instances(device) if i["slot"] == slot)

    def mig_destroy(self, gpu: int | str, slot: int) -> None:
        device = self.index(gpu)
        try:
            self.state.mig_destroy(device, slot)
        except OSError as error:
            raise ClientError(Reason.DEVICE_NOT_FOUND, f"GPU {device} has no MIG instance {slot}") from error

    def instances(self, gpu: int | str) -> tuple[str, ...]:
        """UUIDs of the MIG instances."""
        return tuple(str(i["uuid"]) for i in self.state.instances(self.index(gpu)))

    def process_take(self, gpu: int | str, pid: int, held: int, *, instance: int | None = None, kind: int = 0,
                     load: int = 0, hidden: bool = False) -> None:  # fmt: skip
        """A process holds bytes until it is gone (pid and start time) or releases. One that does not run holds them
        until it releases them."""
        device = self.index(gpu)
        try:
            self.state.take(device, pid, held, instance=instance, kind=kind, ticks=simstate.start_ticks(pid), sm=load,
                            hidden=hidden)  # fmt: skip
        except OSError as error:
            raise ClientError(Reason.INVALID_SCENARIO, f"GPU {device} holds no more processes: {error}") from error

    def process_release(self, gpu: int | str, pid: int) -> None:
        device = self.index(gpu)
        try:
            self.state.release(device, pid)
        except OSError as error:
            raise ClientError(Reason.INVALID_SCENARIO, f"process {pid} holds nothing on GPU {device}") from error

    def call_cost(self, microseconds: float, function: str | None = None) -> None:
        """Busy time of every call, or of one function's."""
        which = {} if function is None else {"function": function}
        self.fault("slow", microseconds=microseconds, **which)

    def calls(self) -> dict[str, int]:
        """How often each function was called, by every program together."""
        return self.state.calls()


class SimulatedHost(LiveHost):
    """Makes the state file of a scenario at `path`, in place of an older one. Its seconds count from now."""

    def __init__(self, scenario: Scenario, path: str | Path) -> None:
        self.scenario = scenario
        Path(path).unlink(missing_ok=True)
        try:
            state = simstate.State(Path(path), len(scenario.gpus))
        except OSError as error:
            raise EnvironmentFault(Reason.HOST_FAULT, f"no state file can be made at {path}: {error}") from error
        super().__init__(path, state)
        self._write_system()
        for index, gpu in enumerate(scenario.gpus):
            build.write_device(self.state, scenario, index, gpu)
        build.write_topology(self.state, scenario)
        for index, gpu in enumerate(scenario.gpus):
            self.apply([Fault(f.kind, index, None, f.a, f.b, f.c) for f in gpu.missing])
            for profile in gpu.mig or ():
                self.mig_create(index, profile)
        self._write_processes()
        self.apply(scenario.faults)

    def _write_system(self) -> None:
        major, minor = self.scenario.cuda.split(".")
        self.state.set_system("scenario", self.scenario.name[:80])
        self.state.set_system("driver_version", self.scenario.driver)
        self.state.set_system("nvml_version", f"{major}.{self.scenario.driver}")
        self.state.set_system("driver_branch", f"r{self.scenario.driver.split('.')[0]}_00")
        self.state.set_system("cuda_version", int(major) * 1000 + int(minor) * 10)
        self.state.set_system("cost_ns", round(self.scenario.call_cost_us * 1000))

    def _write_processes(self) -> None:
        start = simstate.now()
        for number, process in enumerate(self.scenario.processes):
            self._write_process(start, process, process.pid or INVENTED_PID + number)

    def _write_process(self, start: int, process: Process, pid: int) -> None:
        until = None if process.until is None else start + round(process.until * SECOND)
        self.state.take(
            process.gpu, pid, process.held, instance=process.instance, kind=process.kind,
            ticks=simstate.start_ticks(pid) if process.pid else 0, from_ns=start + round(process.at * SECOND),
            until_ns=until, growth=process.growth, maximum=process.maximum, sm=process.load, memory=process.load // 2,
            hidden=process.hidden,
        )  # fmt: skip

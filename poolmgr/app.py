"""The composition root: the one module that knows every concrete class, and the daemon's beginning and end."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import uvloop
from poolmgr_ext.sockdiag import listener_inodes

from poolmgr import __version__
from poolmgr.adapters.device_memory import FileDeviceMemory
from poolmgr.adapters.engines import default_kinds
from poolmgr.adapters.modelfiles import ModelFileReader
from poolmgr.adapters.planning.native import NativePlanner
from poolmgr.adapters.ports import LoopbackPorts
from poolmgr.adapters.probe import NetworkProbe, http_get_json, http_get_text
from poolmgr.adapters.processes import ProcProcesses
from poolmgr.adapters.runtimes.process import ProcessRuntime
from poolmgr.adapters.store.sqlite import open_store
from poolmgr.adapters.system import SystemClock, SystemRng, ThreadWorkers
from poolmgr.adapters.telemetry.driver import Driver, DriverTelemetry
from poolmgr.adapters.telemetry.rings import Place
from poolmgr.api.server import ApiServer, ServerSettings
from poolmgr.config.load import LoadedConfig, describe, load_config
from poolmgr.config.schema import Config, Server
from poolmgr.core.claims import Violation
from poolmgr.core.effects import NoteName
from poolmgr.errors import PoolmgrError
from poolmgr.model.claim import RunningEngine
from poolmgr.model.names import EngineName
from poolmgr.model.placement import IdlePool
from poolmgr.model.pool import PoolSpec
from poolmgr.observe.logging import configure, log_device_events, log_events
from poolmgr.ports import Clock, EngineKind, Workers
from poolmgr.runtime import declared
from poolmgr.runtime.bus import Bus, Noted
from poolmgr.runtime.device_engines import running_engines
from poolmgr.runtime.device_gate import DeviceGate
from poolmgr.runtime.devices import DeviceOutside, DeviceRegistry
from poolmgr.runtime.engine_host import Outside
from poolmgr.runtime.estimates import Estimates, Learning
from poolmgr.runtime.facade import About, Controls, Facade
from poolmgr.runtime.idle import idle_pools
from poolmgr.runtime.leaving import Leaving
from poolmgr.runtime.ledger import Ledger
from poolmgr.runtime.placement import Placement, Seekers
from poolmgr.runtime.places import DevicePlaces, Means
from poolmgr.runtime.readings import Readings
from poolmgr.runtime.supervisor import Settings, Supervisor
from poolmgr.runtime.tasks import Tasks

STOP_CALLS_SECONDS = 2.0
GC_THRESHOLDS = (10_000, 20, 50)  # the interpreter's own are 700, 10, 10
LOG_FLUSH_SECONDS = 2.0
OOM_SCORE_ADJUST = "-900"  # as systemd has it for what must go on; -1000 would be never
STORE_THREADS = 1  # one writer
WORKER_THREADS = 4


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What the daemon was started with; the configuration is read from it again on reload."""

    config: Path | None
    flags: Mapping[str, object]
    simulate: str = ""  # a scenario: the one way to GPUs that are not there (DEV-4)

    def load(self) -> LoadedConfig:
        return load_config(self.config, os.environ, self.flags)


@dataclass(frozen=True, slots=True)
class Threads:
    """For what blocks: any work, and what is written, in its order."""

    work: Workers
    store: Workers


@dataclass(frozen=True, slots=True)
class Gpus:
    """What sees the GPUs, and what decides who gets which."""

    registry: DeviceRegistry
    gate: DeviceGate
    readings: Readings
    ledger: Ledger
    estimates: Estimates
    placement: Placement
    places: DevicePlaces


class Ending:
    """Why and how the daemon ends: asked for, or because a task failed that must not."""

    def __init__(self) -> None:
        self.serving = asyncio.Event()
        self.asked = asyncio.Event()
        self.stop_engines = False
        self.failure: BaseException | None = None

    def ask(self, stop_engines: bool) -> None:
        self.stop_engines = self.stop_engines or stop_engines
        self.asked.set()

    def fail(self, error: BaseException) -> None:
        structlog.get_logger("poolmgr").error("task_failed", exc_info=error)
        self.failure = self.failure or error
        self.asked.set()


async def serve(command_line: CommandLine, loaded: LoadedConfig, announce: Callable[[str], None]) -> int:
    """Runs the daemon until it is asked to end. Returns the exit status. `announce` gets the address once it serves.

    The address is taken and the state directory locked before anything is changed; engines are found again before the
    first call is answered.
    """
    config = loaded.config
    ending, clock, rng = Ending(), SystemClock(), SystemRng()
    tasks = Tasks(ending.fail)
    workers, store_workers = ThreadWorkers("work", WORKER_THREADS), ThreadWorkers("store", STORE_THREADS)
    api = ApiServer(_server_settings(config.server))
    api.bind()
    store = await open_store(config.state.dir, store_workers, clock.wall)
    runtime = ProcessRuntime(config.state.dir, workers, listener_inodes=listener_inodes)
    kinds = default_kinds(http_get_json, workers.stopping.is_set, http_get_text)
    bus = logged_bus(store.epoch)
    driver = driver_of(command_line.simulate, config, clock.boot_id)
    gpus = _gpus(driver, config, kinds, Around(clock, Threads(workers, store_workers), bus, tasks))
    outside = Outside(runtime, kinds, NetworkProbe(), LoopbackPorts(), workers, rng, gpus.gate, gpus.places)
    settings = Settings(config.supervision.settings(), config.leases.settings())
    supervisor = Supervisor(clock, rng, store, outside, settings, bus, tasks)
    controls = Controls(partial(describe_strings, loaded), partial(_read_again, command_line, loaded), ending.ask)
    about = about_us(loaded, api.address, clock.wall())
    doors = (gpus.registry, gpus.readings, gpus.placement)
    facade = Facade(supervisor, outside, store, clock, about, controls, *doors)
    judge_engines(gpus.registry, gpus.ledger, supervisor, facade, tasks)
    try:
        _on_signals(ending, facade, tasks)

        async def begin() -> None:
            await _find_again(gpus, supervisor, facade, config)
            await api.start(facade, rng)
            _settle_memory()
            ending.serving.set()
            announce(api.address)

        await _unless_asked(ending, begin())
        await ending.asked.wait()
    finally:
        async with AsyncExitStack() as last:  # each step whatever the others did
            for close in (store_workers.close, workers.close, store.close):
                last.callback(close)
            last.push_async_callback(runtime.close)
            last.push_async_callback(tasks.close)
            last.push_async_callback(gpus.registry.close)
            workers.stopping.set()  # a digest of a large model is not waited for
            await api.stop(STOP_CALLS_SECONDS)
            left = await supervisor.close(ending.stop_engines)
    structlog.get_logger("poolmgr").info("daemon_stopped", engines_left_running=left)
    return 1 if ending.failure else 0


async def _find_again(gpus: Gpus, supervisor: Supervisor, facade: Facade, config: Config) -> None:
    """What there is: GPUs, what was learned of them, pools and their engines, and what the file declares."""
    gpus.placement.idle = partial(_idle, supervisor, gpus.registry)
    await gpus.registry.start()
    supervisor.warnings.extend(await gpus.estimates.load())
    await supervisor.recover()
    await declared.apply_at_start(supervisor, facade.versions, config.pools)


def driver_of(scenario: str, config: Config, boot_id: str) -> Driver:
    """The host's driver, or the simulated one where a scenario is named. Raises ClientError(INVALID_SCENARIO)."""
    if not scenario:
        return Driver(config.telemetry.library)
    from poolmgr.adapters.simulator import host  # a daemon on real GPUs does without

    simulated = host.of_daemon(scenario, config.state.dir, boot_id)
    return Driver(str(host.library_path()), {host.STATE_VARIABLE: str(simulated.path)}, scenario)


@dataclass(frozen=True, slots=True)
class Around:
    """What all parts of the daemon share."""

    clock: Clock
    threads: Threads
    bus: Bus
    tasks: Tasks


def _gpus(driver: Driver, config: Config, kinds: Mapping[EngineName, EngineKind], around: Around) -> Gpus:
    """Nothing is asked of the GPUs before the registry starts."""
    clock, threads, bus, tasks = around.clock, around.threads, around.bus, around.tasks
    directory = config.state.dir
    telemetry = DriverTelemetry(clock, threads.work, config.telemetry.settings(), driver, Place(directory), bus.epoch)
    processes, memory = ProcProcesses(), FileDeviceMemory(directory)
    registry = DeviceRegistry(DeviceOutside(telemetry, processes, memory, threads.store), clock, bus, tasks)
    gate = DeviceGate(registry, telemetry, processes, threads.work, clock)
    learning = Learning(kinds, ModelFileReader(), FileDeviceMemory(directory, "learned"), threads.work)
    ledger, estimates = Ledger(registry, telemetry, clock), Estimates(learning, clock, tasks)
    placement = Placement(registry, telemetry, Seekers(ledger, estimates, NativePlanner(), threads.work))
    places = DevicePlaces(Means(registry, ledger, estimates, placement, gate.shunned), bus, tasks)
    return Gpus(registry, gate, Readings(registry, telemetry, clock), ledger, estimates, placement, places)


def logged_bus(epoch: int) -> Bus:
    bus = Bus(epoch)
    bus.listen(log_events)
    bus.listen_devices(log_device_events)
    return bus


def judge_engines(
    registry: DeviceRegistry, ledger: Ledger, supervisor: Supervisor, facade: Facade, tasks: Tasks
) -> None:
    """Which engines run where, and what becomes of one that is where it must not be."""

    def running() -> Sequence[RunningEngine]:
        pools = [actor.pool for actor in supervisor.actors()]
        return running_engines(pools, supervisor.engines.devices_of, ledger.of)

    registry.engines = running
    leaving = Leaving(supervisor, registry.to_leave)
    registry.on_change = leaving.devices_changed
    ledger.on_freed = leaving.devices_changed
    registry.on_move_away = leaving.move_away

    def follow(noted: Noted) -> None:
        """What an engine claims changes with its pool, not with the next look at the driver."""
        if noted.note.name is NoteName.POOL_TRANSITION:
            registry.engines_changed()

    supervisor.bus.listen(follow)
    registry.on_violation = lambda violation: tasks(_stop_violator(facade, violation), "stop violator")


def _idle(supervisor: Supervisor, registry: DeviceRegistry) -> Sequence[IdlePool]:
    return idle_pools([actor.pool for actor in supervisor.actors()], registry.claims(), supervisor.uses)


async def _stop_violator(facade: Facade, violation: Violation) -> None:
    """MASK-3: what is on a device that its mask does not have ends, and does not start again by itself."""
    try:
        await facade.stop(violation.pool_id, None, 0.0)
    except PoolmgrError as error:  # deleted or in doubt meanwhile
        structlog.get_logger("poolmgr").warning(
            "violator_not_stopped", pool_id=violation.pool_id, engine_id=violation.engine_id, message=error.message
        )


def _settle_memory() -> None:
    """What is there now stays: the collector need not look at it again. A call leaves hardly any cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _server_settings(server: Server) -> ServerSettings:
    address = server.addr
    return ServerSettings(
        address.host, address.port, server.reflection, server.max_message_bytes, server.max_concurrent_rpcs
    )


def about_us(loaded: LoadedConfig, address: str, wall: float) -> About:
    """`wall`: Unix seconds of now."""
    state_dir, file, pid = str(loaded.config.state.dir), str(loaded.file or ""), os.getpid()
    return About(__version__, pid, wall, address, state_dir, file, notes_on(pid))


def notes_on(pid: int) -> tuple[str, ...]:
    """What an operator has to know of this process."""
    if pid == 1:
        return ("the daemon is PID 1 of its container: engines cannot outlive it",)
    return ()


async def _unless_asked(ending: Ending, begin: Coroutine[object, object, None]) -> None:
    """Begins, unless the daemon is asked to end before that is done. Raises what `begin` raises."""
    beginning, asked = asyncio.ensure_future(begin), asyncio.ensure_future(ending.asked.wait())
    await asyncio.wait({beginning, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if beginning.done():
        beginning.result()
    else:
        beginning.cancel()
        await asyncio.wait({beginning})


def describe_strings(loaded: LoadedConfig) -> list[tuple[str, str, str]]:
    """(section.key, JSON value, origin)."""
    return [(key, json.dumps(value), str(origin)) for key, value, origin in describe(loaded)]


def _read_again(command_line: CommandLine, at_start: LoadedConfig) -> tuple[Mapping[str, PoolSpec], tuple[str, ...]]:
    """(declared pools, keys whose new value only the next start takes up). ClientError for a bad file."""
    loaded = command_line.load()
    before = {key: value for key, value, _ in describe(at_start) if not key.startswith("pools.")}
    after = {key: value for key, value, _ in describe(loaded) if not key.startswith("pools.")}
    return loaded.config.pools, tuple(sorted(key for key in after if after[key] != before[key]))


def _on_signals(ending: Ending, facade: Facade, tasks: Tasks) -> None:
    """SIGTERM and SIGINT end the daemon and leave engines running (PROC-8); SIGHUP reads the file again (CFG-3).

    A callback of the loop that fails ends the daemon as a failed task does: what it was to tell would be lost.
    """
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(partial(_on_loop_error, ending))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.ask, False)
    loop.add_signal_handler(signal.SIGHUP, lambda: tasks(_reload(ending, facade), "reload"))


def _on_loop_error(ending: Ending, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if error is not None and "handle" in context:
        ending.fail(error)
    else:  # gRPC's own tasks, mostly
        structlog.get_logger("poolmgr").warning("event_loop", message=context["message"], exc_info=error)


async def _reload(ending: Ending, facade: Facade) -> None:
    await ending.serving.wait()
    log = structlog.get_logger("poolmgr")
    try:
        change = await facade.reload_config(validate_only=False)
    except PoolmgrError as error:
        log.error("config_reload_refused", reason=str(error.reason), message=error.message)
    else:
        log.info(
            "config_reloaded",
            pools_created=change.pools_created,
            pools_updated=change.pools_updated,
            pools_deleted=change.pools_deleted,
            restart_required=change.restart_required,
        )


def _shelter() -> None:
    """Asks the kernel to spare the daemon, and by inheritance its shims, where an engine eats all memory."""
    with suppress(OSError):  # without the right to ask, it is one of many
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE_ADJUST)


def run(command_line: CommandLine) -> int:
    """The daemon from its command line. Raises PoolmgrError for what keeps it from starting."""
    _shelter()
    loaded = command_line.load()
    if command_line.simulate:
        from poolmgr.adapters.simulator.scenario import load

        load(command_line.simulate)  # refused before anything is made
    writer = configure(loaded.config.observability.log_level, loaded.config.observability.log_format)

    def announce(address: str) -> None:
        structlog.get_logger("poolmgr").info(
            "daemon_started", address=address, version=__version__, state_dir=str(loaded.config.state.dir)
        )

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(command_line, loaded, announce))
    finally:
        writer.close(LOG_FLUSH_SECONDS)

"""The devices of this host: the one writer of their states, and the door through which they are read.

What the telemetry process tells, what operators ask and what time does goes through `core.devices.step`; what that
changes is published on the bus. Nothing here waits for the driver but the look at processes, which has a deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from poolmgr.core import devices as fold
from poolmgr.core import masks
from poolmgr.core.claims import Attribution, Seen, Violation, attribute
from poolmgr.core.device_states import admits
from poolmgr.core.remembered_devices import Remembered
from poolmgr.errors import ClientError, EnvironmentFault, PoolmgrError, Reason
from poolmgr.model.claim import Claim, RunningEngine
from poolmgr.model.device import Device, DeviceProcess, Discovery, DriverEvent
from poolmgr.model.device_health import (
    Cordon,
    DeviceNote,
    DeviceNoteName,
    DeviceSettings,
    DriverStatus,
    Inadmission,
    Verdict,
)
from poolmgr.model.mask import Mask, MaskView
from poolmgr.ports import Clock, DeviceMemory, ProcessInfo, Telemetry, Timer, Workers
from poolmgr.runtime.bus import Bus, PublishedDevice
from poolmgr.runtime.device_memory import Remembering
from poolmgr.runtime.tasks import Tasks
from poolmgr.runtime.waiting import pause


@dataclass(frozen=True, slots=True)
class DeviceOutside:
    """The ports that devices are seen and remembered through."""

    telemetry: Telemetry
    processes: ProcessInfo
    memory: DeviceMemory
    workers: Workers


DEFAULTS: Final = DeviceSettings()
Window = tuple[float | None, float | None]  # Unix seconds: from, until; None: now, for good
AT_ONCE: Final[Window] = (None, None)


def _nobody(*_: object) -> None:
    """Until somebody wires what is to be done."""


class DeviceRegistry:
    """Used on the event loop only; it is the telemetry's listener.

    `engines`: those that run now. `reserved`: claims of what is set aside for those that do not run yet. `on_violation`
    hears once of each engine and device that its mask does not have (MASK-3), `on_change` when a device takes work that
    took none before, `on_event` of each event of the driver, `on_move_away` (device id, reason) of each device that
    work is to leave (STATE-1).
    """

    def __init__(
        self,
        outside: DeviceOutside,
        clock: Clock,
        bus: Bus,
        spawn: Tasks,
        settings: DeviceSettings = DEFAULTS,
        judge: Callable[[DriverEvent], Verdict] = fold.judge,
    ) -> None:
        self._outside = outside
        self._clock = clock
        self._bus = bus
        self._spawn = spawn
        self._settings = settings
        self._judge = judge
        self.engines: Callable[[], Sequence[RunningEngine]] = tuple
        self.reserved: Callable[[], Sequence[Claim]] = tuple
        self.on_violation: Callable[[Violation], object] = _nobody
        self.on_move_away: Callable[[str, str], object] = _nobody
        self.on_change: Callable[[], None] = _nobody
        self.on_event: Callable[[DriverEvent], None] = _nobody
        self.discovery = Discovery()
        self._host = fold.Host(offset=clock.wall() - clock.now())
        self._published: dict[str, PublishedDevice] = {}
        self._memory = Remembering(outside.memory, outside.workers, spawn, self._not_stored)
        self._claims: tuple[Claim, ...] = ()
        self._violated: set[tuple[str, str]] = set()
        self._timer: Timer | None = None
        self._timer_at: float | None = None
        self._stalled_since: float | None = None
        self._stalls = 0
        self._closed = False

    async def start(self) -> None:
        """Returns once the first look has ended, or could not be had. Raises EnvironmentFault(STATE_DIR)."""
        remembered = await self._memory.load()
        if remembered is None:
            self._note(DeviceNoteName.NOT_STORED, message="what was remembered of devices cannot be read: it is void")
        self._host = replace(self._host, remembered=remembered or {})
        await self._outside.telemetry.start(self)
        self._spawn(self._watch_claims(), "claims")

    async def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        await self._memory.flush()
        await self._outside.telemetry.close()

    # What the telemetry process tells.

    def discovered(self, discovery: Discovery) -> None:
        before, self.discovery = self.discovery, discovery
        if discovery.absence is not None and discovery.absence is not before.absence:
            self._note(
                DeviceNoteName.NO_DEVICES,
                absence=discovery.absence.value,
                message=discovery.message,
                advice=discovery.advice,
            )
        self._apply(fold.Discovered(discovery))
        self._apply(fold.Claimed(fold.by_device(self._claims)))  # a device that is back has its holders again

    def happened(self, event: DriverEvent) -> None:
        self._apply(fold.Happened(event, self._judge(event)))
        self.on_event(event)

    def stalled(self, seconds: float, call: str) -> None:
        if self._stalled_since is None:
            self._stalled_since = self._clock.now() - seconds
            self._stalls += 1
            self._note(DeviceNoteName.STALLED, seconds=round(seconds, 3), call=call)

    def flows_again(self) -> None:
        if self._stalled_since is not None:
            seconds = round(self._clock.now() - self._stalled_since, 3)
            self._stalled_since = None
            self._note(DeviceNoteName.FLOWS, seconds=seconds)

    # Look.

    def devices(self) -> Sequence[PublishedDevice]:
        """GPUs by index, each before its instances; those that are gone among them."""
        return sorted(self._published.values(), key=lambda one: one.view.device.order)

    def device(self, name: str) -> PublishedDevice:
        """By UUID, or by whatever a mask's part may be. Raises ClientError(DEVICE_NOT_FOUND)."""
        found = self._published.get(name)
        if found is None:
            device = masks.find(name, self.present())
            found = self._published.get(device.device_id) if device else None
        if found is None:
            message = f"there is no device {name[:60]!r}; {masks.existing(self.present())}"
            raise ClientError(Reason.DEVICE_NOT_FOUND, message, numbers={"device_id": name[:60]})
        return found

    def present(self) -> Sequence[Device]:
        """Those that the last look showed."""
        return [record.device for record in self._host.records.values() if record.gone is None]

    def parse_mask(self, text: str, partitioned: bool = False) -> Mask:
        """Raises ClientError(BAD_MASK)."""
        return masks.parse(text, self.present(), partitioned=partitioned)

    def mask_view(self, text: str, partitioned: bool) -> MaskView:
        """The mask with its renderings. Raises ClientError(BAD_MASK)."""
        return masks.view(self.parse_mask(text, partitioned))

    def claims(self, device_id: str = "") -> Sequence[Claim]:
        """By device; of every one when `device_id` is empty."""
        self.engines_changed()
        return [claim for claim in self._claims if not device_id or claim.device_id == device_id]

    @property
    def answers(self) -> bool:
        """Whether the driver answers now: what is known of the devices is news."""
        return self._stalled_since is None and self.discovery.absence is None

    def admits(self, device_id: str, engine_id: str = "") -> Inadmission | None:
        """None when the device takes new work now. `engine_id`: whose own claim is no obstacle.

        Raises ClientError(DEVICE_NOT_FOUND).
        """
        self.engines_changed()
        record = self._host.records[self.device(device_id).device_id]
        return admits(record, fold.parent_of(self._host, record), engine_id)

    def to_leave(self, device_id: str) -> str:
        """Why work is to leave this device now; empty when it may stay, or is not known."""
        record = self._host.records.get(device_id)
        return fold.to_leave(self._host, record) if record is not None else ""

    def status(self) -> DriverStatus:
        now, look, ring = self._clock.now(), self.discovery, self._outside.telemetry.ring()
        return DriverStatus(
            len(self.present()),
            look.driver_version,
            look.cuda_version,
            look.absence,
            look.message,
            look.advice,
            look.simulated,
            max(0.0, now - look.at) if look.at else None,
            ring.depth_seconds if ring else None,
            ring.size_bytes if ring else None,
            ring.rate_hz if ring else None,
            ring.heartbeat_age if ring else None,
            None if self._stalled_since is None else now - self._stalled_since,
            self._stalls,
        )

    def judge(self, event: DriverEvent) -> Verdict:
        """What an event means for its device."""
        return self._judge(event)

    def report(self, device_id: str, verdict: Verdict) -> None:
        """Somebody else than the driver has found a fault with a device. Unknown devices: no effect."""
        self._apply(fold.Reported(device_id, verdict))

    # Operators.

    async def cordon(self, name: str, reason: str, window: Window = AT_ONCE, drain: bool = False) -> PublishedDevice:
        """No new work on the device in this window. Durable on return. Raises ClientError(DEVICE_NOT_FOUND,
        INVALID_ARGUMENT), EnvironmentFault(STORE_UNAVAILABLE): nothing is changed then.
        """
        device_id, now, (starts, ends) = self.device(name).device_id, self._clock.wall(), window
        if ends is not None and ends <= max(now, starts or now):
            message = f"end_time is {max(now, starts or now) - ends:.0f} s too early: before start_time, or over"
            raise ClientError(Reason.INVALID_ARGUMENT, message, numbers={"field": "end_time", "value": ends})
        return await self._set_cordon(device_id, Cordon(reason, now, starts, ends, drain))

    async def uncordon(self, name: str) -> PublishedDevice:
        """Ends a cordon, also a planned one, and nothing else: a quarantine goes on. Raises as `cordon`."""
        return await self._set_cordon(self.device(name).device_id, None)

    async def _set_cordon(self, device_id: str, cordon: Cordon | None) -> PublishedDevice:
        event = fold.Cordoned(device_id, cordon)

        def after() -> Mapping[str, Remembered]:
            host, _ = fold.step(self._host, event, self._clock.now(), self._settings)
            return fold.to_remember(host)

        async def work() -> None:
            await self._memory.put(after)
            self._apply(event)

        await self._whole(work())
        return self._published[device_id]

    async def _whole(self, work: Coroutine[object, object, None]) -> None:
        """Does the work to its end, also when whoever asked for it is cancelled meanwhile."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                await work
                done.set_result(None)
            except asyncio.CancelledError:
                done.cancel()
                raise
            except PoolmgrError as error:
                done.set_exception(error)
                done.exception()  # whoever asked may be gone

        self._spawn(run(), "cordon")
        await asyncio.shield(done)

    # The writer.

    def _apply(self, event: fold.Event) -> None:
        self._host, effects = fold.step(self._host, event, self._clock.now(), self._settings)
        self._publish()
        for effect in effects:
            if isinstance(effect, DeviceNote):
                self._bus.note_device(effect)
            else:
                self.on_move_away(effect.device_id, effect.reason)
        self._memory.changed(fold.to_remember(self._host))
        self._set_timer()

    def _publish(self) -> None:
        takes_work = False
        for device_id, record in self._host.records.items():
            view, before = fold.view(self._host, record), self._published.get(device_id)
            if before is None or before.view != view:
                self._published[device_id] = self._bus.publish_device(view)
                takes_work |= view.refusal is None and (before is None or before.view.refusal is not None)
        for device_id in [known for known in self._published if known not in self._host.records]:
            del self._published[device_id]
            self._bus.publish_device_gone(device_id)
        if takes_work:
            self.on_change()

    def _set_timer(self) -> None:
        due = fold.next_due(self._host, self._settings)
        if due == self._timer_at or self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = None if due is None else self._clock.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = self._timer_at = None
        if not self._closed:
            self._apply(fold.Due())

    def _not_stored(self, fault: EnvironmentFault) -> None:
        self._note(DeviceNoteName.NOT_STORED, message=fault.message)

    def _note(self, name: DeviceNoteName, **fields: str | int | float) -> None:
        self._bus.note_device(DeviceNote(name, "", fields))

    # Claims.

    def engines_changed(self) -> None:
        """An engine was started or has ended: what it claims changes at once, not with the next look."""
        self._attributed(self._attribute(Seen()))

    async def _watch_claims(self) -> None:
        while not self._closed:
            await self.look_at_processes()
            await pause(self._clock, self._settings.processes_interval)

    async def look_at_processes(self) -> None:
        """Asks the driver who holds memory, and puts it down to whoever that is."""
        processes = await self._ask()
        pids = {process.pid for held in processes.values() for process in held}
        facts = await self._outside.workers.run(self._outside.processes.look, pids) if pids else {}
        seen = Seen(processes, facts)
        self._attributed(self._attribute(seen))

    def _attribute(self, seen: Seen) -> Attribution:
        now = self._clock.now()
        return attribute(seen, self.engines(), self.present(), self._claims, now, self.reserved())

    async def _ask(self) -> Mapping[str, Sequence[DeviceProcess]]:
        """A GPU in MIG mode is not asked: it would show its instances' processes once more, as its own."""
        wanted = [device.device_id for device in self.present() if device.usable]
        if not wanted or self._stalled_since is not None:
            return {}
        try:
            return await self._outside.telemetry.processes(wanted, self._settings.processes_timeout)
        except EnvironmentFault:
            return {}  # the telemetry tells of its stalls itself

    def _attributed(self, found: Attribution) -> None:
        before, self._claims = self._claims, found.claims
        if before != found.claims:
            self._apply(fold.Claimed(fold.by_device(found.claims)))
        running = {engine.engine_id for engine in self.engines()}
        self._violated = {pair for pair in self._violated if pair[0] in running}
        for violation in found.violations:
            self._violation(violation)

    def _violation(self, violation: Violation) -> None:
        key = (violation.engine_id, violation.device_id)
        if key in self._violated:
            return
        self._violated.add(key)
        fields: dict[str, str | int | float] = {"pool_id": violation.pool_id, "engine_id": violation.engine_id}
        if violation.used_bytes is not None:
            fields["used_bytes"] = violation.used_bytes
        self._bus.note_device(DeviceNote(DeviceNoteName.MASK_VIOLATION, violation.device_id, fields))
        self.on_violation(violation)

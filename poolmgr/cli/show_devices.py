"""How devices, claims, masks and telemetry look on a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from rich.table import Table
from rich.text import Text

from poolmgr.cli.output import bytes_text, console, plain, print_fields, print_table, state_text, time_text
from poolmgr.convert.common import seconds
from poolmgr.v1 import admin_pb2, device_pb2, telemetry_pb2

BLOCKS: Final = "▁▂▃▄▅▆▇█"
PLOT_WIDTH: Final = 40
_UNITS: Final = {"celsius": "°C", "watts": "W", "percent": "%", "joules": "J", "number": "", "bits": ""}
Fields = list[tuple[str, str | Text]]


def devices(found: Sequence[device_pb2.Device], driver: admin_pb2.Driver) -> None:
    if not found:
        console().print(f"no devices: {absence(driver)}", highlight=False, markup=False)
        return
    columns = ("INDEX", "DEVICE", "NAME", "STATE", "FREE", "TOTAL", "CLAIMS", "REASON")
    print_table(columns, (_row(one) for one in found))
    if driver.simulated:
        console().print(f"simulated: {plain(driver.simulated).plain}", highlight=False, markup=False)


def device(one: device_pb2.Device) -> None:
    print_fields(
        [
            ("device", one.device_id),
            ("name", one.name + (" (simulated)" if one.simulated else "")),
            ("index", _number(one)),
            ("state", _state(one)),
            ("reason", one.state_reason),
            ("since", time_text(one.state_since)),
            ("until", time_text(one.state_until)),
            ("takes work", "yes" if one.admits else f"no: {_refusal(one)}"),
            ("cordon", _cordon(one)),
            ("driver asks for", _action(one)),
            ("claims", str(one.claims)),
            ("memory", f"{_bytes(one, 'vram_free_bytes')} free of {_bytes(one, 'vram_total_bytes')}"),
            ("compute", one.compute_capability),
            ("MIG", f"{one.mig_profile} on {one.parent_device_id}" if one.mig_profile else _mode(one, "mig_mode")),
            ("ECC", _mode(one, "ecc_mode")),
            ("PCI", one.pci_bus_id),
            ("NUMA node", str(one.numa_node) if one.HasField("numa_node") else ""),
            ("power limit", f"{one.power_limit_watts:g} W" if one.HasField("power_limit_watts") else ""),
            ("slows down at", f"{one.slowdown_celsius:g} °C" if one.HasField("slowdown_celsius") else ""),
            ("shuts down at", f"{one.shutdown_celsius:g} °C" if one.HasField("shutdown_celsius") else ""),
            *(("link", _link(link)) for link in one.links),
        ]
    )


def claims(found: device_pb2.ListClaimsResponse) -> None:
    if not found.claims:
        console().print("nobody holds a device", highlight=False)
        return
    columns = ("DEVICE", "KIND", "HOLDER", "USER", "RESERVED", "MEASURED", "PIDS", "CONTAINER", "SINCE")
    print_table(
        columns,
        (
            (
                one.device_id,
                device_pb2.Claim.Kind.Name(one.kind),
                one.holder,
                one.user,
                bytes_text(one.reserved_bytes) if one.HasField("reserved_bytes") else "",
                bytes_text(one.measured_bytes) if one.HasField("measured_bytes") else "unknown",
                ", ".join(str(pid) for pid in one.pids),
                one.container_id[:12],
                time_text(one.since),
            )
            for one in found.claims
        ),
    )


def mask(one: device_pb2.ParseMaskResponse) -> None:
    cuda = f"CUDA_VISIBLE_DEVICES={one.cuda_visible_devices}" if one.HasField("cuda_visible_devices") else ""
    print_fields(
        [
            ("mask", one.mask),
            *(("device", device_id) for device_id in one.device_ids),
            ("one process", cuda or f"none: {one.cuda_refusal}"),
            ("CDI", " ".join(one.cdi_names)),
        ]
    )


def change(response: device_pb2.WatchDevicesResponse) -> None:
    """One line per device of the event; nothing for a bookmark."""
    for one in (*response.snapshot.devices, *([response.upsert] if response.HasField("upsert") else ())):
        _line(one.revision, one.device_id, _state(one), one.state_reason)
    if response.HasField("delete"):
        _line(response.delete.revision, response.delete.device_id, Text("no longer shown"))
    if response.HasField("resync"):
        _line(response.resync.revision, "", Text(f"resync: {response.resync.reason}, all as it is now follows"))


def telemetry(answer: telemetry_pb2.GetTelemetryResponse) -> None:
    """A table for each device; the plot is of the window that was asked for."""
    for one in answer.devices:
        console().print(_heading(one))
        rows = (_reading(field) for field in one.fields)
        print_table(("FIELD", "NOW", "MIN", "MEAN", "MAX", "P95", "PER SECOND", "PLOT"), rows)


def live(answer: telemetry_pb2.StreamTelemetryResponse, past: Mapping[tuple[str, str], Sequence[float]]) -> Table:
    """One message of a stream, with plots of what came before: `past` by device id and field."""
    title = f"#{answer.sequence}" + (f", {answer.skipped} skipped" if answer.skipped else "")
    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    for column in ("DEVICE", "FIELD", "NOW", "PLOT"):
        table.add_column(column)
    for one in answer.devices:
        for field in one.fields:
            plot = spark(past.get((one.device_id, field.name), ()))
            table.add_row(_short(one), field.name, _now(field, one.stale), plot)
    return table


def line(answer: telemetry_pb2.StreamTelemetryResponse) -> None:
    """One message of a stream as lines that a program can cut."""
    for one in answer.devices:
        values = " ".join(f"{field.name}={field.value:g}" for field in one.fields if field.HasField("value"))
        stale = " stale" if one.stale else ""
        console().print(
            f"{answer.sequence} {one.device_id}{stale} {values}", soft_wrap=True, highlight=False, markup=False
        )


def spark(values: Sequence[float], width: int = PLOT_WIDTH) -> str:
    """A line of blocks, at most `width`, each the mean of its share: the lowest is the lowest block, and so is all of
    what is even."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) > width:
        bounds = [len(finite) * number // width for number in range(width + 1)]
        finite = [sum(finite[begin:end]) / (end - begin) for begin, end in pairwise(bounds)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in finite)


def absence(driver: admin_pb2.Driver) -> str:
    """Why there are no devices and what to do, in one line."""
    told = ". ".join(text for text in (plain(driver.message).plain, plain(driver.advice).plain) if text)
    return told or "this daemon looks for none"


def driver_fields(one: admin_pb2.Status) -> Iterator[tuple[str, str | Text]]:
    """What `poolmgr status` says of devices and telemetry."""
    if not one.HasField("driver"):
        return
    driver = one.driver
    known = f"driver {driver.driver_version}, CUDA {driver.cuda_version}" if driver.driver_version else ""
    yield "devices", f"{driver.devices}; {known}".rstrip("; ") if driver.devices else f"none: {absence(driver)}"
    if driver.simulated:
        yield "simulated", Text(plain(driver.simulated).plain, style="yellow")
    if driver.HasField("ring_bytes"):
        depth = f"{seconds(driver.ring_depth):g} s at {driver.ring_rate_hz:g} Hz"
        yield "telemetry", f"{depth}, {bytes_text(driver.ring_bytes)}, {seconds(driver.heartbeat_age):.1f} s ago"
    if driver.HasField("stalled"):
        yield "telemetry", Text(f"the driver has not answered for {seconds(driver.stalled):.1f} s", style="red")
    if driver.stalls:
        yield "stalls", f"{driver.stalls} since the daemon's start"


def _row(one: device_pb2.Device) -> Sequence[str | Text]:
    reason = one.state_reason or ("" if one.admits else _refusal(one))
    free, total = _bytes(one, "vram_free_bytes"), _bytes(one, "vram_total_bytes")
    return (_number(one), one.device_id, one.name, _state(one), free, total, str(one.claims), reason)


def _number(one: device_pb2.Device) -> str:
    return one.mig_slot or (str(one.index) if one.HasField("index") else "")


def _state(one: device_pb2.Device) -> Text:
    in_force = _cordoned(one) and not (one.admits and one.cordon.HasField("start_time"))
    return state_text(device_pb2.Device.State.Name(one.state) + ("+CORDONED" if in_force else ""))


def _cordoned(one: device_pb2.Device) -> bool:
    return one.HasField("cordon")


def _cordon(one: device_pb2.Device) -> str:
    if not _cordoned(one):
        return ""
    cordon = one.cordon
    parts = [cordon.reason or "no reason given", time_text(cordon.at), "drains" if cordon.drain else ""]
    parts += [f"{word} {time_text(time)}" for word, time, said in (
        ("from", cordon.start_time, cordon.HasField("start_time")),
        ("until", cordon.end_time, cordon.HasField("end_time")),
    ) if said]  # fmt: skip
    return ", ".join(part for part in parts if part)


def _refusal(one: device_pb2.Device) -> str:
    return device_pb2.Device.Inadmissible.Name(one.inadmissible).removeprefix("DEVICE_").lower().replace("_", " ")


def _action(one: device_pb2.Device) -> str:
    if not one.HasField("recovery_action") or one.recovery_action == device_pb2.Device.NONE:
        return ""
    return device_pb2.Device.RecoveryAction.Name(one.recovery_action).lower().replace("_", " ")


def _bytes(one: device_pb2.Device, field: str) -> str:
    """0 is a size here, and absent is not known."""
    if not one.HasField(field):  # type: ignore[arg-type] # a name of ours
        return "unknown"
    return bytes_text(getattr(one, field)) or "0 MiB"


def _mode(one: device_pb2.Device, field: str) -> str:
    if not one.HasField(field):  # type: ignore[arg-type] # a name of ours
        return ""
    return "on" if getattr(one, field) else "off"


def _link(link: device_pb2.Device.Link) -> str:
    kind = device_pb2.Device.Link.Kind.Name(link.kind)
    lanes = f" x{link.lanes}" if link.HasField("lanes") else ""
    speed = f", {link.bytes_per_second / 1e9:.1f} GB/s" if link.HasField("bytes_per_second") else ""
    return f"{kind}{lanes} to {link.peer_device_id}{speed}"


def _line(revision: int, device_id: str, what: Text, why: str = "") -> None:
    parts = (Text(str(revision), style="dim"), plain(device_id), what, plain(why))
    console().print(Text(" ").join(part for part in parts if part), soft_wrap=True)


def _short(one: telemetry_pb2.DeviceTelemetry) -> str:
    return f"{one.index}" if one.HasField("index") else one.device_id


def _heading(one: telemetry_pb2.DeviceTelemetry) -> Text:
    index = f" ({one.index})" if one.HasField("index") else ""
    if not one.HasField("age"):
        return Text(f"{one.device_id}{index}: nothing sampled yet", style="bold yellow")
    style = "bold yellow" if one.stale else "bold"
    return Text(f"{one.device_id}{index}: {'STALE, ' if one.stale else ''}{seconds(one.age):.1f} s ago", style=style)


def _reading(field: telemetry_pb2.FieldTelemetry) -> Sequence[str]:
    plot = spark([point.value for point in field.points])
    now = _value(field.value, field.unit) if field.HasField("value") else "unknown"
    if not field.statistics:
        return (field.name, now, "", "", "", "", "", plot)
    one = field.statistics[-1]
    p95 = _value(one.p95, field.unit) if one.HasField("p95") else ""
    slope = _value(one.slope, field.unit) if one.HasField("slope") else ""
    spread = (_value(value, field.unit) for value in (one.minimum, one.mean, one.maximum))
    return (field.name, now, *spread, p95, slope, plot)


def _now(field: telemetry_pb2.FieldTelemetry, stale: bool) -> Text:
    if not field.HasField("value"):
        return Text("unknown", style="dim")
    return Text(_value(field.value, field.unit), style="yellow" if stale else "")


def _value(value: float, unit: str) -> str:
    if unit in ("B", "bytes"):
        return bytes_text(round(value)) or "0 MiB"
    return f"{value:,.5g} {_UNITS.get(unit, unit)}".rstrip()

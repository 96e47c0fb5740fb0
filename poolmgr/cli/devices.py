"""`poolmgr devices …`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from poolmgr.cli.session import Session, command

app = typer.Typer(no_args_is_help=True, help="Look at GPUs and MIG instances, and keep work off them.")

TIMES = ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"]
DeviceName = Annotated[str, typer.Argument(metavar="DEVICE", help="Index, 1.2, UUID or its beginning, or PCI bus id.")]
MaybeDevice = Annotated[str, typer.Argument(metavar="[DEVICE]", help="Only this one.")]


@command(app, "list")
def list_(session: Session) -> None:
    """Lists devices with their state; where there are none, says why."""
    from poolmgr.cli import show_devices
    from poolmgr.v1 import device_pb2

    with session.client() as client:
        found = device_pb2.ListDevicesResponse(devices=client.list_devices())
        driver = client.status().driver
        session.answer(found, lambda answer: show_devices.devices(answer.devices, driver))


@command(app)
def show(session: Session, device: DeviceName) -> None:
    """Shows all that is known of one device."""
    from poolmgr.cli import show_devices

    with session.client() as client:
        session.answer(client.get_device(device), show_devices.device)


@command(app)
def claims(session: Session, device: MaybeDevice = "") -> None:
    """Lists who holds which device: engines, and every process that the driver shows."""
    from poolmgr.cli import show_devices
    from poolmgr.v1 import device_pb2

    with session.client() as client:
        session.answer(device_pb2.ListClaimsResponse(claims=client.list_claims(device)), show_devices.claims)


@command(app)
def mask(
    session: Session,
    text: Annotated[str, typer.Argument(metavar="MASK", help="0,1 or 0-3 or 1.2 or GPU-<uuid> or all, none, auto.")],
    partitioned: Annotated[bool, typer.Option(help="A GPU in MIG mode may be meant as a whole.")] = False,
) -> None:
    """Tells what a mask means on the daemon's host."""
    from poolmgr.cli import show_devices

    with session.client() as client:
        session.answer(client.parse_mask(text, allow_partitioned=partitioned), show_devices.mask)


@command(app)
def watch(
    session: Session,
    device: MaybeDevice = "",
    from_revision: Annotated[int, typer.Option(min=0, help="The first revision not yet seen; 0: all as it is.")] = 0,
) -> None:
    """Prints every change as it happens, one a line, until Ctrl-C."""
    from poolmgr.cli import output, show_devices

    with session.client() as client:
        for response in client.watch_devices(from_revision=from_revision, device_id=device):
            if session.as_json:
                output.print_json(response, one_line=True)
            else:
                show_devices.change(response)


@command(app)
def cordon(
    session: Session,
    device: DeviceName,
    reason: Annotated[str, typer.Option(help="Why, for whoever looks next.")] = "",
    drain: Annotated[bool, typer.Option(help="What runs on it drains and goes elsewhere.")] = False,
    start: Annotated[datetime | None, typer.Option(help="From then on, UTC.", formats=TIMES)] = None,
    end: Annotated[datetime | None, typer.Option(help="Until then, UTC.", formats=TIMES)] = None,
) -> None:
    """Lets no new work onto a device, over restarts too; what runs on it goes on, or leaves it with --drain."""
    from poolmgr.cli import show_devices

    with session.client() as client:
        cordoned = client.cordon_device(
            device, reason=reason, start_time=_unix(start), end_time=_unix(end), drain=drain
        )  # fmt: skip
        session.answer(cordoned, show_devices.device)


def _unix(time: datetime | None) -> float | None:
    return None if time is None else time.replace(tzinfo=UTC).timestamp()


@command(app)
def uncordon(session: Session, device: DeviceName) -> None:
    """Ends a cordon. A quarantine, or what the driver asks for, stays."""
    from poolmgr.cli import show_devices

    with session.client() as client:
        session.answer(client.uncordon_device(device), show_devices.device)

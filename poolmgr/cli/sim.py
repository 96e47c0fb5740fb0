"""`poolmgr sim …`: the simulated driver. Needs no daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poolmgr.cli.session import REFUSED, report
from poolmgr.errors import ClientError, PoolmgrError, Reason

if TYPE_CHECKING:
    from poolmgr.adapters.simulator.host import LiveHost

app = typer.Typer(no_args_is_help=True, help="Run programs against simulated GPUs, and change these while they run.")

STATE_VARIABLE = "POOLMGR_SIM_STATE"
SIGNALLED = 128  # the exit status of a program that died of signal n is 128 + n, as shells have it
NOT_FOUND = 127
WATCHED = ("utilization", "temperature", "power", "clock_sm", "pcie_tx", "pcie_rx")

State = Annotated[
    Path | None, typer.Option("--state", envvar=STATE_VARIABLE, help="The state file, as `sim run` tells it.")
]
Gpu = Annotated[str, typer.Argument(help="Index, UUID or a unique beginning of it.")]


@contextmanager
def _answered() -> Iterator[None]:
    """Errors as lines on stderr and an exit status."""
    try:
        yield
    except PoolmgrError as error:
        report(error.message, error.reason)
        raise typer.Exit(REFUSED) from error


def _live(state: Path | None) -> LiveHost:
    from poolmgr.adapters.simulator.host import LiveHost

    if state is None:
        raise ClientError(Reason.INVALID_ARGUMENT, f"which state file? Give --state, or set {STATE_VARIABLE}")
    return LiveHost(state)


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    scenario: Annotated[str, typer.Argument(help="A TOML file, or a shorthand such as 2xA100-80GB+1xT4.")],
    command: Annotated[list[str], typer.Argument(help="The program and its arguments, after --.")],
    state: Annotated[Path | None, typer.Option("--state", help="Keep the state file here, to change it live.")] = None,
) -> None:
    """Runs a program against a scenario: it finds the simulated driver as libnvidia-ml. Exits as the program does."""
    from poolmgr.adapters.simulator.host import SimulatedHost, environment
    from poolmgr.adapters.simulator.scenario import load

    with _answered(), tempfile.TemporaryDirectory(prefix="poolmgr-sim-") as folder:
        where = state or Path(folder) / "state"
        SimulatedHost(load(scenario), where)
        variables = os.environ | environment(where)
        command = command[1:] if command[0] == "--" else command
        typer.echo(f"simulating {scenario}; state in {where}", err=True)
        try:
            child = subprocess.Popen(command, env=variables)
        except OSError as error:
            typer.echo(f"error: {command[0]} cannot be run: {error.strerror}", err=True)
            raise typer.Exit(NOT_FOUND) from error
        raise typer.Exit(_wait(child))


def _wait(child: subprocess.Popen[bytes]) -> int:
    """The child gets the terminal's signals itself; we only stay until it has ended."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        status = child.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    return status if status >= 0 else SIGNALLED - status


@app.command("set")
def set_values(
    gpu: Gpu,
    values: Annotated[list[str], typer.Argument(help="NAME=VALUE …; a value of `none` is one that is not told.")],
    state: State = None,
) -> None:
    """Sets series (temperature=80, power=300, utilization=97 …) or numbers (pstate=2 …) of a GPU."""
    with _answered():
        host = _live(state)
        for text in values:
            name, sign, value = text.partition("=")
            if not sign:
                raise ClientError(Reason.INVALID_ARGUMENT, f"{text!r} is not of the form NAME=VALUE")
            host.set(gpu, name, _number(name, value))


def _number(name: str, value: str) -> float | None:
    from poolmgr.adapters.simulator.reading import parse_size

    if value.lower() == "none":
        return None
    try:
        return float(value)
    except ValueError:
        size = parse_size(value)
    if size is None:
        raise ClientError(Reason.INVALID_ARGUMENT, f"{name}: {value!r} is no number")
    return size


@app.command()
def fault(
    kind: Annotated[str, typer.Argument(help="xid, ecc, lost, found, hang, slow, mig-create … (docs/simulator.md).")],
    values: Annotated[list[str] | None, typer.Argument(help="NAME=VALUE …: code=79, seconds=5, at=2.5 …")] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="Else the host, or every GPU.")] = None,
    state: State = None,
) -> None:
    """Makes a fault happen, now or `at` seconds from now."""
    with _answered():
        given: dict[str, object] = {}
        for text in values or []:
            name, _, value = text.partition("=")
            given[name] = _plain(value)
        _live(state).fault(kind, gpu, **given)


def _plain(text: str) -> object:
    """As TOML would read it: true, 5, 2.5; all else is a text."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


@app.command()
def watch(
    state: State = None,
    interval: Annotated[float, typer.Option("--interval", min=0.05, help="Seconds.")] = 1.0,
    count: Annotated[int, typer.Option("--count", min=0, help="How often; 0 until interrupted.")] = 0,
) -> None:
    """Shows what the GPUs show, and how often the driver was called."""
    with _answered():
        host = _live(state)
        shown = 0
        try:
            while True:
                _show(host)
                shown += 1
                if shown == count:
                    return
                time.sleep(interval)
        except KeyboardInterrupt:
            return


def _show(host: LiveHost) -> None:
    from rich.console import Console
    from rich.table import Table

    from poolmgr.cli.output import PIPE_WIDTH

    table = Table("gpu", "uuid", *WATCHED, "processes", "state", box=None, header_style="bold")
    for index, uuid in enumerate(host.uuids()):
        values = [host.value(index, name) for name in WATCHED]
        held = host.state.processes(index)
        lost = "lost" if host.value(index, "lost") else "ok" if host.value(index, "present") else "removed"
        table.add_row(str(index), uuid, *("-" if v is None else f"{v:.0f}" for v in values), str(len(held)), lost)
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    console.print(table)
    console.print(f"calls: {sum(host.calls().values())}")


@app.command()
def check(scenario: Annotated[str, typer.Argument(help="A TOML file or a shorthand.")]) -> None:
    """Checks a scenario, and that its MIG instances fit."""
    from poolmgr.adapters.simulator.host import SimulatedHost
    from poolmgr.adapters.simulator.scenario import load

    with _answered(), tempfile.TemporaryDirectory(prefix="poolmgr-sim-") as folder:
        loaded = load(scenario)
        SimulatedHost(loaded, Path(folder) / "state")
        typer.echo(f"{scenario} is sound: {len(loaded.gpus)} GPUs, {len(loaded.faults)} faults")


@app.command()
def models() -> None:
    """Lists the GPU models of the catalogue."""
    from poolmgr.adapters.simulator.catalogue import models as known

    for name, model in sorted(known().items()):
        mig = ", ".join(profile.name for profile in model.profiles)
        typer.echo(f"{name:<16} {model.name:<44} {model.memory_mib:>7} MiB  {mig}")

"""GetPool, and acquire + release, beside an echo of the same sizes on a bare grpcio aio server; then 32 pools at rest.

Callers run on core 0, the server under load on core 1 while the other one idles. Rounds go round the servers, and each
round gives one ratio: what else the machine does meets both.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from bench import beside, common, idle
from bench.beside import CALLERS, CLIENT_CORE, SERVER_CORE, Samples
from bench.daemon import ready_pools, running_daemon
from bench.load import Target
from poolmgr.client import Client
from poolmgr.v1 import pool_pb2

POOL = "bench"
SLOTS = 128
BARS = (
    *(common.at_least(f"getpool_vs_echo_{callers}", 0.8) for callers in CALLERS),
    *(common.at_least(f"lease_vs_echo_{callers}", 0.6) for callers in CALLERS),
    common.at_most("daemon_rss_mb", 100.0),
    common.at_most("shim_rss_mb", 12.0),
    common.at_most("idle_cpu_percent", 2.0),
)


@dataclass(frozen=True, slots=True)
class Effort(beside.Effort):
    """And the seconds at rest."""

    rest: float


FULL = Effort(rounds=11, stretch=1.0, rest=60.0)
QUICK = Effort(rounds=5, stretch=0.3, rest=10.0)


def measure_calls(directory: Path, effort: Effort) -> dict[str, Samples]:
    directory.mkdir()
    engine = pool_pb2.PoolSpec(engine=pool_pb2.ENGINE_COMMAND, command="sleep", args=["infinity"], slots=SLOTS)
    with beside.on_core(SERVER_CORE), running_daemon(directory, {}) as daemon:
        with Client(daemon.address) as client:
            ready_pools(client, engine, POOL)
        sizes = beside.sizes_of(daemon.address, POOL)
        with beside.echo_server(sizes.replies()) as echo, beside.on_core(CLIENT_CORE):
            target = Target("poolmgr", daemon.pid, daemon.address)
            return asyncio.run(beside.compare_all(sizes.works(), target, echo, effort))


def print_idle(rest: idle.Idle) -> None:
    rows = [
        ("daemon", f"{rest.daemon_rss:.1f}", f"{rest.daemon_private:.1f}", f"{rest.daemon_cpu:.2f}"),
        ("largest shim", f"{rest.shim_rss:.1f}", f"{rest.shim_private:.1f}", ""),
        ("median shim", f"{rest.shim_rss_median:.1f}", "", ""),
        ("all shims", "", "", f"{rest.shims_cpu:.2f}"),
    ]
    common.print_table(f"{idle.POOLS} READY pools at rest", ("", "RSS MB", "private MB", "% of a core"), rows)


def run(directory: Path, effort: Effort) -> common.Report:
    samples = measure_calls(directory / "calls", effort)
    beside.print_calls(samples)
    (directory / "idle").mkdir()
    rest = idle.measure(directory / "idle", effort.rest)
    print_idle(rest)
    report = common.Report("rpc", BARS)
    for name, taken in samples.items():
        work, _, callers = name.rpartition("_")
        report.ratios[f"{work}_vs_echo_{callers}"] = taken.ratio
        report.figures[f"{work}_per_second_{callers}"] = common.median([s.per_second for s in taken.daemon])
        report.figures[f"{work}_echo_per_second_{callers}"] = common.median([s.per_second for s in taken.echo])
    report.figures |= {
        "daemon_rss_mb": rest.daemon_rss,
        "daemon_private_mb": rest.daemon_private,
        "shim_rss_mb": rest.shim_rss,
        "shim_private_mb": rest.shim_private,
        "idle_cpu_percent": rest.daemon_cpu,
    }
    return report


def main() -> None:
    options = common.arguments(__doc__ or "")
    if os.cpu_count() == 1:
        raise SystemExit("callers and server need a core each; there is one")
    with common.state_directory(options.directory, "rpc") as directory:
        run(directory, QUICK if options.quick else FULL).print(options.json)


if __name__ == "__main__":
    main()

"""What the daemon and its shims cost while they only watch: 32 READY pools, probed over HTTP at the shipped cadence."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.common import cpu_seconds, parent_of, private_mb, rss_mb
from bench.daemon import ready_pools, running_daemon
from poolmgr.client import Client
from poolmgr.testing import engine
from poolmgr.v1 import pool_pb2 as pb

POOLS = 32


@dataclass(frozen=True, slots=True)
class Idle:
    """Memory in MB (10**6 bytes), time in percent of a core."""

    daemon_rss: float
    daemon_private: float
    daemon_cpu: float
    shim_rss: float
    shim_rss_median: float
    shim_private: float
    shims_cpu: float


def spec() -> pb.PoolSpec:
    """The scripted engine, which answers /health; when and how often it is asked is the default."""
    probe = pb.Probe(kind=pb.Probe.HTTP, path="/health")
    args = [str(engine.__file__), "--port", "{port}"]
    return pb.PoolSpec(engine=pb.ENGINE_COMMAND, command=sys.executable, args=args, readiness=probe, liveness=probe)


def measure(directory: Path, seconds: float) -> Idle:
    with running_daemon(directory, {}) as daemon, Client(daemon.address) as client:
        pools = ready_pools(client, spec(), *(f"idle-{number}" for number in range(POOLS)))
        shims = [parent_of(pool.pid) for pool in pools]
        before = [cpu_seconds(pid) for pid in (daemon.pid, *shims)]
        began = time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        used = [cpu_seconds(pid) - earlier for pid, earlier in zip((daemon.pid, *shims), before, strict=True)]
        rss = [rss_mb(pid) for pid in shims]
        return Idle(
            daemon_rss=rss_mb(daemon.pid),
            daemon_private=private_mb(daemon.pid),
            daemon_cpu=100 * used[0] / took,
            shim_rss=max(rss),
            shim_rss_median=statistics.median(rss),
            shim_private=max(private_mb(pid) for pid in shims),
            shims_cpu=100 * sum(used[1:]) / took,
        )

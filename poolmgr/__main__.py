"""`python -m poolmgr`: the daemon. `poolmgr serve` ends up here; the standard library's parser keeps it small."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from poolmgr.errors import PoolmgrError

# gRPC writes lines of its own to stderr; what matters of them reaches us as an error, and the log is JSON.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Its event engine hands each read from thread to thread; without it a call costs some 25 us less (1.85.1).
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")


def main() -> int:
    parser = argparse.ArgumentParser(prog="poolmgr serve", description="Runs the pool manager of this host.")
    parser.add_argument("--config", type=Path, help="TOML file; default: the one POOL_MANAGERD_CONFIG names, else none")
    parser.add_argument("--addr", help="host:port to listen on; default 127.0.0.1:9200")
    parser.add_argument("--state-dir", help="where pools, engines and their logs are kept")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--simulate", metavar="SCENARIO", default="", help="GPUs of a TOML file or of 2xA100-80GB+1xT4")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings")
    arguments = parser.parse_args()
    flags: dict[str, object] = {
        "server.addr": arguments.addr,
        "state.dir": arguments.state_dir,
        "observability.log_level": arguments.log_level,
    }
    for setting in arguments.settings:
        key, separator, value = setting.partition("=")
        if not separator:
            parser.error(f"--set takes SECTION.KEY=VALUE, not {setting!r}")
        flags[key] = value
    from poolmgr.app import CommandLine, run

    try:
        return run(CommandLine(arguments.config, flags, arguments.simulate))
    except PoolmgrError as error:
        sys.stderr.write(f"error: {error.message}\nreason: {error.reason}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())

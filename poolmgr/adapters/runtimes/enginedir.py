"""The directory of one engine: its records, its log, its shim's socket."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from poolmgr.adapters import codec
from poolmgr.adapters.shim import procfs, records, wire
from poolmgr.model.engine import ExitRecord, LaunchSpec, ProcessIdentity
from poolmgr.model.plan import SplitPlan
from poolmgr.model.pool import PoolRecord

TAIL_BYTES = 64 * 1024


class EngineDirectory:
    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def log(self) -> Path:
        return self.path / wire.LOG

    def create(self, launch: LaunchSpec, leaf: Path | None, log_check_seconds: float) -> None:
        """Makes the directory and its `spec`, durable on return. Raises OSError."""
        if not self.path.is_dir():
            self.path.mkdir(mode=0o700)
            _sync(self.path.parent)
        (self.path / wire.WORK).mkdir(mode=0o700, exist_ok=True)
        spec = {
            "engine_id": launch.engine_id,
            "pool_id": launch.pool_id,
            "generation": launch.generation,
            "argv": launch.argv,
            "port": launch.port,
            "log_limit_bytes": launch.log_limit_bytes,
            "mark": launch.mark,
            "slots": launch.slots,
            "record": None if launch.record is None else codec.encode_record(launch.record),
            "plan": None if launch.plan is None else codec.encode_plan(launch.plan),
            "reserved": launch.reserved,
            "env": {**launch.env, **self._marks(launch)},
            "cgroup": None if leaf is None else str(leaf),
            "log_check_seconds": log_check_seconds,
        }
        records.write(str(self.path / wire.SPEC), spec, durable=True)

    def _marks(self, launch: LaunchSpec) -> dict[str, str]:
        return {
            wire.ENGINE_ID_VARIABLE: launch.engine_id,
            wire.ENGINE_DIRECTORY_VARIABLE: str(self.path),
            wire.POOL_VARIABLE: f"{launch.pool_id}:{launch.generation}",
        }

    def read(self, name: str) -> wire.Message | None:
        """A record; None when there is none. Raises ValueError for a damaged one and OSError."""
        return records.read(str(self.path / name))

    def exit_of(self, identity: ProcessIdentity) -> ExitRecord | None:
        """What the shim recorded of this process's end; None when it recorded nothing that can be read."""
        try:
            record = self.read(wire.EXIT)
            return exit_record(record) if record is not None and _is_of(record, identity) else None
        except (OSError, ValueError, KeyError):
            return None

    def shim(self) -> ProcessIdentity | None:
        """Who wrote `ident`; None when nobody did in this boot, or it cannot be read."""
        try:
            ident = self.read(wire.IDENT)
            if ident is None or ident["boot_id"] != procfs.boot_id():
                return None
            return ProcessIdentity(ident["boot_id"], ident["shim_pid"], ident["shim_start_ticks"])
        except (OSError, ValueError, KeyError):
            return None

    def tail(self, lines: int) -> tuple[str, ...]:
        """The last lines, out of the last 64 KiB; none when there is no log yet. A log that cannot be read says why."""
        try:
            with self.log.open("rb") as file:
                start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
                file.seek(start)
                found = file.read(TAIL_BYTES).decode(errors="replace").splitlines()
        except FileNotFoundError:
            return ()
        except OSError as error:
            found, start = [f"(the log cannot be read: {error.strerror})"], 0
        if start and len(found) > 1:
            del found[0]  # begins before what was read
        return tuple(found[-lines:]) if lines > 0 else ()

    @contextmanager
    def socket_address(self) -> Iterator[str]:
        """The shim's address by way of a descriptor: a path of any length in the 108 bytes of sockaddr_un."""
        fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{fd}/{wire.SOCK}"
        finally:
            os.close(fd)

    def listen(self) -> socket.socket:
        """A new listening socket in place of the last shim's. Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            os.fchmod(listener.fileno(), 0o600)  # what bind gives to the file
            with self.socket_address() as address:
                with suppress(FileNotFoundError):
                    os.unlink(address)
                listener.bind(address)
            listener.listen()
        except OSError:
            listener.close()
            raise
        return listener

    def connect(self) -> socket.socket | None:
        """A connection to the shim; None when none listens or it is not our own user's."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.setblocking(False)
            with self.socket_address() as address:
                connection.connect(address)
            if wire.peer_is_us(connection):
                return connection
        except OSError:
            pass
        connection.close()
        return None

    def hide_socket(self) -> None:
        """Whoever listens on it is reached by nobody any more. Raises OSError."""
        (self.path / wire.SOCK).unlink(missing_ok=True)

    def remove(self) -> None:
        """Also what the engine left without a permission to remove it. Raises OSError."""
        if self.path.exists():
            try:
                shutil.rmtree(self.path)
            except PermissionError:
                _open_up(self.path)
                shutil.rmtree(self.path)
            _sync(self.path.parent)


def launch_of(spec: wire.Message) -> LaunchSpec:
    """What `create` was given. Raises ValueError for a spec of another shape."""
    match spec:
        case {
            "engine_id": str(engine_id),
            "pool_id": str(pool_id),
            "generation": int(generation),
            "argv": list(argv),
            "env": dict(env),
            "port": int(port),
            "log_limit_bytes": int(log_limit),
        }:
            mark, slots = str(spec.get("mark", "")), int(spec.get("slots", 0))  # later than the rest
            given = {name: value for name, value in env.items() if name not in wire.MARKS}
            return LaunchSpec(
                engine_id, pool_id, generation, tuple(argv), given, port, log_limit, mark, slots, _record(spec),
                _plan(spec), _reserved(spec),
            )  # fmt: skip
    raise ValueError("spec lacks what a launch needs")


def _record(spec: wire.Message) -> PoolRecord | None:
    """None where an earlier version wrote none, or a later one wrote what this one does not know."""
    try:
        return codec.decode_record(str(spec["record"])) if spec.get("record") else None
    except ValueError:
        return None


def _plan(spec: wire.Message) -> SplitPlan | None:
    """As `_record`."""
    try:
        return codec.decode_plan(str(spec["plan"])) if spec.get("plan") else None
    except ValueError:
        return None


def _reserved(spec: wire.Message) -> Mapping[str, int]:
    told = spec.get("reserved")
    return {str(name): int(size) for name, size in told.items()} if isinstance(told, dict) else {}


def identity_of(ident: Mapping[str, object]) -> ProcessIdentity:
    """Raises ValueError for an ident of another shape."""
    match ident:
        case {
            "boot_id": str(boot_id),
            "pid": int(pid),
            "start_ticks": int(start_ticks),
            "pidfd_inode": int() | None as inode,
        }:
            return ProcessIdentity(boot_id, pid, start_ticks, inode)
    raise ValueError("ident lacks what identifies a process")


def exit_record(record: Mapping[str, object]) -> ExitRecord:
    """Raises ValueError for a record of another shape."""
    match record:
        case {"exit_code": int() | None as code, "signal": int() | None as number, "oom_killed": bool(oom)}:
            return ExitRecord(code, number, oom, "shim")
    raise ValueError("exit lacks what tells how a process ended")


def _is_of(record: Mapping[str, object], identity: ProcessIdentity) -> bool:
    return (record["boot_id"], record["pid"], record["start_ticks"]) == (
        identity.boot_id,
        identity.pid,
        identity.start_ticks,
    )


def _open_up(directory: str | Path) -> None:
    os.chmod(directory, 0o700)
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _open_up(entry.path)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

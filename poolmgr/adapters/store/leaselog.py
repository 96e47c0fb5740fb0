"""Leases as records in two preallocated files that are used in turn (LEASE-4).

A grant has to survive this process, not the host: another boot voids all leases. So a record is one `pwrite` into the
page cache, microseconds on the event loop, and nothing here ever waits for a disk: there is no fsync. As the files are
allocated in full, recording goes on while the disk is full (a file system that copies on write needs room even so).

When a segment is full, the live leases and the newest ended ones go into the other file, whose header is written last;
then the header of the full one is wiped. A crash at any point leaves a header that tells the truth, and a file that
was lost, cut or damaged cannot pass for an older but whole one.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Final

from poolmgr.adapters.store.limits import KEPT_ENDED, is_unknown
from poolmgr.adapters.store.segment import (
    HEADER_SIZE,
    Header,
    boot_digest,
    decode,
    decode_header,
    encode_end,
    encode_grant,
    encode_header,
    scan,
)
from poolmgr.errors import EnvironmentFault, Reason
from poolmgr.model.lease import EndedLease, KeptLeases, Lease

FILES: Final = ("leases.0", "leases.1")
SEGMENT_SIZE: Final = 1 << 20

_Step = tuple[str, bytes, bool]  # lease id, frame, whether it is a grant


@dataclass(frozen=True, slots=True)
class Found:
    """What the files held when state was opened. `header` is the newest that can be read, `index` says of which file.

    `unknown_since`: when records of this boot were found lost (boot-time seconds), None when none are. `lost`: it was
    now. `next_fence` is above every fencing number that was found.
    """

    kept: KeptLeases
    header: Header | None = None
    index: int = 0
    unknown_since: float | None = None
    lost: bool = False
    steps: tuple[_Step, ...] = ()
    next_fence: int = 1

    @property
    def epoch(self) -> int:
        return 0 if self.header is None else self.header.epoch

    @property
    def changes(self) -> int:
        """The last transaction of the database that anybody was told of."""
        return 0 if self.header is None else self.header.changes


@dataclass(slots=True)
class _State:
    """The frames that would be written into a new segment."""

    live: dict[str, bytes] = field(default_factory=dict)
    ended: deque[bytes] = field(default_factory=lambda: deque(maxlen=KEPT_ENDED))

    def apply(self, steps: Iterable[_Step]) -> None:
        for lease_id, frame, granted in steps:
            if granted:
                self.live[lease_id] = frame
            else:
                self.live.pop(lease_id, None)
                self.ended.append(frame)

    def after(self, steps: Iterable[_Step]) -> _State:
        following = _State(dict(self.live), self.ended.copy())
        following.apply(steps)
        return following


def read(directory: Path, boot_id: str, now: float) -> Found:
    """Looks at the files and changes nothing. `now` in boot-time seconds. Raises OSError for what the host refuses."""
    contents = [_content(directory / name) for name in FILES]
    headers = [decode_header(content) for content in contents]
    found = [(header.sequence, index, header) for index, header in enumerate(headers) if header is not None]
    if not found:
        return Found(KeptLeases(known=False), unknown_since=now, lost=True)
    _, index, header = max(found)
    if not boot_id:
        return Found(KeptLeases(known=False), header, index, unknown_since=now)
    if header.boot != boot_digest(boot_id):
        return Found(KeptLeases(known=True), header, index)
    # The file that is not in use has no header. One that has half a header may be the newer.
    doubtful = headers[1 - index] is None and any(contents[1 - index][:HEADER_SIZE])
    return _replay(header, index, contents[index], doubtful, now)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _replay(header: Header, index: int, content: bytes, doubtful: bool, now: float) -> Found:
    scanned = scan(content)
    damaged = doubtful or scanned.damaged or len(content) < header.size
    live: dict[str, tuple[str, Lease]] = {}
    ended: deque[EndedLease] = deque(maxlen=KEPT_ENDED)
    steps: list[_Step] = []
    next_fence = 1
    for frame in scanned.frames:
        try:
            record = decode(frame)
        except ValueError:
            damaged = True
            continue
        if isinstance(record, EndedLease):
            live.pop(record.lease_id, None)
            ended.append(record)
            steps.append((record.lease_id, frame, False))
        else:
            lease = record[1]
            live[lease.lease_id] = record
            next_fence = max(next_fence, lease.fencing_token + 1)
            steps.append((lease.lease_id, frame, True))
    since = now if damaged else header.unknown_since
    kept = KeptLeases(not is_unknown(since, now), tuple(live.values()), tuple(ended))
    return Found(kept, header, index, since, damaged, tuple(steps), next_fence)


class LeaseLog:
    """The recording half, used on one thread. `begin` carries over what was found; `close` writes nothing."""

    def __init__(self, directory: Path, header: Header, state: _State, current: int) -> None:
        self._directory = directory
        self._header = header
        self._state = state
        self._current = current
        self._descriptors = [-1, -1]
        self._sizes = [0, 0]
        self._used = [0, 0]
        self._broken = False
        self._gathered: list[_Step] = []
        self._depth = 0

    @classmethod
    def begin(cls, directory: Path, found: Found, boot_id: str, epoch: int, changes: int) -> LeaseLog:
        """Starts a segment of this epoch. Raises OSError; what was found is still there then."""
        sequence = 0 if found.header is None else found.header.sequence
        header = Header(boot_digest(boot_id), epoch, sequence, 0, changes, found.unknown_since)
        state = _State()
        state.apply(found.steps)
        log = cls(directory, header, state, found.index)
        try:
            log._open()
            log._switch(state)
        except OSError:
            log.close()
            raise
        return log

    def record(self, granted: Sequence[tuple[str, Lease]], ended: Sequence[EndedLease]) -> None:
        """See `Store.record`."""
        steps = [(lease.lease_id, encode_grant(pool_id, lease), True) for pool_id, lease in granted]
        if ended:
            steps += [(each.lease_id, encode_end(each), False) for each in ended]
        self._gathered += steps
        if not self._depth:
            self._flush()

    def __enter__(self) -> None:
        """A batch; see `Store.batch`. Batches nest: the outermost writes."""
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._depth:
            self._flush()

    def note_changes(self, changes: int) -> None:
        """Remembers how many transactions of the database were acknowledged: a later start tells that some are lost.

        No error: without the note a loss is not noticed, and nothing else is different.
        """
        self._header = replace(self._header, changes=changes)
        with suppress(OSError):
            os.pwrite(self._descriptors[self._current], encode_header(self._header), 0)

    def vouch(self) -> None:
        """See `Store.vouch_for_leases`. No error: without the note the next start is careful for nothing."""
        self._header = replace(self._header, unknown_since=None)
        with suppress(OSError):
            os.pwrite(self._descriptors[self._current], encode_header(self._header), 0)

    def close(self) -> None:
        """Lets go of the files. Closing again does nothing."""
        for index, descriptor in enumerate(self._descriptors):
            if descriptor >= 0:
                os.close(descriptor)
            self._descriptors[index] = -1

    def _flush(self) -> None:
        steps, self._gathered = self._gathered, []
        if not steps:
            return
        try:
            self._append(steps)
        except OSError as error:
            raise EnvironmentFault(
                Reason.STORE_UNAVAILABLE,
                f"{self._directory / FILES[self._current]}: leases cannot be recorded: {error.strerror}",
                numbers={"errno": error.errno or 0, "directory": str(self._directory)},
            ) from error

    def _append(self, steps: Sequence[_Step]) -> None:
        data = steps[0][1] if len(steps) == 1 else b"".join([frame for _, frame, _ in steps])
        current = self._current
        offset = self._used[current]
        if self._broken or offset + len(data) > self._sizes[current]:
            following = self._state.after(steps)
            self._switch(following)
            self._state = following
            return
        try:
            _write_all(self._descriptors[current], data, offset)
        except OSError:
            self._take_back(len(data))
            raise
        self._used[current] = offset + len(data)
        self._state.apply(steps)

    def _take_back(self, length: int) -> None:
        """What was written in part was promised to nobody: wiped where that works, and left behind by a new segment."""
        self._broken = True
        with suppress(OSError):
            os.pwrite(self._descriptors[self._current], bytes(length), self._used[self._current])

    def _open(self) -> None:
        for index, name in enumerate(FILES):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = self._descriptors[index] = os.open(self._directory / name, flags, 0o600)
            size = max(SEGMENT_SIZE, os.fstat(descriptor).st_size)
            os.posix_fallocate(descriptor, 0, size)
            self._sizes[index] = self._used[index] = size  # of what an earlier process wrote nobody knows the end

    def _switch(self, state: _State) -> None:
        """Writes all that is known into the other file, and makes that the one in use."""
        source, target = self._current, 1 - self._current
        descriptor = self._descriptors[target]
        body = b"".join((*state.ended, *state.live.values()))
        used = HEADER_SIZE + len(body)
        self._grow(target, used)
        header = replace(self._header, sequence=self._header.sequence + 1, size=self._sizes[target])
        _write_all(descriptor, bytes(self._used[target]), 0)
        self._used[target] = self._sizes[target]
        _write_all(descriptor, body, HEADER_SIZE)
        _write_all(descriptor, encode_header(header), 0)
        self._used[target] = used
        self._current, self._header, self._broken = target, header, False
        with suppress(OSError):  # the newer of two headers is the one that counts
            os.pwrite(self._descriptors[source], bytes(HEADER_SIZE), 0)

    def _grow(self, index: int, used: int) -> None:
        """Makes the file twice as large as what it begins with; without the room for that, it has to do as it is."""
        size = self._sizes[index]
        while used > size // 2:
            size *= 2
        if size > self._sizes[index]:
            try:
                os.posix_fallocate(self._descriptors[index], 0, size)
                self._sizes[index] = size
            except OSError:
                if used > self._sizes[index]:
                    raise


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Raises OSError, also for a write that was cut short: in an allocated file that is no room problem."""
    if os.pwrite(descriptor, data, offset) != len(data):
        raise OSError(errno.EIO, "the write was cut short")

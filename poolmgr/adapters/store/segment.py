"""The bytes of the lease log: one segment is a header and then records, each framed by its length and a CRC-32.

Behind the last record a segment is zero. A write that a SIGKILL cut short (the kernel looks for one between pages) left
a whole number of pages and zeros behind them: that is a record which nobody was told of. Anything else that cannot be
read is damage.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import Final

from poolmgr.adapters.store.limits import MAX_EPOCH
from poolmgr.model.lease import EndedLease, Lease, LeaseOutcome

HEADER_SIZE: Final = 128

_PAGE: Final = 4096
_MAGIC: Final = b"poolmgr\n"
_VERSION: Final = 1
# magic, version, epoch, sequence, size, changes, unknown since (below zero: nothing is), SHA-256 of the boot id; then
# the CRC-32 of all that.
_HEADER: Final = struct.Struct("<8sIIQQQd32s")
_CRC: Final = struct.Struct("<I")
# length of the payload, its complement, CRC-32 of the payload. By the complement a length is known to be right, so that
# the record behind a damaged one is found.
_FRAME: Final = struct.Struct("<III")
_ALL_ONES: Final = 0xFFFF_FFFF
# kind, ttl, expires, fencing token, generation, lengths of: pool id, lease id, token, holder, endpoint, request id.
_GRANT: Final = struct.Struct("<BddQI6I")
# kind, outcome, lengths of: lease id, token.
_END: Final = struct.Struct("<BB2I")
_GRANTED: Final = 1
_ENDED: Final = 2
# The position is what is written: new ones are added at the end.
_OUTCOMES: Final = (
    LeaseOutcome.RENEWED,
    LeaseOutcome.RELEASED,
    LeaseOutcome.ALREADY_RELEASED,
    LeaseOutcome.EXPIRED,
    LeaseOutcome.UNKNOWN,
)
_CODES: Final = {outcome: code for code, outcome in enumerate(_OUTCOMES)}


@dataclass(frozen=True, slots=True)
class Header:
    """`size`: of the whole segment, in bytes.

    `unknown_since`: when earlier records were found lost (boot-time seconds), None when none are.
    `changes`: the last transaction of the database that was acknowledged when this was written.
    """

    boot: bytes
    epoch: int
    sequence: int = 0
    size: int = 0
    changes: int = 0
    unknown_since: float | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """The frames of a segment in order, whole; `damaged` when there are some that cannot be read."""

    frames: tuple[bytes, ...]
    damaged: bool


def boot_digest(boot_id: str) -> bytes:
    return hashlib.sha256(boot_id.encode()).digest()


def encode_header(header: Header) -> bytes:
    since = -1.0 if header.unknown_since is None else header.unknown_since
    body = _HEADER.pack(
        _MAGIC, _VERSION, header.epoch, header.sequence, header.size, header.changes, since, header.boot
    )
    return (body + _CRC.pack(zlib.crc32(body))).ljust(HEADER_SIZE, b"\0")


def decode_header(data: bytes) -> Header | None:
    """None for what this version did not write, or not whole."""
    if len(data) < HEADER_SIZE:
        return None
    body, (crc,) = data[: _HEADER.size], _CRC.unpack_from(data, _HEADER.size)
    magic, version, epoch, sequence, size, changes, since, boot = _HEADER.unpack(body)
    if crc != zlib.crc32(body) or magic != _MAGIC or version != _VERSION or epoch > MAX_EPOCH:
        return None
    return Header(boot, epoch, sequence, size, changes, None if since < 0 else since)


def encode_grant(pool_id: str, lease: Lease) -> bytes:
    pool, lease_id, token = pool_id.encode(), lease.lease_id.encode(), lease.token.encode()
    holder, endpoint, request = lease.holder.encode(), lease.endpoint.encode(), lease.request_id.encode()
    fixed = _GRANT.pack(
        _GRANTED, lease.ttl, lease.expires, lease.fencing_token, lease.generation,
        len(pool), len(lease_id), len(token), len(holder), len(endpoint), len(request),
    )  # fmt: skip
    payload = b"".join((fixed, pool, lease_id, token, holder, endpoint, request))
    length = len(payload)
    return _FRAME.pack(length, length ^ _ALL_ONES, zlib.crc32(payload)) + payload


def encode_end(ended: EndedLease) -> bytes:
    lease_id, token = ended.lease_id.encode(), ended.token.encode()
    payload = _END.pack(_ENDED, _CODES[ended.outcome], len(lease_id), len(token)) + lease_id + token
    length = len(payload)
    return _FRAME.pack(length, length ^ _ALL_ONES, zlib.crc32(payload)) + payload


def decode(frame: bytes) -> tuple[str, Lease] | EndedLease:
    """The record in a frame whose checksum is right. Raises ValueError for what this version did not write."""
    try:
        if frame[_FRAME.size] == _GRANTED:
            return _decode_grant(frame)
        if frame[_FRAME.size] == _ENDED:
            _, code, *lengths = _END.unpack_from(frame, _FRAME.size)
            lease_id, token = _texts(frame, _FRAME.size + _END.size, lengths)
            return EndedLease(lease_id, token, _OUTCOMES[code])
    except (struct.error, IndexError) as error:
        raise ValueError(f"a lease record of {len(frame)} bytes is too short") from error
    raise ValueError(f"no kind of lease record has the number {frame[_FRAME.size]}")


def scan(data: bytes) -> Scan:
    """What lies behind the header of a segment."""
    end, offset = len(data.rstrip(b"\0")), HEADER_SIZE
    frames: list[bytes] = []
    damaged = False
    while offset < end:
        length, sound = _length(data, offset)
        if length is None:
            return Scan(tuple(frames), damaged or not _is_cut(offset + _FRAME.size, end))
        following = offset + _FRAME.size + length
        if _is_whole(data, offset, length):
            frames.append(data[offset:following])
            damaged |= not sound
        else:
            damaged |= not _is_cut(following, end)
        offset = following
    return Scan(tuple(frames), damaged)


def _length(data: bytes, offset: int) -> tuple[int | None, bool]:
    """(the length of the payload, whether both copies of it agree). None when neither can be right."""
    if offset + _FRAME.size > len(data):
        return None, False
    length, complement, _ = _FRAME.unpack_from(data, offset)
    fits = offset + _FRAME.size + length <= len(data)
    if length == complement ^ _ALL_ONES:
        return (length if fits else None), fits
    for candidate in (length, complement ^ _ALL_ONES):
        if _is_whole(data, offset, candidate):
            return candidate, False
    return None, False


def _is_whole(data: bytes, offset: int, length: int) -> bool:
    payload = data[offset + _FRAME.size : offset + _FRAME.size + length]
    return len(payload) == length > 0 and zlib.crc32(payload) == _FRAME.unpack_from(data, offset)[2]


def _is_cut(following: int, end: int) -> bool:
    """Whether a record that would reach up to `following` was cut at a page boundary, all behind that being zero."""
    return -(-end // _PAGE) * _PAGE < following


def _decode_grant(frame: bytes) -> tuple[str, Lease]:
    _, ttl, expires, fence, generation, *lengths = _GRANT.unpack_from(frame, _FRAME.size)
    pool_id, lease_id, token, holder, endpoint, request = _texts(frame, _FRAME.size + _GRANT.size, lengths)
    return pool_id, Lease(lease_id, token, holder, ttl, generation, fence, endpoint, expires, request)


def _texts(frame: bytes, offset: int, lengths: list[int]) -> list[str]:
    texts = []
    for length in lengths:
        texts.append(frame[offset : offset + length].decode())
        offset += length
    return texts

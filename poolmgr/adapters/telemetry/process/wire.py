"""What daemon and telemetry process say to each other: JSON objects of at most 1 MiB over SOCK_SEQPACKET.

A packet holds as much of a message as a socket's buffer surely takes, after one byte that says whether it is the last.
The daemon opens with ``hello``; the process answers in kind or, knowing none of the versions, ends. All times are
seconds on the boot-time clock. A question has an ``id`` and a ``deadline``: one that is reached after it is not asked
of the driver, and answered with ``late``. One that fails has ``error`` (reason, message) in its answer.

=========  =====================================================  ===================================================
op         meaning                                                answer
=========  =====================================================  ===================================================
hello      versions, library, kernel_log (whether to read it)     ``hello``: version, kernel_log (whether it is read)
discover   look at the devices                                    driver_version, cuda_version, devices
processes  who holds memory of each of `devices`                  devices: id -> [{pid, used_bytes, kind}]
memory     bytes free of each of `devices`                        devices: id -> bytes
sample     write the ring `path` from now on, instead of any      nothing
           other: epoch, rate_hz, depth_seconds, max_bytes
=========  =====================================================  ===================================================

Unasked: ``driver`` (kind, at, and what is known of device_id or pci, code, pid, source, text) and ``sampler_ended``
(message).
"""

from __future__ import annotations

import json

TYPE_CHECKING = False  # as in `typing`, whose import would cost the process 0.8 MB
if TYPE_CHECKING:
    import socket
    from typing import Any

    Message = dict[str, Any]

VERSIONS = (1,)  # newest first

MESSAGE_BYTES = 1 << 20
_PACKET_BYTES = 48 * 1024  # the kernel's default buffer is 208 KiB, its own bookkeeping included
_LAST, _MORE = b".", b"+"


def encode(message: Message) -> list[bytes]:
    """The packets of a message. Raises ValueError for one that is too large."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MESSAGE_BYTES:
        raise ValueError(f"a message of {len(data)} bytes")
    starts = range(0, max(1, len(data)), _PACKET_BYTES)
    return [
        (_MORE if start + _PACKET_BYTES < len(data) else _LAST) + data[start : start + _PACKET_BYTES]
        for start in starts
    ]


class Assembly:
    """Puts packets of one connection together."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, packet: bytes) -> Message | None:
        """The message that this packet ends. Raises ValueError for what is no JSON object or grows too large."""
        self._parts.append(packet[1:])
        self._size += len(packet) - 1
        if packet[:1] not in (_LAST, _MORE) or self._size > MESSAGE_BYTES:
            raise ValueError("not a packet of a message")
        if packet[:1] == _MORE:
            return None
        message = json.loads(b"".join(self._parts))
        self._parts, self._size = [], 0
        if not isinstance(message, dict):
            raise ValueError("not a JSON object")
        return message


def receive(connection: socket.socket) -> bytes:
    """The next packet; empty at the end. Raises OSError, BlockingIOError among them."""
    return connection.recv(_PACKET_BYTES + 1)

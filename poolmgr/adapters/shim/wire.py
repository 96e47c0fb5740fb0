"""What daemon and shim say to each other: one JSON object per SOCK_SEQPACKET message, and the names of the files.

The daemon opens with ``{"op": "hello", "versions": [...]}``; the shim answers with its state or, knowing none of the
versions, hangs up.

========  ==========================================  ========================================================
op        meaning                                     answer
========  ==========================================  ========================================================
hello     versions that the daemon speaks             ``hello``: version, ident, exit, empty
reload    read `spec` again                           none
start     run the engine of `spec`                    ``started``: ident, with a pidfd; or ``failed``: errno
kill      SIGKILL whatever descends from the shim     none; ``exit`` and ``empty`` follow
quit      leave, once nothing of the engine is left   end of file
========  ==========================================  ========================================================

Unasked: ``exit`` (exit, empty) once per start, then ``empty`` if that `exit` did not say so already.
"""

from __future__ import annotations

import json
import os
import socket
import struct

TYPE_CHECKING = False  # as in `typing`, whose import would cost every shim 0.8 MB
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]

# Newest first: N, then N - 1 once there is one. A daemon must be able to talk to the shims that the last one left.
VERSIONS = (1,)

MESSAGE_BYTES = 64 * 1024
SPEC, IDENT, EXIT, LOG, OLD_LOG, SOCK, WORK = "spec", "ident", "exit", "log", "log.1", "sock", "work"
ENGINE_ID_VARIABLE = "POOLMGR_ENGINE_ID"
# Where its records are, and what it is for: "pool:generation". For a daemon that finds it without them.
ENGINE_DIRECTORY_VARIABLE = "POOLMGR_ENGINE_DIRECTORY"
POOL_VARIABLE = "POOLMGR_POOL"
MARKS = (ENGINE_ID_VARIABLE, ENGINE_DIRECTORY_VARIABLE, POOL_VARIABLE)

_UCRED = struct.Struct("3i")


def encode(message: Message) -> bytes:
    return json.dumps(message).encode()


def decode(data: bytes) -> Message:
    """Raises ValueError for what is no JSON object."""
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("not a JSON object")
    return message


def peer_is_us(connection: socket.socket) -> bool:
    """Whether the other end runs as our own user."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return bool(_UCRED.unpack(credentials)[1] == os.geteuid())

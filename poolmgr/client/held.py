"""A lease that keeps itself."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from poolmgr.client.errors import CallError
from poolmgr.convert.common import seconds
from poolmgr.v1 import lease_pb2

if TYPE_CHECKING:
    from poolmgr.client.client import Client

_log = logging.getLogger(__name__)


class HeldLease:
    """A lease that is renewed at a third of its TTL until it is closed, or `lost`: then the slot is somebody else's."""

    def __init__(self, client: Client, lease: lease_pb2.Lease) -> None:
        self.lease = lease
        self.endpoint = lease.endpoint
        self.lost_reason = ""
        self._client = client
        self._valid_until = time.monotonic() + seconds(lease.ttl)
        self._closed = threading.Event()
        self._lost = threading.Event()
        self._renewer = threading.Thread(target=self._keep, name=f"lease {lease.lease_id}", daemon=True)
        self._renewer.start()

    @property
    def lost(self) -> bool:
        return self._lost.is_set()

    def wait_lost(self, timeout: float | None = None) -> bool:
        """Blocks until the lease is lost, at most `timeout` seconds; says whether it is."""
        return self._lost.wait(timeout)

    def close(self) -> None:
        """Gives the slot back. A daemon that cannot be reached lets the lease expire, which comes to the same."""
        self._closed.set()
        self._renewer.join()
        if self.lost:
            return
        try:
            self._client.release(self.lease.lease_id, self.lease.token)
        except CallError as error:
            _log.warning("lease %s was not released and will expire: %s", self.lease.lease_id, error)

    def _keep(self) -> None:
        ttl = seconds(self.lease.ttl)
        while not self._closed.wait(ttl / 3):
            asked = time.monotonic()
            try:
                answer = self._client.renew(self.lease.lease_id, self.lease.token, timeout=ttl / 3)
            except CallError as error:
                if time.monotonic() < self._valid_until:
                    _log.warning("lease %s was not renewed, trying again: %s", self.lease.lease_id, error)
                    continue
                return self._lose(error.reason)
            if answer.outcome != lease_pb2.Lease.RENEWED:
                return self._lose(lease_pb2.Lease.Outcome.Name(answer.outcome))
            self._valid_until = asked + ttl
        return None

    def _lose(self, reason: str) -> None:
        self.lost_reason = reason
        self._lost.set()
        _log.error("lease %s of pool %s is lost: %s", self.lease.lease_id, self.lease.pool_id, reason)

"""The daemon's log: JSON lines, or readable ones on a terminal, written by a thread that nobody waits for.

A log that nobody reads (a full pipe, a stopped terminal) must not stop the daemon: lines that find the queue full are
dropped, and their number is told as soon as a line gets through again.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, TextIO

import structlog

from poolmgr.model.device_health import DeviceNote
from poolmgr.runtime.bus import Noted

QUEUE_LINES: Final = 8192
LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# Events that an operator should look at; the rest are informational.
WARNINGS: Final = frozenset(
    {
        "engine_crashed",
        "engine_start_failed",
        "health_check_failed",
        "restart_rate_high",
        "circuit_breaker_opened",
        "leases_revoked",
        "leases_unknown",
        "engine_lost",
        "engine_suspected",
        "engine_hung",
        "restart_flapping",
        "device_missing",
        "device_quarantined",
        "telemetry_stalled",
        "device_memory_not_stored",
    }
)
CRITICAL: Final = frozenset(
    {"restart_storm", "oom_storm", "host_fault", "pool_in_doubt", "disruption_budget", "mask_violation"}
)


class LogWriter:
    """A file-like object for structlog; `close` waits until all that was taken is written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUE_LINES)
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self.dropped += 1
        return len(text)

    def flush(self) -> None:
        """The thread flushes."""

    def _run(self) -> None:
        while (text := self._lines.get()) is not None:
            if self.dropped:
                dropped, self.dropped = self.dropped, 0
                text += f"{dropped} log lines were dropped here\n"
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):
                self.dropped += 1  # the stream is gone; the daemon goes on

    def close(self, timeout: float) -> None:
        """Waits at most `timeout` seconds."""
        try:
            self._lines.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)


def configure(level: str, log_format: str, stream: TextIO = sys.stderr) -> LogWriter:
    """Sets structlog up for the process. `log_format`: json, console, or auto (console on a terminal)."""
    console = log_format == "console" or (log_format == "auto" and stream.isatty())
    renderer: Callable[..., Any] = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    writer = LogWriter(stream)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=writer),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    return writer


def log_events(noted: Noted) -> None:
    """A subscriber of the bus: one line per event, with the pool's own fields."""
    pool, name = noted.pool, noted.note.name.value
    fields = {
        "pool_id": pool.pool_id,
        "engine": str(pool.spec.engine),
        "generation": pool.generation,
        "restart_count": pool.restart_count,
        **noted.note.fields,
    }
    _writer(name)(name, **fields)


def log_device_events(note: DeviceNote) -> None:
    """As `log_events`, for devices."""
    name = note.name.value
    device = {"device_id": note.device_id} if note.device_id else {}
    _writer(name)(name, **device, **note.fields)


def _writer(name: str) -> Callable[..., object]:
    log = structlog.get_logger("poolmgr")
    chosen: Callable[..., object] = log.critical if name in CRITICAL else log.warning if name in WARNINGS else log.info
    return chosen

import threading
import time
from array import array

from poolmgr_ext.ring import Field
from poolmgr_ext.ringwriter import RingWriter

from . import script

FIELDS = (Field("memory_used", "bytes", "gauge", 0.1, 0), Field("temperature_gpu", "celsius", "gauge", 0.2, 0))


class Sampler:
    def __init__(self, library, ring_path, epoch, rate_hz=10.0, depth_seconds=600, max_bytes=128 << 20) -> None:
        self._ids = [device["device_id"] for device in library.discover()["devices"]]
        self._ring = RingWriter(
            ring_path, epoch=epoch, fields=FIELDS, device_ids=self._ids, rate_hz=rate_hz, depth_seconds=depth_seconds,
            max_bytes=max_bytes,
        )  # fmt: skip
        self._stop = threading.Event()

    def stop(self) -> None:
        self._stop.set()

    def rediscovered(self) -> None:
        """Handles are not a thing of this driver."""

    def run(self) -> None:
        while not self._stop.wait(0.02):
            script.died("sampler")
            if "sampler" in script.now().get("ends", ()):
                return
            script.wait_while("sampler")
            at = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            if "sampler" in script.now().get("lies", ()):
                at -= 3_600_000_000_000
            self._ring.beat(at)
            count = len(self._ids)
            cells = array("d", [float(7 + n) for n in range(count) for _ in FIELDS])
            values = memoryview(cells).cast("B").cast("d", [count, len(FIELDS)])
            self._ring.append(0, array("q", [at] * count), array("Q", [3] * count), values)

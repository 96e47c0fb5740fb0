import os
import time

from . import script


class NvmlError(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Library:
    def __init__(self, path: str) -> None:
        if path == "nowhere":
            raise NvmlError("NO_LIBRARY", "cannot open nowhere")
        script.wait_while("init")

    def discover(self) -> dict:
        script.died("discover")
        script.wait_while("discover")
        says = script.now()
        if "absence" in says:
            raise NvmlError(says["absence"], "as the script says")
        return {"driver_version": "1.2", "cuda_version": "12.8", "devices": says["devices"]}

    def processes(self, device_id: str) -> list:
        script.wait_while("processes")
        says = script.now()
        if device_id not in {device["device_id"] for device in says["devices"]} or device_id in says.get("silent", ()):
            raise NvmlError("GPU_LOST", "no such device")
        return says.get("processes", {}).get(device_id, [])

    def memory(self, device_id: str) -> dict:
        script.wait_while("memory")
        held = sum(process["used_bytes"] or 0 for process in self.processes(device_id))
        device = next(d for d in script.now()["devices"] if d["device_id"] == device_id)
        return {"total": device["vram_total_bytes"], "free": device["vram_total_bytes"] - held, "used": held}

    def listen(self) -> list:
        return []

    def wait_event(self, timeout_ms: int) -> dict | None:
        deadline = time.monotonic() + timeout_ms / 1000
        while time.monotonic() < deadline:
            for name in sorted(os.listdir(os.environ["EVENTS"])):
                path = os.path.join(os.environ["EVENTS"], name)
                with open(path) as file:
                    event = file.read()
                os.unlink(path)
                return {"at_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME), **script.json.loads(event)}
            time.sleep(0.005)
        return None

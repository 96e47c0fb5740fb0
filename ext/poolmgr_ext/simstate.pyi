import os
from collections.abc import Iterable, Sequence

FAULTS: dict[str, int]
WAVES: dict[str, int]
FUNCTIONS: tuple[str, ...]
SERIES: tuple[str, ...]
DEVICE_NUMBERS: tuple[str, ...]
DEVICE_TEXTS: tuple[str, ...]
SYSTEM_NUMBERS: tuple[str, ...]
SYSTEM_TEXTS: tuple[str, ...]
EVERY_DEVICE: int
MAX_DEVICES: int
MAX_FIELD_IDS: int
PEER_SWITCH: int

def now() -> int: ...
def start_ticks(pid: int) -> int: ...

class State:
    path: str
    def __init__(self, path: str | os.PathLike[str], devices: int | None = None) -> None: ...
    @property
    def device_count(self) -> int: ...
    def system(self, name: str) -> str | int | None: ...
    def set_system(self, name: str, value: str | int | None) -> None: ...
    def get(self, device: int, name: str) -> int | None: ...  # texts too: str
    def set(self, device: int, name: str, value: str | int | None) -> None: ...
    def series(self, device: int, name: str, at_ns: int | None = None) -> float | None: ...
    def total(self, device: int, name: str, at_ns: int | None = None) -> float: ...
    def set_wave(
        self,
        device: int,
        name: str,
        kind: str,
        *,
        a: float = 0.0,
        b: float = 0.0,
        period: float = 0.0,
        noise: float = 0.0,
        low: float = -1e18,
        high: float = 1e18,
        repeat: bool = False,
        from_ns: int | None = None,
        update_ns: int = 0,
        points: Sequence[tuple[float, float]] = (),
    ) -> None: ...
    def fault(
        self,
        kind: str,
        device: int = ...,
        a: int | None = None,
        b: int | None = None,
        c: int | None = None,
        at_ns: int | None = None,
    ) -> None: ...
    def apply_due(self) -> None: ...
    def function(self, name: str) -> int: ...
    def device_number(self, name: str) -> int: ...
    def calls(self) -> dict[str, int]: ...
    def reset_calls(self) -> None: ...
    def take(
        self,
        device: int,
        pid: int,
        held: int,
        *,
        instance: int | None = None,
        kind: int = 0,
        ticks: int = 0,
        from_ns: int | None = None,
        until_ns: int | None = None,
        growth: float = 0.0,
        maximum: int = 0,
        sm: int = 0,
        memory: int = 0,
        encoder: int = 0,
        decoder: int = 0,
        hidden: bool = False,
    ) -> None: ...
    def release(self, device: int, pid: int) -> None: ...
    def processes(self, device: int) -> list[dict[str, int | bool | None]]: ...
    def set_profile(self, device: int, index: int, name: str, starts: Sequence[int], **numbers: int) -> None: ...
    def profiles(self, device: int) -> list[str]: ...
    def mig_create(self, device: int, profile: int) -> int: ...
    def mig_destroy(self, device: int, slot: int) -> None: ...
    def instances(self, device: int) -> list[dict[str, int | str]]: ...
    def set_link(self, device: int, link: int, peer: int, active: bool = True) -> None: ...
    def set_ancestor(self, device: int, other: int, level: int) -> None: ...
    def set_cpus(self, device: int, cpus: Iterable[int]) -> None: ...

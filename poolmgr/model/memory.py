"""What a model needs (MEM-1) and what devices have (MEM-2). Bytes; None is unknown, never zero."""

from __future__ import annotations

from dataclasses import dataclass

from poolmgr.model.names import EngineName
from poolmgr.model.plan import ModelProfile


@dataclass(frozen=True, slots=True)
class MemoryQuestion:
    """`context_length`: tokens per slot, 0 = the model's own. `cache_type` empty: the engine's default (f16)."""

    model_path: str
    context_length: int = 0
    slots: int = 1
    cache_type: str = ""
    engine: EngineName = EngineName.LLAMACPP


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Per device and per layer. `overhead_bytes`: on each device that is used, beside its layers (context, graphs,
    activations). `host_bytes`: of the model, what the engine keeps in host memory. `factor`: by which what was measured
    of earlier runs has corrected it, 1.0 where nothing was (MEM-3). `activation_bytes`: between two stages, per token.
    """

    model: ModelProfile
    overhead_bytes: int
    host_bytes: int = 0
    activation_bytes: int = 0
    factor: float = 1.0
    explanation: tuple[str, ...] = ()

    @property
    def weight_bytes(self) -> int:
        return sum(layer.resident_bytes for layer in self.model.layers)

    @property
    def kv_bytes(self) -> int:
        return sum(layer.kv_bytes for layer in self.model.layers)

    @property
    def one_device_bytes(self) -> int:
        """All of it on one device."""
        return self.weight_bytes + self.kv_bytes + self.overhead_bytes


@dataclass(frozen=True, slots=True)
class Reserved:
    """Set aside on one device. `measured_bytes`: what of it the driver already shows as in use."""

    holder: str
    reserved_bytes: int
    measured_bytes: int = 0


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One device's memory, every number of it (MEM-2). `free_bytes`: for admission; None where the driver does not
    tell what is in use. `unmanaged_bytes`: in use by nobody whom we know to hold it. `pending_bytes`: reserved and not
    yet in use.
    """

    device_id: str
    total_bytes: int | None
    used_bytes: int | None
    reserved_bytes: int
    measured_bytes: int
    unmanaged_bytes: int | None
    free_bytes: int | None
    pending_bytes: int = 0

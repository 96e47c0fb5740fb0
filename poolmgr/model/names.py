"""Names that several modules of values share, so that none of these has to know another."""

from __future__ import annotations

from enum import StrEnum


class EngineName(StrEnum):
    LLAMACPP = "LLAMACPP"
    COMMAND = "COMMAND"
    VLLM = "VLLM"
    TGI = "TGI"
    TRITON = "TRITON"

"""Splits of models over devices, searched natively (SPLIT-4)."""

from poolmgr.adapters.planning.native import NativePlanner

__all__ = ["NativePlanner"]

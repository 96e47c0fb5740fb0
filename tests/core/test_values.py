"""What core hands on nobody changes under those who have it."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import is_dataclass

import poolmgr.core

# What a search or an allocator works on, and hands to nobody.
WORKING = {"ggml_allocator.Node", "split_changes.Budget", "split_latency.Run"}


def test_all_values_are_frozen_but_what_a_search_works_on():
    modules = [
        importlib.import_module(f"poolmgr.core.{one.name}") for one in pkgutil.iter_modules(poolmgr.core.__path__)
    ]
    kinds = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    values = {kind for kind in kinds if is_dataclass(kind) and kind.__module__.startswith("poolmgr.core.")}
    assert len(values) > 50
    changeable = {kind for kind in values if not kind.__dataclass_params__.frozen}
    assert {f"{kind.__module__.removeprefix('poolmgr.core.')}.{kind.__name__}" for kind in changeable} == WORKING

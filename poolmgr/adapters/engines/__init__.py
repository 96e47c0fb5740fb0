"""Kinds of engines: how each is checked, launched, asked and understood."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from poolmgr.adapters.engines.command import CommandEngine
from poolmgr.adapters.engines.llamacpp import GetJson, GetText, LlamaCppEngine
from poolmgr.adapters.engines.vllm import VllmEngine
from poolmgr.model.pool import EngineName
from poolmgr.ports import EngineKind


def default_kinds(
    get_json: GetJson, stopped: Callable[[], bool] = lambda: False, get_text: GetText | None = None
) -> Mapping[EngineName, EngineKind]:
    """Every kind there is, by name. `get_json(host, port, path, timeout)` reads a document of a ready engine.

    `get_text` reads it as it stands. `stopped`: whether a check that takes long is to be given up.
    """
    kinds: tuple[EngineKind, ...] = (
        CommandEngine(),
        LlamaCppEngine(get_json, stopped, get_text),
        VllmEngine(get_json, stopped, get_text),
    )
    return {kind.name: kind for kind in kinds}

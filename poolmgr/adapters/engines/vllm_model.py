"""Is it a model that vLLM could load? The gates on a model's folder, or on one GGUF file (PRE-1)."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping

from poolmgr.adapters.engines.common import refuse
from poolmgr.adapters.engines.modelfile import ModelFiles, validate_reference
from poolmgr.errors import Reason
from poolmgr.model.pool import ModelSpec

# Of Hugging Face, and of Mistral's own format.
CONFIGURATIONS = ("config.json", "params.json")
HEADS = ("num_attention_heads", "n_heads")
MAX_CONFIGURATION_BYTES = 16 * 1024 * 1024  # the largest known have some 100 KiB, most of it names of labels


class ModelFolders:
    """Blocking, as `ModelFiles`. May be called from several threads."""

    def __init__(self, stopped: Callable[[], bool] = lambda: False) -> None:
        self._files = ModelFiles(stopped)

    def validate(self, model: ModelSpec) -> None:
        """Raises ClientError(INVALID_ARGUMENT), without looking at the host."""
        validate_reference(model)

    def check(self, model: ModelSpec, shards: int) -> None:
        """ClientError MODEL_NOT_FOUND, MODEL_INVALID or MODEL_DIGEST_MISMATCH; BAD_ARGUMENTS for heads that cannot be
        shared by so many devices, INVALID_ARGUMENT for the digest of a folder.
        """
        try:
            folder = stat.S_ISDIR(os.stat(model.path).st_mode)
        except OSError as error:
            message = f"{model.path}: {error.strerror or error}"
            raise refuse(Reason.MODEL_NOT_FOUND, message, path=model.path, errno=error.errno or 0) from error
        if not folder:
            self._files.check(model.path, model.digest)
            return
        if model.digest:
            message = f"model.digest is of one file and {model.path} is a folder: leave it out"
            raise refuse(Reason.INVALID_ARGUMENT, message, path=model.path)
        _check_heads(model.path, _configuration(model.path), shards)


def _configuration(folder: str) -> Mapping[str, object]:
    for name in CONFIGURATIONS:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return _read(path)
    message = f"{folder} has neither {' nor '.join(CONFIGURATIONS)}: it is no model's folder"
    raise refuse(Reason.MODEL_INVALID, message, path=folder)


def _read(path: str) -> Mapping[str, object]:
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_CONFIGURATION_BYTES + 1)
    except OSError as error:
        message = f"{path}: {error.strerror or error}"
        raise refuse(Reason.MODEL_NOT_FOUND, message, path=path, errno=error.errno or 0) from error
    if len(text) > MAX_CONFIGURATION_BYTES:
        message = f"{path} has more than {MAX_CONFIGURATION_BYTES} bytes"
        raise refuse(Reason.MODEL_INVALID, message, path=path, limit=MAX_CONFIGURATION_BYTES)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refuse(Reason.MODEL_INVALID, f"{path} is no JSON: {error}"[:300], path=path) from error
    if not isinstance(found, dict):
        raise refuse(Reason.MODEL_INVALID, f"{path} holds no JSON object", path=path)
    return found


def _check_heads(folder: str, configuration: Mapping[str, object], shards: int) -> None:
    """What vLLM itself would find out seconds later: each device gets whole attention heads."""
    text = configuration.get("text_config")  # of a model that sees or hears
    places = (configuration, text if isinstance(text, dict) else {})
    heads = next((place[name] for place in places for name in HEADS if isinstance(place.get(name), int)), 0)
    if isinstance(heads, int) and heads % shards:
        message = f"{folder} has {heads} attention heads, which {shards} devices cannot share equally"
        raise refuse(Reason.BAD_ARGUMENTS, message, heads=heads, devices=shards)

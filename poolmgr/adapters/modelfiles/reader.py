"""What `ports.ModelReader` asks for: one path in, the shape of a model out."""

from __future__ import annotations

import os

from poolmgr.adapters.modelfiles.gguf import read_gguf
from poolmgr.adapters.modelfiles.huggingface import read_directory
from poolmgr.model.shape import ModelShape


class ModelFileReader:
    """A GGUF file or the first of its series; a directory with config.json and safetensors, or one file in it."""

    def read(self, path: str) -> ModelShape:
        """Blocking: some milliseconds, up to a second for a large vocabulary. Memory stays below
        16 MiB whatever the files say.

        Raises ClientError MODEL_NOT_FOUND, MODEL_INVALID, with the path and the numbers that led to it.
        """
        if "\0" not in path and os.path.isdir(path):
            return read_directory(path)
        if path.endswith(".safetensors"):
            return read_directory(os.path.dirname(path), path)
        return read_gguf(path)

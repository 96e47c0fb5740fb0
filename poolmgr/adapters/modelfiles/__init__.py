"""Model files' own headers: GGUF and safetensors, read without their weights (MEM-1).

The walks are our own rather than the `gguf` and `safetensors` packages': gguf's reader maps the file and materialises
every array of the metadata, without a bound and with numpy in the daemon, and neither bounds what a hostile file may
ask for. Tests hold the GGUF walk and its table of types against the `gguf` package.
"""

from __future__ import annotations

from poolmgr.adapters.modelfiles.reader import ModelFileReader as ModelFileReader

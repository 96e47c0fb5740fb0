"""What a model file's headers say of the model: sizes and lengths, no weights (MEM-1).

Bytes are as stored, lengths are counts of elements, windows and contexts are tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ModelFormat(StrEnum):
    GGUF = "GGUF"
    SAFETENSORS = "SAFETENSORS"


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One block. `attention_bytes`: with its norms; `shared_bytes`: router and experts that every token passes.

    `query_width`: elements of a token's query over all heads. `key_width`, `value_width`: elements that are cached per
    token; with latent attention the one compressed vector counts as the key. `window`: tokens that it attends to, 0 all
    of them. The feed-forward lengths are those of the dense part, of one expert, and of the shared experts.
    """

    attention_bytes: int = 0
    dense_bytes: int = 0
    expert_bytes: int = 0
    shared_bytes: int = 0
    query_width: int = 0
    key_width: int = 0
    value_width: int = 0
    window: int = 0
    feed_forward: int = 0
    expert_feed_forward: int = 0
    shared_feed_forward: int = 0

    @property
    def resident_bytes(self) -> int:
        return self.attention_bytes + self.dense_bytes + self.expert_bytes + self.shared_bytes


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): what is cached is `rank` + `rope_length` a token.

    `query_rank` 0: queries are not compressed. `head_length`: of a key without its rope part. `value_length`: of one
    head.
    """

    rank: int
    rope_length: int
    query_rank: int = 0
    head_length: int = 0
    value_length: int = 0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model as its files describe it. 0 and empty are unknown.

    `embedding_bytes`: of the table of tokens, `output_bytes`: of the head, its norm and what belongs to no layer;
    `tied`: the head is the embedding once more, and `output_bytes` is without it. `heads`, `kv_heads`: the largest of
    any layer. `experts_used`: of `experts`, per token. `query_key_norm`: queries and keys have norms of their own.
    """

    format: ModelFormat
    architecture: str
    layers: tuple[LayerShape, ...]
    name: str = ""
    embedding_bytes: int = 0
    output_bytes: int = 0
    tied: bool = False
    embedding_length: int = 0
    vocabulary: int = 0
    heads: int = 0
    kv_heads: int = 0
    context_limit: int = 0
    experts: int = 0
    experts_used: int = 0
    latent: LatentAttention | None = None
    query_key_norm: bool = False
    files: int = 1
    file_bytes: int = 0

    @property
    def weight_bytes(self) -> int:
        """Of all tensors, each once."""
        return sum(layer.resident_bytes for layer in self.layers) + self.embedding_bytes + self.output_bytes

"""What the real llama.cpp reserved for models of many shapes, and those shapes as a reader of files tells them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from poolmgr.model.shape import LatentAttention, LayerShape, ModelFormat, ModelShape

MIB = 1 << 20
TABLE = Path(__file__).parent.parent / "data" / "llamacpp_buffers.tsv"
ROPE = 64  # of deepseek2's keys
ALTERNATE = ("gemma2", "gpt-oss")  # a window in each other layer


@dataclass(frozen=True, slots=True)
class Measured:
    """As `poolmgr.testing.shapes.Shape`, then as it was asked for, then what was printed in MiB.

    `estimated`: bytes of the compute buffer as the estimate has them.
    """

    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    ffn: int
    vocab: int
    tied: int
    experts: int
    experts_used: int
    window: int
    kv_rank: int
    q_rank: int
    dense: int
    context: int
    slots: int
    cache: str
    kv: float
    compute: float
    estimated: int


def rows() -> list[Measured]:
    lines = [line.split("\t") for line in TABLE.read_text().splitlines() if not line.startswith("#")]
    kinds = {"str": str, "int": int, "float": float}
    read = [kinds[kind] for kind in Measured.__annotations__.values()]
    return [Measured(*(kind(text) for kind, text in zip(read, line, strict=True))) for line in lines]


def shape_of(row: Measured) -> ModelShape:
    """No weights: neither the caches nor the compute buffer depend on them."""
    latent = LatentAttention(row.kv_rank, ROPE, row.q_rank, row.head, row.head) if row.kv_rank else None
    return ModelShape(
        ModelFormat.GGUF, row.family, tuple(_layer(row, place) for place in range(row.layers)), tied=bool(row.tied),
        embedding_length=row.width, vocabulary=row.vocab, heads=row.heads, kv_heads=1 if latent else row.kv_heads,
        context_limit=8192, experts=row.experts, experts_used=row.experts_used, latent=latent,
        query_key_norm=row.family in ("qwen3", "qwen3moe", "gemma3"),
    )  # fmt: skip


def _layer(row: Measured, place: int) -> LayerShape:
    slides = place % 2 == 0 if row.family in ALTERNATE else place % 6 != 5
    experts = row.experts > 0 and place >= row.dense
    kv = row.kv_heads * row.head
    return LayerShape(
        query_width=row.heads * (row.kv_rank + ROPE if row.kv_rank else row.head),
        key_width=row.kv_rank + ROPE if row.kv_rank else kv,
        value_width=0 if row.kv_rank else kv,
        window=row.window if slides else 0,
        feed_forward=0 if experts else row.ffn,
        expert_feed_forward=row.ffn if experts else 0,
        shared_feed_forward=row.ffn if experts and row.kv_rank else 0,
    )


ROWS = rows()

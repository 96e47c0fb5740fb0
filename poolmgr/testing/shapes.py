"""GGUF files of any shape and no weights: what an engine reserves for a model, without the model.

The header is whole and true; the tensors are a hole in the file, so they read as zeros and take neither disk nor time.
A real engine loads such a file and reserves what it would for real weights. Architectures as llama.cpp names them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, ExpertGatingFuncType, GGMLQuantizationType, GGUFWriter

from poolmgr.testing.gguf import add_tokens

ALIGNMENT = 32
FAMILIES = ("llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "gpt-oss", "deepseek2")
TENSOR_TYPES = ("F16", "Q8_0", "Q4_0")

Tensor = tuple[str, tuple[int, ...], str]  # name, dimensions with the row's length last, type


@dataclass(frozen=True, slots=True)
class Shape:
    """`width`: embedding length. `head`: length of one head, also where heads * head is not the width. `tied`: no
    output tensor of its own. `window`: of layers that slide, in tokens. `kv_rank`, `q_rank`, `rope`: of deepseek2,
    whose `head` is without the rope, whose first `dense` layers have no experts and the others one of `ffn` for all.
    `experts` 0: dense. Rows of quantised tensors must be multiples of 32.
    """

    family: str = "llama"
    layers: int = 2
    width: int = 256
    heads: int = 4
    kv_heads: int = 4
    head: int = 64
    ffn: int = 512
    vocab: int = 512
    type: str = "F16"
    tied: bool = False
    experts: int = 0
    experts_used: int = 0
    context: int = 8192
    window: int = 0
    kv_rank: int = 0
    q_rank: int = 0
    rope: int = 64
    dense: int = 0


def write_shape(path: str | Path, shape: Shape, tensors_per_file: int = 0) -> Sequence[Path]:
    """Writes it as one file, or as a series of `tensors_per_file` tensors each that llama.cpp would read as one.

    Returns the files. The first of a series is `<stem>-00001-of-0000N.gguf` beside `path`.
    """
    path, listed = Path(path), list(tensors(shape))
    if not tensors_per_file:
        _write(path, shape, listed, None)
        return (path,)
    parts = [listed[at : at + tensors_per_file] for at in range(0, len(listed), tensors_per_file)]
    written = []
    for number, part in enumerate(parts):
        written.append(path.with_name(f"{path.stem}-{number + 1:05d}-of-{len(parts):05d}.gguf"))
        _write(written[-1], shape, part, (number, len(parts), len(listed)))
    return tuple(written)


def tensors(shape: Shape) -> Iterator[Tensor]:
    """All tensors of the model, in the order of the file."""
    yield "token_embd.weight", (shape.vocab, shape.width), shape.type
    for layer in range(shape.layers):
        attention = _mla(shape) if shape.family == "deepseek2" else _attention(shape)
        for name, dimensions, kind in (*attention, *_norms(shape), *_feed_forward(shape, layer)):
            yield f"blk.{layer}.{name}", dimensions, kind
    yield "output_norm.weight", (shape.width,), "F32"
    if not shape.tied:
        yield "output.weight", (shape.vocab, shape.width), shape.type


def tensor_bytes(dimensions: tuple[int, ...], kind: str) -> int:
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return int(np.prod(dimensions)) // block * size


def random_shape(rng: random.Random) -> Shape:
    """A shape of a few MB to some 300 MB of the kinds that `tensors` knows, within what those architectures allow."""
    family = rng.choice(FAMILIES)
    windowed, latent = family in ("gemma2", "gemma3", "gpt-oss"), family == "deepseek2"
    experts = rng.choice((4, 8, 16)) if family in ("qwen3moe", "gpt-oss") else rng.choice((0, 8))
    experts = experts if family in ("llama", "qwen3moe", "gpt-oss", "deepseek2") else 0
    kv_heads, group, head = rng.choice((1, 2, 4, 8)), rng.choice((1, 2, 3, 4)), rng.choice((64, 96, 128))
    return Shape(
        family=family,
        layers=rng.randint(2, 10),
        # qwen2 has no head length of its own.
        width=kv_heads * group * head if family == "qwen2" else 64 * rng.randint(4, 24),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head=head,
        ffn=64 * rng.randint(2, 12) if experts else 64 * rng.randint(6, 48),
        vocab=rng.choice((2_000, 8_000, 32_000, 50_000)),
        type=rng.choice(TENSOR_TYPES),
        tied=family in ("gemma2", "gemma3") or (family != "gpt-oss" and rng.random() < 0.3),
        experts=experts,
        experts_used=min(experts, rng.choice((1, 2, 4))),
        context=32768,
        window=rng.choice((128, 512, 1024)) if windowed else 0,
        kv_rank=rng.choice((128, 256, 512)) if latent else 0,
        q_rank=rng.choice((128, 256)) if latent else 0,
        dense=1 if latent else 0,
    )


def _attention(shape: Shape) -> Iterator[Tensor]:
    query, kv = shape.heads * shape.head, shape.kv_heads * shape.head
    yield "attn_q.weight", (query, shape.width), shape.type
    yield "attn_k.weight", (kv, shape.width), shape.type
    yield "attn_v.weight", (kv, shape.width), shape.type
    yield "attn_output.weight", (shape.width, query), shape.type
    if shape.family in ("qwen2", "gpt-oss"):
        for name, length in (("attn_q", query), ("attn_k", kv), ("attn_v", kv)):
            yield f"{name}.bias", (length,), "F32"
    if shape.family in ("qwen3", "qwen3moe", "gemma3"):
        yield "attn_q_norm.weight", (shape.head,), "F32"
        yield "attn_k_norm.weight", (shape.head,), "F32"
    if shape.family == "gpt-oss":
        yield "attn_output.bias", (shape.width,), "F32"
        yield "attn_sinks.weight", (shape.heads,), "F32"


def _mla(shape: Shape) -> Iterator[Tensor]:
    """As the DeepSeek-V2 paper (arXiv 2405.04434) compresses keys and values, laid out as llama.cpp converts them."""
    query = shape.heads * (shape.head + shape.rope)
    if shape.q_rank:
        yield "attn_q_a.weight", (shape.q_rank, shape.width), shape.type
        yield "attn_q_a_norm.weight", (shape.q_rank,), "F32"
        yield "attn_q_b.weight", (query, shape.q_rank), shape.type
    else:
        yield "attn_q.weight", (query, shape.width), shape.type
    yield "attn_kv_a_mqa.weight", (shape.kv_rank + shape.rope, shape.width), shape.type
    yield "attn_kv_a_norm.weight", (shape.kv_rank,), "F32"
    yield "attn_k_b.weight", (shape.heads, shape.kv_rank, shape.head), shape.type
    yield "attn_v_b.weight", (shape.heads, shape.head, shape.kv_rank), shape.type
    yield "attn_output.weight", (shape.width, shape.heads * shape.head), shape.type


def _norms(shape: Shape) -> Iterator[Tensor]:
    names = ["attn_norm", "post_attention_norm" if shape.family == "gpt-oss" else "ffn_norm"]
    if shape.family in ("gemma2", "gemma3"):
        names += ["post_attention_norm", "post_ffw_norm"]
    for name in names:
        yield f"{name}.weight", (shape.width,), "F32"


def _feed_forward(shape: Shape, layer: int) -> Iterator[Tensor]:
    experts = shape.experts if layer >= shape.dense else 0
    suffix, lead = ("_exps", (experts,)) if experts else ("", ())
    if experts:
        yield "ffn_gate_inp.weight", (experts, shape.width), "F32"
    if experts and shape.family == "deepseek2":
        yield "exp_probs_b.bias", (experts,), "F32"
        yield "ffn_gate_shexp.weight", (shape.ffn, shape.width), shape.type
        yield "ffn_up_shexp.weight", (shape.ffn, shape.width), shape.type
        yield "ffn_down_shexp.weight", (shape.width, shape.ffn), shape.type
    yield f"ffn_gate{suffix}.weight", (*lead, shape.ffn, shape.width), shape.type
    yield f"ffn_up{suffix}.weight", (*lead, shape.ffn, shape.width), shape.type
    yield f"ffn_down{suffix}.weight", (*lead, shape.width, shape.ffn), shape.type
    if shape.family == "gpt-oss":
        yield "ffn_gate_inp.bias", (shape.experts,), "F32"
        yield "ffn_gate_exps.bias", (shape.experts, shape.ffn), "F32"
        yield "ffn_up_exps.bias", (shape.experts, shape.ffn), "F32"
        yield "ffn_down_exps.bias", (shape.experts, shape.width), "F32"


def _write(path: Path, shape: Shape, listed: Sequence[Tensor], part: tuple[int, int, int] | None) -> None:
    writer = GGUFWriter(str(path), shape.family)
    if part is None or part[0] == 0:
        _describe(writer, shape)
        add_tokens(writer, shape.vocab)
    if part is not None:
        writer.add_uint16("split.no", part[0])
        writer.add_uint16("split.count", part[1])
        writer.add_int32("split.tensors.count", part[2])
    size = 0
    for name, dimensions, kind in listed:
        length = tensor_bytes(dimensions, kind)
        writer.add_tensor_info(name, dimensions, np.dtype(np.float32), length, GGMLQuantizationType[kind])
        size += GGUFWriter.ggml_pad(length, ALIGNMENT)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header = GGUFWriter.ggml_pad(path.stat().st_size, ALIGNMENT)
    with path.open("r+b") as file:
        file.truncate(header + size)


def _describe(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_name(f"shape-{shape.family}")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
        writer.add_expert_feed_forward_length(shape.ffn)
    if shape.window:
        writer.add_sliding_window(shape.window)
    if shape.family == "deepseek2":
        _describe_mla(writer, shape)
        return
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_rope_dimension_count(shape.head)


def _describe_mla(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_head_count_kv(1)
    writer.add_key_length(shape.kv_rank + shape.rope)
    writer.add_value_length(shape.kv_rank)
    writer.add_key_length_mla(shape.head + shape.rope)
    writer.add_value_length_mla(shape.head)
    writer.add_kv_lora_rank(shape.kv_rank)
    if shape.q_rank:
        writer.add_q_lora_rank(shape.q_rank)
    writer.add_rope_dimension_count(shape.rope)
    writer.add_leading_dense_block_count(shape.dense if shape.experts else shape.layers)
    writer.add_expert_shared_count(1 if shape.experts else 0)
    writer.add_expert_weights_scale(2.5)
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    if not shape.experts:
        writer.add_expert_count(0)
        writer.add_expert_feed_forward_length(shape.ffn)

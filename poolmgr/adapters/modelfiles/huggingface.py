"""A directory as the Hugging Face hub has them: config.json beside safetensors, as the shape of a model.

Keys as in transformers' configuration classes of Llama, Mistral, Mixtral, Qwen2 and 3 (and their mixtures of experts),
DeepSeek-V2 and V3, Gemma 2 and 3, gpt-oss. What a configuration leaves out because it is the class's default is taken
from the tensors' own shapes where they show it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from poolmgr.adapters.modelfiles.bounds import MAX_LAYERS, MAX_LENGTH, invalid, limited
from poolmgr.adapters.modelfiles.safetensors import StoredTensor, config, shards, tensors
from poolmgr.adapters.modelfiles.windows import windows
from poolmgr.model.shape import LatentAttention, LayerShape, ModelFormat, ModelShape

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})\.(.+)\Z", re.DOTALL)
NOT_OF_THE_TEXT = re.compile(r"(?:^|\.)(?:vision|visual|audio|multi_modal|mm_)")
EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings)\.")
HEAD = re.compile(r"(?:^|\.)(?:lm_head|output)\.")
# transformers' defaults of a head's length, where it is not the hidden size divided by the heads.
HEAD_LENGTHS = {"gemma": 256, "gemma2": 256, "gemma3": 256, "gemma3_text": 256, "gpt_oss": 64}
WINDOW_DEFAULTS = {"gemma2": 4096, "gemma3": 4096, "gemma3_text": 4096, "gpt_oss": 128}


class Config:
    """config.json, or what it says of the text model of several. Numbers are held against limits."""

    def __init__(self, path: str, document: Mapping[str, object]) -> None:
        self.path = path
        nested = document.get("text_config")
        self._outer = document
        self._values = {**document, **nested} if isinstance(nested, dict) else dict(document)
        self.kind = str(self._values.get("model_type") or "")[:80]
        if not self.kind:
            invalid(path, "does not say its model_type")

    def number(self, *keys: str, default: int = 0) -> int:
        """The first of the keys that has a number."""
        for key in keys:
            value = self._values.get(key)
            if value is None:
                continue
            if type(value) is not int:
                invalid(self.path, f"{key} is {str(value)[:40]!r}, not a whole number")
            return limited(self.path, key, value, MAX_LENGTH)
        return default

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key, self._outer.get(key, default))
        return value if isinstance(value, bool) else default

    def listed(self, key: str) -> Sequence[object]:
        value = self._values.get(key)
        return value if isinstance(value, list) else ()

    @property
    def layers(self) -> int:
        count = self.number("num_hidden_layers", "n_layer")
        if not 1 <= count <= MAX_LAYERS:
            invalid(self.path, f"has {count} layers, 1 to {MAX_LAYERS} are known", layers=count)
        return count


@dataclass(slots=True)
class Sums:
    """What the tensors of all files add up to. `rows`: of the projections of one token, where they are not packed."""

    layers: list[LayerShape]
    embedding: int = 0
    output: int = 0
    headed: bool = False
    normed: bool = False
    vocabulary: int = 0
    files: int = 0
    bytes: int = 0


def read_directory(directory: str, single: str = "") -> ModelShape:
    """`single`: the one file to read of it. Raises ClientError MODEL_NOT_FOUND, MODEL_INVALID."""
    path = os.path.join(directory, "config.json")
    asked = Config(path, config(directory))
    sums = Sums([LayerShape() for _ in range(asked.layers)])
    for shard in (single,) if single else shards(directory):
        for tensor in tensors(shard):
            _add(sums, tensor)
        sums.files += 1
        sums.bytes += os.path.getsize(shard)
    return _shape(asked, sums, os.path.basename(os.path.abspath(directory)))


def _add(sums: Sums, tensor: StoredTensor) -> None:
    named = LAYER.search(tensor.name)
    if NOT_OF_THE_TEXT.search(tensor.name):
        sums.output += tensor.size
    elif named is not None and int(named[1]) < len(sums.layers):
        index = int(named[1])
        sums.layers[index] = _with(sums.layers[index], named[2], tensor)
        sums.normed |= "q_norm" in named[2]
    elif EMBEDDING.search(tensor.name):
        sums.embedding += tensor.size
        sums.vocabulary = tensor.shape[0] if tensor.shape else 0
    else:  # the head, the last norm, and layers that only predict further tokens
        sums.output += tensor.size
        sums.headed |= HEAD.search(tensor.name) is not None


def _with(layer: LayerShape, name: str, tensor: StoredTensor) -> LayerShape:
    """The layer with one more tensor. Widths are the projections' rows, where those are not packed in integers."""
    rows = tensor.shape[0] if tensor.shape and name.endswith(".weight") and tensor.type[0] in "FB" else 0
    if "shared_expert" in name or re.search(r"(?:mlp|block_sparse_moe)\.(?:gate|router)\.", name):
        length = rows if name.endswith("up_proj.weight") else layer.shared_feed_forward
        return replace(layer, shared_bytes=layer.shared_bytes + tensor.size, shared_feed_forward=length)
    if ".experts." in name:
        return replace(layer, expert_bytes=layer.expert_bytes + tensor.size)
    if name.startswith(("mlp.", "feed_forward.", "block_sparse_moe.")):
        length = rows if name.endswith(("up_proj.weight", "fc1.weight")) else layer.feed_forward
        return replace(layer, dense_bytes=layer.dense_bytes + tensor.size, feed_forward=length)
    widths = {"q_proj.weight": "query_width", "k_proj.weight": "key_width", "v_proj.weight": "value_width"}
    seen = next((field for end, field in widths.items() if name.endswith(end)), "")
    if seen and rows:
        layer = replace(layer, **{seen: rows})
    return replace(layer, attention_bytes=layer.attention_bytes + tensor.size)


def _shape(asked: Config, sums: Sums, name: str) -> ModelShape:
    layers = _attending(asked, sums)
    length = _head_length(asked)
    heads = asked.number("num_attention_heads", "n_head") or max(one.query_width for one in layers) // max(1, length)
    cached = max(one.key_width for one in layers) // max(1, length)
    return ModelShape(
        ModelFormat.SAFETENSORS,
        asked.kind,
        layers,
        name=name,
        embedding_bytes=sums.embedding,
        output_bytes=sums.output,
        tied=not sums.headed,
        embedding_length=asked.number("hidden_size", "n_embd"),
        vocabulary=sums.vocabulary or asked.number("vocab_size"),
        heads=heads,
        kv_heads=asked.number("num_key_value_heads", default=cached or heads),
        context_limit=asked.number("max_position_embeddings", "n_positions"),
        experts=_experts(asked),
        experts_used=asked.number("num_experts_per_tok", "experts_per_token"),
        latent=_latent(asked),
        query_key_norm=sums.normed,
        files=sums.files,
        file_bytes=sums.bytes,
    )


def _experts(asked: Config) -> int:
    return asked.number("num_experts", "num_local_experts", "n_routed_experts")


def _head_length(asked: Config) -> int:
    heads = asked.number("num_attention_heads", "n_head")
    share = asked.number("hidden_size", "n_embd") // heads if heads else 0
    return asked.number("head_dim") or HEAD_LENGTHS.get(asked.kind, 0) or share


def _attending(asked: Config, sums: Sums) -> tuple[LayerShape, ...]:
    """The layers with what they cache: by the configuration, else by the rows of their projections."""
    latent, length = _latent(asked), _head_length(asked)
    heads = asked.number("num_attention_heads", "n_head")
    cached = asked.number("num_key_value_heads", default=heads) * length
    expert = asked.number("moe_intermediate_size", "intermediate_size") if _experts(asked) else 0
    return tuple(
        replace(
            layer,
            query_width=layer.query_width or heads * length,
            key_width=latent.rank + latent.rope_length if latent else layer.key_width or cached,
            value_width=0 if latent else layer.value_width or cached,
            window=window,
            expert_feed_forward=expert if layer.expert_bytes else 0,
        )
        for layer, window in zip(sums.layers, _windows(asked), strict=True)
    )


def _windows(asked: Config) -> tuple[int, ...]:
    """By `layer_types` where it is said, else by the architecture; Mistral's window is of all its layers."""
    window = asked.number("sliding_window", default=WINDOW_DEFAULTS.get(asked.kind, 0))
    kinds = asked.listed("layer_types")
    if kinds:
        return windows(asked.kind, asked.layers, window, [kind == "sliding_attention" for kind in kinds])
    if asked.kind in ("mistral", "mixtral"):
        return (window,) * asked.layers
    if asked.kind.startswith("qwen"):
        if not asked.flag("use_sliding_window", False):
            return (0,) * asked.layers
        full = asked.number("max_window_layers", default=asked.layers)
        return tuple(0 if index < full else window for index in range(asked.layers))
    return windows(asked.kind, asked.layers, window, asked.number("sliding_window_pattern"))


def _latent(asked: Config) -> LatentAttention | None:
    rank = asked.number("kv_lora_rank")
    if not rank:
        return None
    return LatentAttention(
        rank=rank,
        rope_length=asked.number("qk_rope_head_dim"),
        query_rank=asked.number("q_lora_rank"),
        head_length=asked.number("qk_nope_head_dim"),
        value_length=asked.number("v_head_dim"),
    )

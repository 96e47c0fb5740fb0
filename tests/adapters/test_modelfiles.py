"""What the headers of model files say, against the gguf package and against models whose figures are published."""

from __future__ import annotations

import json
import os
from pathlib import Path

import gguf
import pytest
from modelfile_files import block, write_directory

from poolmgr.adapters.modelfiles import ModelFileReader
from poolmgr.adapters.modelfiles.ggml_types import BLOCKS
from poolmgr.errors import ClientError, Reason
from poolmgr.model.shape import ModelFormat, ModelShape
from poolmgr.testing.gguf import write_tiny_llama
from poolmgr.testing.shapes import FAMILIES, Shape, tensor_bytes, tensors, write_shape

pytestmark = pytest.mark.behaviour("MEM-1")


def read(path: Path | str) -> ModelShape:
    return ModelFileReader().read(str(path))


def shape_of(family: str) -> Shape:
    experts = 8 if family in ("qwen3moe", "gpt-oss") else 0
    windowed = family in ("gemma2", "gemma3", "gpt-oss")
    latent = {"kv_rank": 128, "q_rank": 64} if family == "deepseek2" else {}
    return Shape(
        family=family, layers=7, kv_heads=2, type="Q8_0", tied=family.startswith("gemma"), experts=experts,
        experts_used=2 if experts else 0, window=128 if windowed else 0, **latent,
    )  # fmt: skip


def test_the_table_of_tensor_types_is_ggufs() -> None:
    assert dict(BLOCKS) == {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_counted_by_layer_as_the_gguf_package_lists_them(tmp_path: Path, family: str) -> None:
    (path,) = write_shape(tmp_path / "m.gguf", shape_of(family))
    shape = read(path)
    by_layer = [0] * 7
    outside = 0
    for one in gguf.GGUFReader(path).tensors:
        parts = one.name.split(".")
        if parts[0] == "blk":
            by_layer[int(parts[1])] += int(one.n_bytes)
        else:
            outside += int(one.n_bytes)
    assert [layer.resident_bytes for layer in shape.layers] == by_layer
    assert shape.embedding_bytes + shape.output_bytes == outside
    assert shape.architecture == family


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4"])
def test_a_layer_is_as_large_as_its_quantisation_makes_it(tmp_path: Path, kind: str) -> None:
    asked = Shape(width=256, ffn=512, type=kind)
    (path,) = write_shape(tmp_path / "m.gguf", asked)
    expected = sum(tensor_bytes(d, k) for name, d, k in tensors(asked) if name.startswith("blk.1."))
    assert read(path).layers[1].resident_bytes == expected


def test_a_model_says_its_lengths(tmp_path: Path) -> None:
    (path,) = write_shape(
        tmp_path / "m.gguf", Shape(layers=3, width=512, heads=8, kv_heads=2, head=96, ffn=768, vocab=999)
    )
    shape = read(path)
    assert (shape.heads, shape.kv_heads, shape.embedding_length, shape.vocabulary) == (8, 2, 512, 999)
    assert (shape.context_limit, shape.tied, len(shape.layers)) == (8192, False, 3)
    assert {(one.query_width, one.key_width, one.value_width, one.feed_forward) for one in shape.layers} == {
        (768, 192, 192, 768)
    }


def test_a_head_without_a_length_is_the_embeddings_share(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "tiny.gguf", layers=2, width=64)
    shape = read(tmp_path / "tiny.gguf")
    assert {(one.query_width, one.key_width) for one in shape.layers} == {(64, 64)}
    assert shape.file_bytes == (tmp_path / "tiny.gguf").stat().st_size


def test_experts_stand_apart_from_what_every_token_passes(tmp_path: Path) -> None:
    (path,) = write_shape(tmp_path / "m.gguf", shape_of("qwen3moe"))
    shape = read(path)
    layer = shape.layers[0]
    assert (shape.experts, shape.experts_used) == (8, 2)
    assert layer.expert_bytes == 3 * 8 * tensor_bytes((512, 256), "Q8_0")
    assert layer.shared_bytes == 4 * 8 * 256  # the router, in float32
    assert layer.dense_bytes == 0


def test_the_length_of_an_expert_is_that_of_its_weights_and_not_of_its_biases(tmp_path: Path) -> None:
    (path,) = write_shape(tmp_path / "m.gguf", shape_of("gpt-oss"))
    assert {layer.expert_feed_forward for layer in read(path).layers} == {512}


def test_windows_are_those_of_the_architecture(tmp_path: Path) -> None:
    """Gemma 3 (arXiv 2503.19786): five local layers for each global one. Gemma 2 and gpt-oss: every other."""
    seen = {}
    for family in ("gemma3", "gemma2", "gpt-oss", "llama"):
        (path,) = write_shape(tmp_path / f"{family}.gguf", shape_of(family))
        seen[family] = [layer.window for layer in read(path).layers]
    assert seen["gemma3"] == [128] * 5 + [0, 128]
    assert seen["gemma2"] == seen["gpt-oss"] == [128, 0, 128, 0, 128, 0, 128]
    assert seen["llama"] == [0] * 7


def test_latent_attention_caches_one_compressed_vector(tmp_path: Path) -> None:
    (path,) = write_shape(tmp_path / "m.gguf", shape_of("deepseek2"))
    shape = read(path)
    assert shape.latent is not None
    assert (shape.latent.rank, shape.latent.rope_length, shape.latent.query_rank) == (128, 64, 64)
    assert {(one.key_width, one.value_width) for one in shape.layers} == {(128 + 64, 0)}


def test_a_series_of_files_is_one_model(tmp_path: Path) -> None:
    whole = read(write_shape(tmp_path / "whole.gguf", shape_of("llama"))[0])
    parts = write_shape(tmp_path / "part.gguf", shape_of("llama"), tensors_per_file=20)
    shape = read(parts[0])
    assert len(parts) == shape.files > 2
    assert (shape.layers, shape.embedding_bytes, shape.output_bytes) == (
        whole.layers, whole.embedding_bytes, whole.output_bytes,
    )  # fmt: skip
    assert shape.file_bytes == sum(part.stat().st_size for part in parts)


def test_a_series_with_a_file_that_is_missing_is_no_model(tmp_path: Path) -> None:
    parts = write_shape(tmp_path / "part.gguf", shape_of("llama"), tensors_per_file=20)
    parts[1].unlink()
    with pytest.raises(ClientError) as refused:
        read(parts[0])
    assert refused.value.reason is Reason.MODEL_NOT_FOUND
    assert refused.value.numbers["path"] == str(parts[1])


def test_another_part_of_a_series_than_the_first_is_refused(tmp_path: Path) -> None:
    parts = write_shape(tmp_path / "part.gguf", shape_of("llama"), tensors_per_file=20)
    with pytest.raises(ClientError, match="name the first"):
        read(parts[1])


def test_a_part_of_another_series_is_refused(tmp_path: Path) -> None:
    parts = write_shape(tmp_path / "part.gguf", shape_of("llama"), tensors_per_file=20)
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(ClientError, match="does not say that it is part 2"):
        read(parts[0])


LLAMA: dict[str, object] = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 4096,
}  # fmt: skip
ENDS = {"model.embed_tokens.weight": ("BF16", (100, 64), 2), "model.norm.weight": ("BF16", (64,), 2)}
HEAD = {"lm_head.weight": ("BF16", (100, 64), 2)}
LAYERS = block(0, 64, 64, 32, 128) | block(1, 64, 64, 32, 128)
LAYER_BYTES = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64 + 2 * 64)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_directory_of_safetensors_is_read_by_layer(tmp_path: Path, shards: int) -> None:
    parts = (
        [ENDS | HEAD | LAYERS] if shards == 1 else [ENDS | block(0, 64, 64, 32, 128), HEAD | block(1, 64, 64, 32, 128)]
    )
    shape = read(write_directory(tmp_path / "model", LLAMA, parts))
    assert shape.format is ModelFormat.SAFETENSORS
    assert [layer.resident_bytes for layer in shape.layers] == [LAYER_BYTES] * 2
    assert (shape.embedding_bytes, shape.output_bytes, shape.tied) == (12800, 12800 + 128, False)
    assert (shape.files, shape.kv_heads, shape.layers[0].key_width, shape.layers[0].feed_forward) == (
        shards,
        2,
        32,
        128,
    )


def test_one_safetensors_file_is_read_with_the_configuration_beside_it(tmp_path: Path) -> None:
    directory = write_directory(tmp_path / "model", LLAMA, [ENDS | LAYERS])
    shape = read(directory / "model.safetensors")
    assert shape.tied
    assert shape.weight_bytes == 2 * LAYER_BYTES + 12800 + 128


def test_what_a_configuration_leaves_to_its_class_is_seen_in_the_tensors(tmp_path: Path) -> None:
    """google/gemma-3-4b-it: its text_config has no heads, no head length and no vocabulary."""
    config: dict[str, object] = {
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 7, "sliding_window": 1024},
    }
    layers: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for index in range(7):
        layers |= block(index, 64, 8 * 256, 4 * 256, 128, "language_model.model.")
    embedding = {"language_model.model.embed_tokens.weight": ("BF16", (262, 64), 2)}
    shape = read(write_directory(tmp_path / "model", config, [embedding | layers]))
    assert (shape.heads, shape.kv_heads, shape.vocabulary) == (8, 4, 262)
    assert [layer.window for layer in shape.layers] == [1024] * 5 + [0, 1024]


@pytest.mark.parametrize(
    ("more", "windows"),
    [
        ({"model_type": "mistral", "sliding_window": 4096}, [4096, 4096]),
        ({"model_type": "mistral", "sliding_window": None}, [0, 0]),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, [0, 0]),
        ({"model_type": "gpt_oss", "layer_types": ["sliding_attention", "full_attention"]}, [128, 0]),
        ({"model_type": "gemma2"}, [4096, 0]),
    ],
)
def test_windows_of_a_configuration(tmp_path: Path, more: dict[str, object], windows: list[int]) -> None:
    shape = read(write_directory(tmp_path / "model", LLAMA | more, [ENDS | LAYERS]))
    assert [layer.window for layer in shape.layers] == windows


def test_mixtures_of_experts_and_latent_attention_of_a_configuration(tmp_path: Path) -> None:
    """The names of DeepSeek-V3's tensors and keys."""
    config = LLAMA | {
        "model_type": "deepseek_v3", "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
        "v_head_dim": 16, "q_lora_rank": 24, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    }  # fmt: skip
    moe = {f"model.layers.1.mlp.experts.{e}.up_proj.weight": ("F8_E4M3", (32, 64), 1) for e in range(4)}
    moe |= {
        "model.layers.1.mlp.gate.weight": ("BF16", (4, 64), 2),
        "model.layers.1.mlp.shared_experts.up_proj.weight": ("F8_E4M3", (32, 64), 1),
        "model.layers.1.self_attn.kv_a_proj_with_mqa.weight": ("F8_E4M3", (24, 64), 1),
    }
    shape = read(write_directory(tmp_path / "model", config, [ENDS | HEAD | block(0, 64, 64, 32, 128) | moe]))
    layer = shape.layers[1]
    assert (layer.expert_bytes, layer.shared_bytes, layer.attention_bytes) == (4 * 2048, 512 + 2048, 24 * 64)
    assert (layer.key_width, layer.value_width, layer.expert_feed_forward) == (24, 0, 32)
    assert (shape.experts, shape.experts_used, shape.layers[0].expert_feed_forward) == (4, 2, 0)


def test_layers_that_only_predict_further_tokens_are_in_no_layer_of_the_model(tmp_path: Path) -> None:
    extra = block(2, 64, 64, 32, 128)  # as DeepSeek-V3's layer 61
    shape = read(write_directory(tmp_path / "model", LLAMA, [ENDS | HEAD | LAYERS | extra]))
    assert len(shape.layers) == 2
    assert shape.output_bytes == 12800 + 128 + LAYER_BYTES


def test_no_weight_is_read(tmp_path: Path) -> None:
    """Sixteen billion bytes of weights that are a hole, with a disk that would take minutes to read them."""
    big = Shape(layers=32, width=4096, heads=32, kv_heads=8, head=128, ffn=14336, vocab=128_256)
    (path,) = write_shape(tmp_path / "m.gguf", big)
    assert path.stat().st_size > 15 * 10**9
    assert path.stat().st_blocks * 512 < 16 << 20
    assert read(path).file_bytes == path.stat().st_size


@pytest.mark.parametrize("name", ["nothing.gguf", "no/such/folder"])
def test_what_is_not_there_is_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(ClientError) as refused:
        read(tmp_path / name)
    assert refused.value.reason is Reason.MODEL_NOT_FOUND


def test_a_directory_without_a_configuration_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ClientError) as refused:
        read(tmp_path)
    assert refused.value.reason is Reason.MODEL_NOT_FOUND
    assert refused.value.numbers["path"] == str(tmp_path / "config.json")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ClientError, match="not a regular file"):
        read(tmp_path / "pipe.gguf")


def test_a_shard_of_quantised_experts_has_more_tensors_than_fit_in_one_reading(tmp_path: Path) -> None:
    """Qwen3-30B-A3B in 4 bits: some 18,000 tensors in each of 4 shards."""
    packed = {
        f"model.layers.1.mlp.experts.{e}.{part}.{what}": ("I32", (8, 2), 4)
        for e in range(1500) for part in ("gate", "up", "down") for what in ("qweight", "qzeros", "scales")
    }  # fmt: skip
    directory = write_directory(tmp_path / "model", LLAMA, [ENDS | HEAD | LAYERS | packed])
    assert (directory / "model.safetensors").stat().st_size > 1 << 20
    assert read(directory).layers[1].expert_bytes == 1500 * 9 * 64


def test_an_index_may_list_more_tensors_than_a_header_may_have_bytes(tmp_path: Path) -> None:
    """DeepSeek-V3's index lists 91,991 tensors in 9 MB: only the names of its files are taken."""
    directory = write_directory(tmp_path / "model", LLAMA, [ENDS | HEAD, LAYERS])
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    shard = next(iter(index["weight_map"].values()))
    index["weight_map"] |= {f"model.layers.1.mlp.experts.{n}.down_proj.weight_scale_inv": shard for n in range(92_000)}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read(directory).files == 2

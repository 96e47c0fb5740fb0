"""Estimates against figures that are published of real models, worked out by hand beside each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolmgr.core.estimate import (
    CUDA_CONTEXT_BYTES,
    CUDA_GRAPH_BYTES,
    MAX_SLOTS,
    MAX_TOKENS,
    estimate,
    llamacpp_buffers,
)
from poolmgr.core.llamacpp_graph import Backend
from poolmgr.errors import ClientError, Reason
from poolmgr.model.memory import MemoryQuestion
from poolmgr.model.names import EngineName
from poolmgr.model.shape import LatentAttention, LayerShape, ModelFormat, ModelShape

pytestmark = pytest.mark.behaviour("MEM-1")

GIB = 1 << 30


def dense(
    layers: int, width: int, heads: int, kv: int, head: int, ffn: int, vocab: int, name: str = "llama"
) -> ModelShape:
    """A model of 16-bit weights: projections, feed-forward and no norms."""
    attention = 2 * (2 * width * heads * head + 2 * width * kv * head)
    layer = LayerShape(
        attention, 2 * 3 * width * ffn, query_width=heads * head, key_width=kv * head, value_width=kv * head,
        feed_forward=ffn,
    )  # fmt: skip
    return ModelShape(
        ModelFormat.GGUF, name, (layer,) * layers, embedding_bytes=2 * vocab * width, output_bytes=2 * vocab * width,
        embedding_length=width, vocabulary=vocab, heads=heads, kv_heads=kv, context_limit=8192,
    )  # fmt: skip


LLAMA_3_8B = dense(32, 4096, 32, 8, 128, 14336, 128_256)


def ask(context: int = 0, slots: int = 1, cache: str = "", engine: EngineName = EngineName.LLAMACPP) -> MemoryQuestion:
    return MemoryQuestion("/models/m.gguf", context, slots, cache, engine)


@pytest.mark.parametrize(
    ("shape", "bytes_per_token"),
    [
        (LLAMA_3_8B, 131_072),  # 32 layers x 8 heads x 128 x 2 x 2 bytes
        # DeepSeek-AI, "Insights into DeepSeek-V3" (arXiv 2505.09343), table 1, in KB of 1000 bytes.
        (dense(80, 8192, 64, 8, 128, 29568, 152_064), 327_680),  # Qwen-2.5 72B
        (dense(126, 16384, 128, 8, 128, 53248, 128_256), 516_096),  # Llama-3.1 405B
    ],
)
def test_a_token_takes_what_is_published_of_the_model(shape: ModelShape, bytes_per_token: int) -> None:
    for engine in (EngineName.LLAMACPP, EngineName.VLLM):
        assert estimate(shape, ask(4096, engine=engine)).kv_bytes == 4096 * bytes_per_token


def deepseek_v3() -> ModelShape:
    """61 layers, 128 heads, compressed to 512 + 64; 256 experts of 2048 of which 8 are used, and one for all."""
    latent = LatentAttention(512, 64, 1536, 128, 128)
    layer = LayerShape(1000, 0, 256_000, 500, query_width=128 * 192, key_width=576, expert_feed_forward=2048,
                       shared_feed_forward=2048)  # fmt: skip
    first = LayerShape(1000, 9000, query_width=128 * 192, key_width=576, feed_forward=18432)
    return ModelShape(
        ModelFormat.GGUF, "deepseek2", (first,) * 3 + (layer,) * 58, embedding_bytes=7, output_bytes=7,
        embedding_length=7168, vocabulary=129_280, heads=128, kv_heads=1, context_limit=163_840, experts=256,
        experts_used=8, latent=latent,
    )  # fmt: skip


def test_latent_attention_takes_what_is_published_of_deepseek_v3() -> None:
    """arXiv 2505.09343, table 1: 70.272 KB per token, (512 + 64) x 2 bytes x 61 layers."""
    for engine in (EngineName.LLAMACPP, EngineName.VLLM):
        assert estimate(deepseek_v3(), ask(4096, engine=engine)).kv_bytes == 4096 * 70_272


def test_a_token_reads_only_the_experts_that_it_is_sent_to() -> None:
    layer = estimate(deepseek_v3(), ask(4096)).model.layers[3]
    assert (layer.resident_bytes, layer.active_bytes) == (257_500, 1000 + 500 + 256_000 * 8 // 256)


def test_mixtral_is_as_large_and_as_active_as_its_makers_say() -> None:
    """Mistral AI on Mixtral 8x7B: 46.7 billion parameters, of which a token uses 12.9 billion."""
    expert = 2 * 3 * 4096 * 14336
    layer = LayerShape(2 * (2 * 4096 * 4096 + 2 * 4096 * 1024), 0, 8 * expert, query_width=4096, key_width=1024,
                       value_width=1024, expert_feed_forward=14336)  # fmt: skip
    shape = replace(dense(1, 4096, 32, 8, 128, 14336, 32_000), layers=(layer,) * 32, experts=8, experts_used=2)
    found = estimate(shape, ask(4096))
    parameters = (found.weight_bytes + found.host_bytes) / 2
    active = sum(one.active_bytes for one in found.model.layers) / 2 + 4096 * 32_000
    assert round(parameters / 1e9, 1) == 46.7
    assert round(active / 1e9, 1) == 12.9


def gemma_3_27b() -> ModelShape:
    """62 layers, every sixth of them global, 16 heads of 128 for keys and values, a window of 1024."""
    shape = dense(62, 5376, 32, 16, 128, 21504, 262_208, "gemma3")
    layers = tuple(replace(one, window=0 if n % 6 == 5 else 1024) for n, one in enumerate(shape.layers))
    return replace(shape, layers=layers, output_bytes=5376 * 4, tied=True, context_limit=131_072)


def test_sliding_layers_keep_a_window_and_a_batch() -> None:
    """llama.cpp, src/llama-kv-cache-iswa.cpp: window + 512, padded to 256: 1536 cells of 8192 bytes."""
    layers = estimate(gemma_3_27b(), ask(32_768)).model.layers
    assert [layers[n].kv_bytes for n in (0, 4, 5)] == [1536 * 8192, 1536 * 8192, 32_768 * 8192]
    assert [layers[n].kv_window for n in (0, 5)] == [1536, 0]
    assert sum(one.kv_bytes for one in layers) == 52 * 1536 * 8192 + 10 * 32_768 * 8192


def test_a_context_below_the_window_is_all_that_a_sliding_layer_keeps() -> None:
    layers = estimate(gemma_3_27b(), ask(1024)).model.layers
    assert layers[0].kv_bytes == layers[5].kv_bytes == 1024 * 8192


def test_vllm_keeps_a_window_and_a_step() -> None:
    shape = replace(gemma_3_27b(), format=ModelFormat.SAFETENSORS)
    layers = estimate(shape, ask(32_768, engine=EngineName.VLLM)).model.layers
    assert layers[0].kv_bytes == (1024 + 8192) * 8192
    assert layers[5].kv_bytes == 32_768 * 8192


@pytest.mark.parametrize(
    ("cache", "bits"),
    [("f32", 32), ("f16", 16), ("bf16", 16), ("q8_0", 8.5), ("q5_1", 6), ("q5_0", 5.5), ("q4_1", 5), ("q4_0", 4.5),
     ("iq4_nl", 4.5), ("", 16)],
)  # fmt: skip
def test_a_cache_type_is_so_many_bits(cache: str, bits: float) -> None:
    """ggml-common.h: a block of 32 with a scale of 16 bits, and with a minimum of 16 more for the _1 types."""
    assert estimate(LLAMA_3_8B, ask(4096, cache=cache)).kv_bytes == 4096 * 131_072 * bits / 16


@pytest.mark.parametrize(("cache", "bits"), [("auto", 16), ("fp8", 8), ("fp8_e5m2", 8), ("nvfp4", 4.5)])
def test_vllms_cache_types_are_so_many_bits(cache: str, bits: float) -> None:
    found = estimate(LLAMA_3_8B, ask(4096, cache=cache, engine=EngineName.VLLM))
    assert found.kv_bytes == 4096 * 131_072 * bits / 16


@pytest.mark.parametrize(
    ("context", "slots", "cells"),
    # As the engine printed it: 1000 over 3 slots are rounded up to 1024, and each third of that to 512.
    [(4096, 1, 4096), (4097, 1, 4352), (100, 1, 256), (1024, 4, 1024), (64, 8, 256), (334, 3, 512)],
)
def test_llamacpp_pads_the_context_and_each_slots_share(context: int, slots: int, cells: int) -> None:
    assert estimate(LLAMA_3_8B, ask(context, slots)).kv_bytes == cells * slots * 131_072


def test_unasked_llamacpp_divides_the_models_context_and_vllm_gives_it_to_each() -> None:
    divided = estimate(LLAMA_3_8B, ask(slots=4))
    each = estimate(LLAMA_3_8B, ask(slots=4, engine=EngineName.VLLM))
    assert (divided.model.context_length, divided.kv_bytes) == (2048, 8192 * 131_072)
    assert (each.model.context_length, each.kv_bytes) == (8192, 4 * 8192 * 131_072)


def test_the_head_is_the_last_layer_and_llamacpp_keeps_the_embedding_on_the_host() -> None:
    found = estimate(LLAMA_3_8B, ask(4096))
    table = 2 * 128_256 * 4096
    assert len(found.model.layers) == 33
    assert found.model.layers[-1].resident_bytes == found.model.layers[-1].active_bytes == table
    assert found.model.layers[-1].kv_bytes == 0
    assert found.host_bytes == table + 4 * 128_256
    assert found.weight_bytes == LLAMA_3_8B.weight_bytes - table


def test_a_tied_head_is_a_copy_on_the_device_and_none_on_the_cpu() -> None:
    shape = gemma_3_27b()
    assert estimate(shape, ask(4096)).weight_bytes == shape.weight_bytes
    assert llamacpp_buffers(shape, ask(4096), Backend.CPU).model == shape.weight_bytes
    assert llamacpp_buffers(shape, ask(4096), Backend.CUDA).model == shape.weight_bytes
    untied = replace(shape, tied=False)
    assert llamacpp_buffers(untied, ask(4096), Backend.CUDA).model == shape.weight_bytes - shape.embedding_bytes


def test_elsewhere_the_embedding_is_with_the_first_layer() -> None:
    found = estimate(LLAMA_3_8B, ask(4096, engine=EngineName.VLLM))
    first, second = found.model.layers[:2]
    assert first.resident_bytes - second.resident_bytes == 2 * 128_256 * 4096
    assert first.active_bytes == second.active_bytes
    assert (found.host_bytes, found.weight_bytes) == (0, LLAMA_3_8B.weight_bytes)


def test_a_tied_head_reads_the_embedding_where_it_is() -> None:
    shape = replace(LLAMA_3_8B, tied=True, output_bytes=100)
    first, *_, last = estimate(shape, ask(4096, engine=EngineName.VLLM)).model.layers
    assert first.active_bytes == first.resident_bytes
    assert last.resident_bytes == 100


@pytest.mark.parametrize("engine", [EngineName.LLAMACPP, EngineName.VLLM, EngineName.TGI])
@pytest.mark.parametrize("shape", [LLAMA_3_8B, gemma_3_27b(), deepseek_v3()])
def test_no_layer_reads_more_than_it_has(shape: ModelShape, engine: EngineName) -> None:
    """A planner refuses such a layer."""
    found = estimate(shape, ask(4096, engine=engine))
    assert all(0 <= one.active_bytes <= one.resident_bytes for one in found.model.layers)


def test_overhead_is_the_engines() -> None:
    llamacpp, vllm = (estimate(LLAMA_3_8B, ask(4096, engine=e)) for e in (EngineName.LLAMACPP, EngineName.VLLM))
    compute = llamacpp_buffers(LLAMA_3_8B, ask(4096)).compute
    assert llamacpp.overhead_bytes == compute + CUDA_CONTEXT_BYTES
    # 4096 tokens of 16 bits: 2 x 4096, 4096 + 2 x 1024 and 3 x 14336; the logits of a slot twice, of 32 bits.
    activations = 2 * 4096 * (2 * 4096 + 4096 + 2048 + 3 * 14336) + 8 * 128_256
    assert vllm.overhead_bytes == activations + CUDA_CONTEXT_BYTES + CUDA_GRAPH_BYTES
    assert llamacpp.activation_bytes == vllm.activation_bytes == 4 * 4096
    assert any("gpu_memory_utilization" in line for line in vllm.explanation)
    assert any("not measured" in line for line in llamacpp.explanation)


def test_what_was_measured_corrects_all_that_is_on_the_device() -> None:
    plain, corrected = estimate(LLAMA_3_8B, ask(4096)), estimate(LLAMA_3_8B, ask(4096), 1.25)
    assert corrected.factor == 1.25
    assert corrected.one_device_bytes == pytest.approx(1.25 * plain.one_device_bytes, rel=1e-6)
    assert corrected.one_device_bytes >= 1.25 * plain.one_device_bytes
    assert [one.active_bytes for one in corrected.model.layers] == [one.active_bytes for one in plain.model.layers]
    assert (corrected.host_bytes, corrected.model.heads) == (plain.host_bytes, 32)


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (ask(slots=0), Reason.INVALID_ARGUMENT),
        (ask(slots=MAX_SLOTS + 1), Reason.INVALID_ARGUMENT),
        (ask(-1), Reason.INVALID_ARGUMENT),
        (ask(MAX_TOKENS, 2), Reason.INVALID_ARGUMENT),
        (ask(4096, cache="fp8"), Reason.BAD_ARGUMENTS),
        (ask(4096, cache="q8_0", engine=EngineName.VLLM), Reason.BAD_ARGUMENTS),
    ],
)
def test_a_question_that_no_engine_answers_is_refused(question: MemoryQuestion, reason: Reason) -> None:
    with pytest.raises(ClientError) as refused:
        estimate(LLAMA_3_8B, question)
    assert refused.value.reason is reason


def test_a_model_that_does_not_say_its_context_needs_to_be_asked_for_one() -> None:
    silent = replace(LLAMA_3_8B, context_limit=0)
    with pytest.raises(ClientError, match="ask for one"):
        estimate(silent, ask())
    assert estimate(silent, ask(4096)).model.context_length == 4096


def test_llamacpp_reads_gguf_only() -> None:
    with pytest.raises(ClientError) as refused:
        estimate(replace(LLAMA_3_8B, format=ModelFormat.SAFETENSORS), ask(4096))
    assert refused.value.reason is Reason.MODEL_INVALID


@pytest.mark.behaviour("MEM-1")
@pytest.mark.parametrize(
    "layer",
    [
        LayerShape(),
        LayerShape(attention_bytes=1 << 20),
        LayerShape(attention_bytes=1 << 20, query_width=64, key_width=64, value_width=64),
        LayerShape(dense_bytes=5, feed_forward=3),
    ],
    ids=["nothing", "weights", "no feed-forward", "no attention"],
)
@pytest.mark.parametrize("engine", [EngineName.LLAMACPP, EngineName.VLLM])
def test_a_model_that_lacks_a_part_has_an_estimate_all_the_same(layer, engine):
    kind = ModelFormat.GGUF if engine is EngineName.LLAMACPP else ModelFormat.SAFETENSORS
    shape = ModelShape(kind, "odd", (layer,) * 3, context_limit=256)
    found = estimate(shape, MemoryQuestion("/m", 256, engine=engine))
    assert found.weight_bytes == 3 * layer.resident_bytes and found.overhead_bytes > 0

"""Estimates at their limits, and the figures that they count with as their sources have them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolmgr.core import estimate as of
from poolmgr.core.cache_types import LLAMACPP, OTHERS, known, row_bytes
from poolmgr.core.estimate import estimate, llamacpp_buffers
from poolmgr.core.ggml_allocator import Graph, Heap, Node
from poolmgr.errors import ClientError, Reason
from poolmgr.model.memory import MemoryQuestion
from poolmgr.model.names import EngineName
from poolmgr.model.shape import LayerShape, ModelFormat, ModelShape

pytestmark = pytest.mark.behaviour("MEM-1")
MIB = 1 << 20
LAYER = LayerShape(1000, 2000, 800, 50, 64, 64, 32, feed_forward=128, expert_feed_forward=16)
SHAPE = ModelShape(
    ModelFormat.GGUF, "llama", (LAYER,) * 2, embedding_bytes=640, output_bytes=320, embedding_length=64, vocabulary=100,
    heads=4, kv_heads=2, context_limit=1024, experts=8, experts_used=2, files=3,
)  # fmt: skip


def asked(engine=EngineName.LLAMACPP, shape=SHAPE, **question):
    return estimate(shape, MemoryQuestion("/m", engine=engine, **question))


def refused(**question):
    with pytest.raises(ClientError) as caught:
        asked(**question)
    return caught.value


def test_the_figures_are_those_of_their_sources():
    assert (of.CUDA_CONTEXT_BYTES, of.CUDA_GRAPH_BYTES) == (457 * MIB, 1024 * MIB)
    assert (of.BATCHED_TOKENS, of.PAGE_TOKENS, of.CELL_PADDING) == (8192, 16, 256)
    assert (of.MAX_TOKENS, of.MAX_SLOTS) == (2_147_483_647, 4096)


def test_limits_may_be_reached_and_not_passed():
    assert asked(context_length=of.MAX_TOKENS).model.context_length == of.MAX_TOKENS
    assert asked(context_length=1, slots=of.MAX_SLOTS).model.slots == 4096
    error = refused(context_length=1 << 20, slots=2048)
    assert error.message == "2048 slots of 1048576 tokens: 0 to 2147483647 in all"
    assert error.numbers == {"context_length": 1 << 20, "slots": 2048}
    error = refused(context_length=1, slots=4097)
    assert (error.message, error.numbers) == ("4097 slots: 1 to 4096", {"slots": 4097})
    error = refused(context_length=-1)
    assert error.message.startswith("1 slots of -1 tokens")


def test_the_buffers_are_refused_like_the_estimate():
    with pytest.raises(ClientError, match="0 slots: 1 to 4096"):
        llamacpp_buffers(SHAPE, MemoryQuestion("/m", 256, 0))


def test_elsewhere_the_first_layer_is_itself_and_the_embedding():
    shape = replace(SHAPE, layers=(replace(LAYER, dense_bytes=7), LAYER), tied=True)
    first, second, head = asked(EngineName.VLLM, shape=shape, context_length=256).model.layers
    assert (first.resident_bytes, second.resident_bytes, head.resident_bytes) == (1857 + 640, 3850, 320)
    assert (first.active_bytes, second.active_bytes, head.active_bytes) == (1257 + 640, 3250, 320)


def test_a_context_that_nobody_knows_is_asked_for_with_its_number():
    error = refused(shape=replace(SHAPE, context_limit=0))
    assert (error.reason, error.numbers) == (Reason.INVALID_ARGUMENT, {"context_length": 0})
    error = refused(shape=replace(SHAPE, format=ModelFormat.SAFETENSORS))
    assert (error.message, error.numbers) == ("llama.cpp reads GGUF, not SAFETENSORS", {"path": "/m"})


def test_a_context_that_is_shared_by_more_slots_than_it_has_tokens_is_one_each():
    assert asked(shape=replace(SHAPE, context_limit=2), slots=4).model.context_length == 1
    assert asked(shape=replace(SHAPE, context_limit=1 << 40)).model.context_length == 2_147_483_647


@pytest.mark.parametrize(
    ("kinds", "kind", "width", "size"),
    [
        (LLAMACPP, "q8_0", 32, 34), (LLAMACPP, "q8_0", 33, 68), (LLAMACPP, "q4_0", 64, 36), (LLAMACPP, "q4_1", 32, 20),
        (LLAMACPP, "iq4_nl", 32, 18), (LLAMACPP, "q5_0", 32, 22), (LLAMACPP, "q5_1", 32, 24), (LLAMACPP, "f32", 3, 12),
        (LLAMACPP, "f16", 3, 6), (LLAMACPP, "bf16", 3, 6), (OTHERS, "auto", 3, 6), (OTHERS, "f16", 3, 6),
        (OTHERS, "float16", 3, 6), (OTHERS, "bfloat16", 3, 6), (OTHERS, "fp8", 3, 3), (OTHERS, "fp8_e4m3", 3, 3),
        (OTHERS, "fp8_e5m2", 3, 3), (OTHERS, "nvfp4", 16, 9), (OTHERS, "nvfp4", 17, 18), (OTHERS, "nvfp4", 0, 0),
    ],
)  # fmt: skip
def test_a_row_of_a_cache_takes_whole_blocks(kinds, kind, width, size):
    assert row_bytes(kinds, kind, width) == size


def test_a_cache_type_that_the_engine_has_not_is_refused_with_those_that_it_has():
    assert known(OTHERS, "", "auto") == "auto"
    with pytest.raises(ClientError, match=r"^cache_type 'q8_0' is none of auto, bfloat16, f16, ") as caught:
        known(OTHERS, "q8_0", "auto")
    assert caught.value.numbers == {"cache_type": "q8_0"}


def test_what_is_said_of_an_estimate_has_its_numbers():
    told = asked(context_length=1000, slots=3).explanation
    assert told[:3] == (
        "weights: 0.0 MiB of llama in 3 files, 2 layers",
        "experts: a token reads 2 of 8",
        "context: 1000 tokens a slot, cached as f16",
    )
    assert told[3] == "caches: 1024 cells for each of 3 slots"
    assert "CUDA's context 457.0 MiB" in told[4]
    assert told[5] == "host memory: embedding 0.0 MiB"
    one = replace(SHAPE, files=1, experts=0, tied=True, layers=(replace(LAYER, window=100), LAYER))
    told = asked(context_length=4096, shape=one).explanation
    assert told[0] == "weights: 0.0 MiB of llama in one file, 2 layers"
    assert told[2] == "caches: 4096 cells for each of 1 slots, of 768 where a window slides"
    assert told[4] == "host memory: embedding 0.0 MiB, of which the head is a copy"
    told = asked(EngineName.VLLM, context_length=4096).explanation
    assert told[2] == "context: 4096 tokens a slot, cached as auto"
    assert told[3] == (
        "overhead: activations 6.0 MiB for 8192 tokens, CUDA graphs 1024.0 MiB, CUDA's context 457.0 MiB "
        "(by formula, not measured)"
    )
    assert "gpu_memory_utilization (0.9)" in told[4]
    assert len(asked(EngineName.TGI, context_length=4096).explanation) == 4


def test_vllm_takes_whole_pages_of_sixteen_tokens():
    layers = asked(EngineName.VLLM, context_length=17, slots=2).model.layers
    assert layers[0].kv_bytes == 32 * 2 * 2 * (64 + 32)
    slides = replace(SHAPE, layers=(replace(LAYER, window=100), LAYER))
    layers = asked(EngineName.VLLM, shape=slides, context_length=20_000).model.layers
    assert [one.kv_window for one in layers] == [8292, 0, 0]
    assert layers[0].kv_bytes == 8304 * 2 * 96


def test_what_vllm_profiles_with_is_counted_tensor_by_tensor():
    found = asked(EngineName.VLLM, context_length=100, slots=3)
    widest = 64 + 64 + 32 + 3 * (128 + 2 * 16)
    assert found.overhead_bytes == 2 * 300 * (2 * 64 + widest) + 8 * 3 * 100 + (457 + 1024) * MIB
    shared = replace(SHAPE, layers=(LAYER, replace(LAYER, shared_feed_forward=40)))
    more = asked(EngineName.VLLM, shape=shared, context_length=100, slots=3)
    assert more.overhead_bytes - found.overhead_bytes == 2 * 300 * 3 * 40
    many = [asked(EngineName.VLLM, context_length=tokens) for tokens in (8192, 8193)]
    assert many[0].overhead_bytes == many[1].overhead_bytes


def test_a_token_reads_attention_dense_shared_and_its_part_of_the_experts():
    layer = asked(context_length=256).model.layers[0]
    assert (layer.resident_bytes, layer.active_bytes) == (3850, 1000 + 2000 + 50 + 200)
    for experts, used in ((0, 2), (8, 0), (8, 9)):
        all_read = asked(context_length=256, shape=replace(SHAPE, experts=experts, experts_used=used))
        assert all_read.model.layers[0].active_bytes == 3850


def test_the_host_has_the_embedding_and_the_logits_of_each_slot():
    found = asked(context_length=256, slots=3)
    assert (found.host_bytes, found.activation_bytes) == (640 + 4 * 100 * 3, 256)
    assert [one.resident_bytes for one in found.model.layers] == [3850, 3850, 320]
    assert (found.model.heads, found.model.kv_heads, found.model.context_limit, found.model.slots) == (4, 2, 1024, 3)


def test_a_correction_is_rounded_up_and_told():
    plain, more = asked(context_length=256), estimate(SHAPE, MemoryQuestion("/m", 256), 1.0001)
    assert more.explanation[-1] == "corrected by 1.000, as earlier runs were measured"
    assert len(more.explanation) == len(plain.explanation) + 1
    assert [one.resident_bytes for one in more.model.layers] == [3851, 3851, 321]
    assert more.model.layers[0].kv_bytes == plain.model.layers[0].kv_bytes + 5


def test_two_nodes_are_never_the_same_however_alike():
    assert Node("add", 64) != Node("add", 64)


def test_of_holes_of_one_size_the_last_is_taken_and_a_smaller_one_never():
    heap = Heap()
    places = [heap.take(size) for size in (128, 64, 128, 64, 64, 64)]
    for place, size in ((places[0], 128), (places[2], 128), (places[4], 64)):
        heap.give(place, size)
    assert heap.take(128) == places[2]
    assert heap.take(100) == places[0]
    assert heap.take(64) == places[4]
    assert heap.peak == 512


def test_nothing_is_taken_for_nothing_and_nothing_given_back():
    heap = Heap()
    assert heap.take(0) == 0 == heap.peak
    heap.give(0, 0)
    assert (heap.take(64), heap.peak) == (0, 64)


def test_a_result_goes_where_an_operand_of_its_size_was_only_if_nobody_else_looks_at_it():
    def peak(size, viewed=False):
        graph = Graph()
        first = Node("mul_mat", 640, (graph.input(64),))
        if viewed:
            graph.expand(Node("view", 640, (first,), view_of=first))
        graph.expand(Node("add", size, (first,)))
        return graph.reserve()

    assert (peak(640), peak(576), peak(640, viewed=True)) == (704, 1280, 1344)

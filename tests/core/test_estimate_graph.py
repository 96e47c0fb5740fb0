"""The compute buffer, against what llama.cpp printed, and the allocator that it follows from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolmgr.core import ggml_allocator, llamacpp_graph
from poolmgr.core.ggml_allocator import ALIGNMENT, Graph, Heap, Node, view
from poolmgr.core.llamacpp_graph import Backend, Run, compute_bytes
from poolmgr.model.shape import LayerShape, ModelFormat, ModelShape

pytestmark = pytest.mark.behaviour("MEM-1")

MIB = 1 << 20


def model(
    width: int = 512, ffn: int = 1024, query: int = 512, kv: int = 128, vocab: int = 8000, layers: int = 3
) -> ModelShape:
    layer = LayerShape(query_width=query, key_width=kv, value_width=kv, feed_forward=ffn)
    return ModelShape(ModelFormat.GGUF, "llama", (layer,) * layers, embedding_length=width, vocabulary=vocab, heads=8)


def run(cells: int = 4096, slots: int = 1, cache: str = "f16") -> Run:
    return Run(cells, cells, slots, cache)


# "CPU compute buffer size" in MiB, by xllamacpp 2026.10.11549 at verbosity 4: a model of 3 layers, 512 wide, 8 heads
# of 64 and 2 for keys and values, 1024 in the feed-forward, 8000 tokens; and the same with one thing changed.
PRINTED = [
    (model(), run(), 15.02),
    (model(width=256), run(), 12.52),
    (model(width=768), run(), 15.52),
    (model(width=1024), run(), 18.02),
    (model(width=2048), run(), 24.02),
    (model(ffn=256), run(), 11.02),
    (model(ffn=512), run(), 10.02),
    (model(ffn=4096), run(), 33.02),
    (model(query=128), run(), 15.02),
    (model(query=2048), run(), 17.02),
    (model(kv=512), run(), 15.02),
    (model(vocab=128_000), run(), 15.02),
    (model(layers=1), run(), 10.02),
    (model(layers=24), run(), 15.02),
    (model(), run(2048, 2), 13.02),
    (model(), run(256, 16), 11.27),
    (model(), run(256), 5.63),
    (model(), run(32_768), 43.02),
    (model(), run(cache="q8_0"), 15.05),
    (model(), run(cache="bf16"), 15.02),
    (model(), run(cache="f32"), 14.02),
    (model(), run(16_384, cache="f32"), 30.02),
]


@pytest.mark.parametrize(("shape", "asked", "printed"), PRINTED)
def test_the_compute_buffer_is_what_the_engine_printed(shape: ModelShape, asked: Run, printed: float) -> None:
    assert compute_bytes(shape, asked) / MIB == pytest.approx(printed, abs=0.02)


def test_an_allocator_that_does_otherwise_than_ggmls_is_seen_in_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ggml_allocator, "IN_PLACE", frozenset())
    off = [abs(compute_bytes(shape, asked) / MIB - printed) > 0.02 for shape, asked, printed in PRINTED]
    assert sum(off) >= 5


def test_on_cuda_the_embedding_comes_in_as_an_input() -> None:
    """Read in the source, not measured: the lookup and the mixing of tokens and vectors stay on the host."""
    cpu, cuda = (compute_bytes(model(), replace(run(), backend=backend)) for backend in Backend)
    assert 0 < cpu - cuda <= 4 * 4 * 512 * 512


def test_layers_that_repeat_change_nothing() -> None:
    assert compute_bytes(model(layers=2000), run()) == compute_bytes(model(layers=3), run())


def test_a_layer_that_differs_is_not_left_out() -> None:
    plain = model(layers=9)
    wide = replace(plain.layers[0], feed_forward=8192)
    for place in (0, 4, 7):
        layers = (*plain.layers[:place], wide, *plain.layers[place + 1 :])
        assert compute_bytes(replace(plain, layers=layers), run()) > 2 * compute_bytes(plain, run())


def test_the_last_layers_feed_forward_sees_only_the_tokens_with_an_output() -> None:
    plain = model(layers=9)
    last = replace(plain.layers[0], feed_forward=8192)
    assert compute_bytes(replace(plain, layers=(*plain.layers[:8], last)), run()) == compute_bytes(plain, run())


def test_a_mask_is_there_for_each_kind_of_cache_that_a_layer_has() -> None:
    plain = model(layers=6)
    windowed = tuple(replace(one, window=100) for one in plain.layers)
    asked = Run(4096, 768, 1, "f16")
    some = replace(plain, layers=(*windowed[:3], *plain.layers[3:]))
    every = replace(plain, layers=windowed)
    mask = 2 * 512
    assert compute_bytes(some, asked) - compute_bytes(plain, asked) == pytest.approx(768 * mask, abs=16_384)
    assert compute_bytes(plain, asked) - compute_bytes(every, asked) == pytest.approx((4096 - 768) * mask, abs=16_384)


def test_experts_take_room_side_by_side() -> None:
    plain = model()
    layers = tuple(replace(one, feed_forward=0, expert_feed_forward=1024) for one in plain.layers)
    sizes = [compute_bytes(replace(plain, layers=layers, experts=8, experts_used=n), run()) for n in (1, 2, 4)]
    assert sizes == sorted(set(sizes))


def test_the_batch_is_a_multiple_of_the_slots() -> None:
    assert [run(4096, slots).tokens for slots in (1, 3, 4)] == [512, 513, 512]
    assert run(256).tokens == 256


def test_a_block_goes_into_the_smallest_hole_that_it_fits() -> None:
    heap = Heap()
    places = [heap.take(size) for size in (640, 64, 128, 64)]
    heap.give(places[0], 640)
    heap.give(places[2], 128)
    assert heap.take(128) == places[2]
    assert heap.take(512) == places[0]
    assert heap.peak == 896


def test_neighbouring_holes_become_one() -> None:
    heap = Heap()
    places = [heap.take(64) for _ in range(4)]
    for place in (places[0], places[2], places[1]):
        heap.give(place, 64)
    assert heap.take(192) == places[0]
    heap.give(places[0], 192)
    heap.give(places[3], 64)
    assert heap.take(1024) == 0


def test_sizes_are_whole_cache_lines() -> None:
    heap = Heap()
    heap.take(1)
    assert heap.take(1) == ALIGNMENT == heap.peak - ALIGNMENT


def test_an_operand_that_somebody_else_reads_is_not_overwritten() -> None:
    def peak(read_again: bool) -> int:
        graph = Graph()
        first = Node("mul_mat", 640, (graph.input(64),))
        second = Node("add", 640, (first,))
        graph.expand(Node("mul_mat", 64, (second, first) if read_again else (second,)))
        return graph.reserve()

    assert peak(read_again=True) == 64 + 640 + 640  # the last goes where the input was
    assert peak(read_again=False) == 64 + 640


def test_memory_that_a_view_looks_at_is_not_given_back() -> None:
    def peak(viewed: bool) -> int:
        graph = Graph()
        first = Node("mul_mat", 640, (graph.input(64),))
        look = view(first) if viewed else first
        graph.expand(Node("mul_mat", 64, (look,)))
        graph.expand(Node("mul_mat", 640, (graph.input(64),)))
        graph.expand(Node("mul_mat", 64, (look,)))
        return graph.reserve()

    assert peak(viewed=True) == peak(viewed=False)


def test_rotated_caches_are_those_of_the_quantised_types() -> None:
    assert {"f32", "f16", "bf16"}.isdisjoint(llamacpp_graph.ROTATED)

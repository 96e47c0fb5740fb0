"""The compute buffer that llama.cpp reserves: its graph of one prompt batch, run through its allocator.

The graphs are those of src/models/*.cpp as GGML_SCHED_DEBUG=2 printed them in xllamacpp 2026.10.11549: dense and
mixture-of-experts blocks, grouped and latent attention, interleaved sliding windows, flash attention on (AUTO turns it
on wherever the backend can). Of everything else only what changes the buffer is here: biases, scales and norms in place
are not. Lengths are elements, sizes bytes; activations are float32.

Measured against the CPU backend. For CUDA the embedding is looked up on the host and comes in as an input, the rest of
the graph is the same; that its sizes are the same too is read in the source and was not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from poolmgr.core.ggml_allocator import Graph, Node, view
from poolmgr.model.shape import LatentAttention, LayerShape, ModelShape

BATCH = 2048  # -b
MICRO_BATCH = 512  # -ub
ROTATED = frozenset(
    {"q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "iq4_nl"}
)  # caches that are rotated before they are stored
KEY_FIRST = frozenset({"gemma2", "gemma3", "gpt-oss"})  # whose graphs have the key before the value
ROTATION = 64  # rows of the Hadamard matrix that does it, at least; heads that these do not divide are not rotated


class Backend(StrEnum):
    CPU = "CPU"
    CUDA = "CUDA"


@dataclass(frozen=True, slots=True)
class Run:
    """What an engine was asked for. `cells`, `window_cells`: of the caches of one stream, without and with a window.

    `context`: tokens of all slots as they were asked for, before any padding; 0: as many as there are cells.
    """

    cells: int
    window_cells: int
    slots: int
    cache_type: str
    backend: Backend = Backend.CPU
    context: int = 0

    @property
    def tokens(self) -> int:
        """Of the largest batch: a multiple of the slots."""
        tokens = min(self.context or self.cells * self.slots, BATCH, MICRO_BATCH)
        return -(-tokens // self.slots) * self.slots


def compute_bytes(shape: ModelShape, run: Run) -> int:
    """Bytes of the compute buffer. Layers that are like the two before them are left out: they change nothing."""
    builder = _Builder(shape, run)
    layers = list(_distinct(shape.layers))
    for index, layer in enumerate(layers):
        builder.block(layer, last=index == len(layers) - 1)
    return builder.finish()


def _distinct(layers: Sequence[LayerShape]) -> Iterator[LayerShape]:
    def lengths(layer: LayerShape) -> tuple[int, ...]:
        widths = (layer.query_width, layer.key_width, layer.value_width, int(layer.window > 0))
        return (*widths, layer.feed_forward, layer.expert_feed_forward, layer.shared_feed_forward)

    for index, layer in enumerate(layers):
        before = {lengths(other) for other in layers[max(0, index - 2) : index]}
        if index < 2 or index == len(layers) - 1 or before != {lengths(layer)}:
            yield layer


class _Builder:
    """Builds the graph layer by layer. `_rows`: tokens that still matter, only those with an output after the last."""

    def __init__(self, shape: ModelShape, run: Run) -> None:
        self._shape, self._run = shape, run
        self._graph = Graph()
        self._rows = run.tokens
        self._masks: dict[bool, tuple[Node, Node, Node]] = {}
        self._stream = self._embedding()
        self._positions = self._graph.input(4 * run.tokens)
        self._outputs = self._graph.input(4 * run.slots)
        self._rotations: dict[bool, Node] = {}

    def block(self, layer: LayerShape, last: bool) -> None:
        attention = self._latent if self._shape.latent else self._attention
        out = self._matrix(attention(layer, self._norm(self._stream)), self._shape.embedding_length)
        residual = self._stream
        if last:
            self._rows = self._run.slots
            out = self._node("get_rows", self._shape.embedding_length, out, self._outputs)
            residual = self._node("get_rows", self._shape.embedding_length, residual, self._outputs)
        middle = self._node("add", self._shape.embedding_length, out, residual)
        fed = self._feed(layer, self._norm(middle))
        self._stream = self._graph.expand(self._node("add", self._shape.embedding_length, fed, middle))

    def finish(self) -> int:
        logits = self._matrix(self._norm(self._stream), self._shape.vocabulary)
        self._graph.expand(logits)
        return self._graph.reserve()

    def _embedding(self) -> Node:
        """Tokens or ready vectors: both are in the graph, and a mix of the two is."""
        run, size = self._run, 4 * self._shape.embedding_length * self._run.tokens
        if run.backend is Backend.CUDA:
            return self._graph.input(size)
        tokens = self._graph.input(4 * run.tokens)
        self._graph.input(size)
        mixed, vectors, places = (self._graph.input(n) for n in (4 * run.tokens, size, 8 * run.tokens))
        looked_up = self._graph.expand(Node("get_rows", size, (tokens,)))
        copy = Node("dup", size, (vectors,))
        parts = (Node("get_rows", size, (mixed,)), places, copy)
        self._graph.expand(Node("set_rows", size, parts, view_of=copy))
        return looked_up

    def _node(self, operation: str, width: int, *sources: Node) -> Node:
        return Node(operation, 4 * width * self._rows, sources)

    def _matrix(self, node: Node, width: int) -> Node:
        return self._node("mul_mat", width, node)

    def _norm(self, node: Node) -> Node:
        normed = Node("rms_norm", node.size, (node,))
        return Node("mul", node.size, (normed,))

    def _cache(self, layer: LayerShape) -> tuple[Node, Node, Node]:
        """Places of keys, places of values, and the mask, of the cache that this layer uses."""
        windowed = layer.window > 0
        if windowed not in self._masks:
            tokens = self._run.tokens
            cells = self._run.window_cells if windowed else self._run.cells
            # A latent cache has no values of its own.
            indexes = (self._graph.input(8 * tokens), self._graph.input(0 if self._shape.latent else 8 * tokens))
            self._masks[windowed] = (*indexes, self._graph.input(2 * cells * tokens))
        return self._masks[windowed]

    def _rotation(self, layer: LayerShape) -> Node | None:
        """The matrix for a quantised cache, of which each kind of cache has one for its keys and one for its values.

        That of the keys is as large as the powers of two that divide a head allow.
        """
        head = layer.query_width // max(1, self._shape.heads)
        if self._run.cache_type not in ROTATED or not head or head % ROTATION:
            return None
        windowed = layer.window > 0
        if windowed not in self._rotations:
            rows = head & -head
            self._rotations[windowed] = self._graph.input(4 * rows * rows)
            self._graph.input(4 * ROTATION * ROTATION)
        return self._rotations[windowed]

    def _heads(self, layer: LayerShape, node: Node, width: int, roped: bool = True) -> Node:
        """One of query, key and value: projected, normed, turned, and rotated for a quantised cache."""
        node = view(self._matrix(node, width))
        if roped:
            if self._shape.query_key_norm:
                node = self._norm(node)
            node = self._node("rope", width, node, self._positions)
        rotation = self._rotation(layer)
        if rotation is not None:
            node = self._node("mul_mat", width, rotation, view(node))
        return self._graph.expand(node)

    def _store(self, node: Node, places: Node) -> None:
        cache = Node("cache", external=True)
        self._graph.expand(Node("set_rows", 0, (view(node), places, cache), view_of=cache))

    def _read(self, layer: LayerShape, width: int) -> tuple[Node, ...]:
        """Of a float32 cache flash attention needs a float16 copy; others it reads where they are."""
        if self._run.cache_type != "f32":
            return ()
        cells = self._run.window_cells if layer.window else self._run.cells
        return (Node("cpy", 2 * width * cells * self._run.slots),)

    def _attention(self, layer: LayerShape, normed: Node) -> Node:
        query = self._heads(layer, normed, layer.query_width)
        if self._shape.architecture in KEY_FIRST:
            key = self._heads(layer, normed, layer.key_width)
            value = self._heads(layer, normed, layer.value_width, roped=False)
        else:
            value = self._heads(layer, normed, layer.value_width, roped=False)
            key = self._heads(layer, normed, layer.key_width)
        key_places, value_places, mask = self._cache(layer)
        self._store(key, key_places)
        self._store(value, value_places)
        read = (*self._read(layer, layer.key_width), *self._read(layer, layer.value_width))
        out = self._node("flash_attn", layer.query_width, view(query), *read, mask)
        rotation = self._rotation(layer)
        if rotation is not None:
            out = self._node("mul_mat", layer.query_width, rotation, view(out))
        return self._graph.expand(view(out))

    def _latent(self, layer: LayerShape, normed: Node) -> Node:
        latent, heads = self._shape.latent, self._shape.heads
        assert latent is not None
        query = self._graph.expand(self._latent_query(latent, heads, normed))
        both = self._matrix(normed, latent.rank + latent.rope_length)
        squeezed = self._norm(Node("view", 4 * latent.rank * self._rows, (both,), view_of=both))
        turned = self._node("rope", latent.rope_length, view(both), self._positions)
        key = self._graph.expand(self._node("concat", layer.key_width, squeezed, turned))
        places, _, mask = self._cache(layer)
        self._store(key, places)
        # The values are a part of the keys; of a float32 cache each is copied.
        read = (*self._read(layer, layer.key_width), *self._read(layer, latent.rank))
        out = self._node("flash_attn", heads * latent.rank, view(query), *read, mask)
        values = self._matrix(view(out), heads * latent.value_length)
        return self._graph.expand(self._node("cont", heads * latent.value_length, view(values)))

    def _latent_query(self, latent: LatentAttention, heads: int, normed: Node) -> Node:
        if latent.query_rank:
            normed = self._norm(self._matrix(normed, latent.query_rank))
        query = self._matrix(normed, heads * (latent.head_length + latent.rope_length))
        absorbed = self._matrix(view(query), heads * latent.rank)
        turned = self._node("rope", heads * latent.rope_length, view(query), self._positions)
        return self._node("concat", heads * (latent.rank + latent.rope_length), view(absorbed), turned)

    def _feed(self, layer: LayerShape, normed: Node) -> Node:
        if not layer.expert_feed_forward:
            return self._gated(normed, layer.feed_forward)
        out = self._experts(layer, normed)
        if layer.shared_feed_forward:
            shared = self._gated(normed, layer.shared_feed_forward)
            out = self._node("add", self._shape.embedding_length, out, shared)
        return out

    def _gated(self, node: Node, width: int) -> Node:
        gate, up = self._matrix(node, width), self._matrix(node, width)
        return self._matrix(self._node("glu", width, gate, up), self._shape.embedding_length)

    def _experts(self, layer: LayerShape, normed: Node) -> Node:
        """Each token's experts side by side, weighed and added up."""
        used, embedding = max(1, self._shape.experts_used), self._shape.embedding_length
        probabilities = self._node("soft_max", self._shape.experts, self._matrix(normed, self._shape.experts))
        chosen = view(self._node("argsort", self._shape.experts, view(probabilities)))
        weights = self._node("get_rows", used, view(probabilities), chosen)
        weights = self._graph.expand(self._node("div", used, weights))
        gate = self._node("mul_mat_id", used * layer.expert_feed_forward, view(normed), chosen)
        up = self._node("mul_mat_id", used * layer.expert_feed_forward, view(normed), chosen)
        down = self._node("glu", used * layer.expert_feed_forward, gate, up)
        weighed = self._node("mul", used * embedding, self._node("mul_mat_id", used * embedding, down, chosen), weights)
        parts = [self._graph.expand(view(weighed)) for _ in range(used)]
        if used == 1:
            return self._node("cont", embedding, parts[0])
        out = self._node("add", embedding, parts[0], parts[1])
        for part in parts[2:]:
            out = self._node("add", embedding, out, part)
        return out

"""What a model will take on a device, layer by layer, before it is loaded (MEM-1).

The layers of the answer are what an engine can place: the model's blocks, and the output head as a layer of its own at
the end, as llama.cpp counts them. llama.cpp keeps the embedding in host memory; elsewhere it counts with the first.

llama.cpp: weights and caches follow from the headers exactly, and the compute buffer from its own allocator
(`core.llamacpp_graph`); against the CPU backend all three are measured (`bench/estimates.py`). What CUDA adds is not
measured here: it is one constant for its context. vLLM and TGI: weights and caches follow from the headers, the rest
is a formula of sizes that they document, and what was measured of earlier runs corrects it (`factor`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from poolmgr.core.cache_types import LLAMACPP, OTHERS, known, row_bytes
from poolmgr.core.llamacpp_graph import MICRO_BATCH, Backend, Run, compute_bytes
from poolmgr.errors import ClientError, Reason
from poolmgr.model.memory import MemoryEstimate, MemoryQuestion
from poolmgr.model.names import EngineName
from poolmgr.model.plan import LayerProfile, ModelProfile
from poolmgr.model.shape import LayerShape, ModelFormat, ModelShape

MIB = 1 << 20
CELL_PADDING = 256  # llama.cpp, src/llama-context.cpp: n_ctx and each stream's share of it
MAX_TOKENS = 2**31 - 1  # llama.cpp keeps the size of the context in an int32
MAX_SLOTS = 4096
# The driver's own share of a process that uses CUDA: ollama, discover/gpu.go, cudaMinimumMemory.
CUDA_CONTEXT_BYTES = 457 * MIB
PAGE_TOKENS = 16  # vLLM's --block-size: a cache is taken in pages of so many tokens
BATCHED_TOKENS = 8192  # vLLM's --max-num-batched-tokens for a server on a large GPU: its profiling run is so long
# vLLM's own warning (worker/model_runner.py): "CUDA graphs can take additional 1~3 GiB memory per GPU".
CUDA_GRAPH_BYTES = 1024 * MIB


@dataclass(frozen=True, slots=True)
class LlamaCppBuffers:
    """What llama.cpp prints as its model, KV and compute buffer, over all devices."""

    model: int
    kv: int
    compute: int


def estimate(shape: ModelShape, question: MemoryQuestion, factor: float = 1.0) -> MemoryEstimate:
    """`factor`: by which what was measured of earlier runs corrects weights, caches and overhead (MEM-3).

    ClientError: INVALID_ARGUMENT for a question that nobody could answer, BAD_ARGUMENTS for a cache type that the
    engine does not have, MODEL_INVALID for a model that it cannot read.
    """
    _check(shape, question)
    found = _llamacpp(shape, question) if question.engine is EngineName.LLAMACPP else _other(shape, question)
    return found if factor == 1.0 else _corrected(found, factor)


def llamacpp_buffers(shape: ModelShape, question: MemoryQuestion, backend: Backend = Backend.CUDA) -> LlamaCppBuffers:
    """The buffers that llama.cpp prints when it loads the model. Raises as `estimate`.

    On the CPU a tied head is the embedding itself; a GPU has a copy of it, and not the embedding.
    """
    _check(shape, question)
    run = _run(shape, question, backend)
    model = shape.weight_bytes
    if backend is Backend.CUDA and not shape.tied:
        model -= shape.embedding_bytes
    kv = sum(_llamacpp_cache(layer, run) for layer in shape.layers)
    return LlamaCppBuffers(model, kv, compute_bytes(shape, run))


def _check(shape: ModelShape, question: MemoryQuestion) -> None:
    if not 1 <= question.slots <= MAX_SLOTS:
        _refuse(Reason.INVALID_ARGUMENT, f"{question.slots} slots: 1 to {MAX_SLOTS}", slots=question.slots)
    if question.context_length < 0 or question.context_length * question.slots > MAX_TOKENS:
        message = f"{question.slots} slots of {question.context_length} tokens: 0 to {MAX_TOKENS} in all"
        _refuse(Reason.INVALID_ARGUMENT, message, context_length=question.context_length, slots=question.slots)
    if not question.context_length and not shape.context_limit:
        message = "the model does not say how long its context is: ask for one"
        _refuse(Reason.INVALID_ARGUMENT, message, context_length=0)
    if question.engine is EngineName.LLAMACPP and shape.format is not ModelFormat.GGUF:
        _refuse(Reason.MODEL_INVALID, f"llama.cpp reads GGUF, not {shape.format}", path=question.model_path)


def _refuse(reason: Reason, message: str, **numbers: str | int) -> None:
    raise ClientError(reason, message, numbers=numbers)


def _context(shape: ModelShape, question: MemoryQuestion) -> int:
    """Tokens per slot. Unasked, llama-server divides the model's own context among the slots, others do not."""
    if question.context_length:
        return question.context_length
    shared = question.slots if question.engine is EngineName.LLAMACPP else 1
    return max(1, min(shape.context_limit, MAX_TOKENS) // shared)


def _llamacpp(shape: ModelShape, question: MemoryQuestion) -> MemoryEstimate:
    run = _run(shape, question, Backend.CUDA)
    layers = [_llamacpp_layer(shape, layer, run) for layer in shape.layers]
    head = shape.output_bytes + (shape.embedding_bytes if shape.tied else 0)
    layers.append(LayerProfile(head, head))
    logits = 4 * shape.vocabulary * question.slots
    compute = compute_bytes(shape, run)
    lines = (
        *_said(shape, question, run.cache_type),
        f"caches: {run.cells} cells for each of {question.slots} slots, of {run.window_cells} where a window slides"
        if any(layer.window for layer in shape.layers)
        else f"caches: {run.cells} cells for each of {question.slots} slots",
        f"overhead: compute buffer {_mib(compute)} as llama.cpp's allocator lays it out, CUDA's context "
        f"{_mib(CUDA_CONTEXT_BYTES)} by ollama's figure (not measured)",
        f"host memory: embedding {_mib(shape.embedding_bytes)}" + (", of which the head is a copy" * shape.tied),
    )
    return MemoryEstimate(
        _profile(shape, question, layers),
        overhead_bytes=compute + CUDA_CONTEXT_BYTES,
        host_bytes=shape.embedding_bytes + logits,
        activation_bytes=4 * shape.embedding_length,
        explanation=lines,
    )


def _run(shape: ModelShape, question: MemoryQuestion, backend: Backend) -> Run:
    """As src/llama-context.cpp and llama-kv-cache-iswa.cpp divide the context among streams and windows."""
    asked = _context(shape, question) * question.slots
    cells = _padded(_padded(asked) // question.slots)
    window = max((layer.window for layer in shape.layers), default=0)
    kind = known(LLAMACPP, question.cache_type, "f16")
    return Run(cells, _padded(min(cells, window + MICRO_BATCH)), question.slots, kind, backend, asked)


def _padded(tokens: int) -> int:
    return -(-tokens // CELL_PADDING) * CELL_PADDING


def _llamacpp_cache(layer: LayerShape, run: Run) -> int:
    cells = run.window_cells if layer.window else run.cells
    widths = (layer.key_width, layer.value_width)
    return cells * run.slots * sum(row_bytes(LLAMACPP, run.cache_type, width) for width in widths)


def _llamacpp_layer(shape: ModelShape, layer: LayerShape, run: Run) -> LayerProfile:
    window = run.window_cells if layer.window else 0
    return LayerProfile(layer.resident_bytes, _active(shape, layer), _llamacpp_cache(layer, run), window)


def _active(shape: ModelShape, layer: LayerShape) -> int:
    """Weights that one token reads: of the experts only those that it is sent to."""
    experts = layer.expert_bytes
    if shape.experts and shape.experts_used:
        experts = experts * min(shape.experts_used, shape.experts) // shape.experts
    return layer.attention_bytes + layer.dense_bytes + layer.shared_bytes + experts


def _other(shape: ModelShape, question: MemoryQuestion) -> MemoryEstimate:
    """vLLM, and what is built like it: all weights on the devices, caches in pages."""
    kind = known(OTHERS, question.cache_type, "auto")
    layers = [_paged_layer(shape, layer, question, kind) for layer in shape.layers]
    # A tied head reads the embedding where it is, with the first layer.
    layers[0] = replace(
        layers[0],
        resident_bytes=layers[0].resident_bytes + shape.embedding_bytes,
        active_bytes=layers[0].active_bytes + (shape.embedding_bytes if shape.tied else 0),
    )
    layers.append(LayerProfile(shape.output_bytes, shape.output_bytes))
    activations = _activations(shape, question)
    lines = [
        *_said(shape, question, kind),
        f"overhead: activations {_mib(activations)} for {BATCHED_TOKENS} tokens, CUDA graphs {_mib(CUDA_GRAPH_BYTES)}, "
        f"CUDA's context {_mib(CUDA_CONTEXT_BYTES)} (by formula, not measured)",
    ]
    if question.engine is EngineName.VLLM:
        lines.append("this is the least that it needs: vLLM takes gpu_memory_utilization (0.9) of each device")
    return MemoryEstimate(
        _profile(shape, question, layers),
        overhead_bytes=activations + CUDA_GRAPH_BYTES + CUDA_CONTEXT_BYTES,
        activation_bytes=4 * shape.embedding_length,  # hidden state and residual, of 16 bits each
        explanation=tuple(lines),
    )


def _paged_layer(shape: ModelShape, layer: LayerShape, question: MemoryQuestion, kind: str) -> LayerProfile:
    """vLLM, v1/kv_cache_interface.py: a sliding layer keeps its window and what one step brings."""
    context = _context(shape, question)
    window = layer.window + BATCHED_TOKENS if layer.window else 0
    pages = -(-min(context, window or context) // PAGE_TOKENS)
    widths = (layer.key_width, layer.value_width)
    token = sum(row_bytes(OTHERS, kind, width) for width in widths)
    return LayerProfile(
        layer.resident_bytes, _active(shape, layer), pages * PAGE_TOKENS * question.slots * token, window
    )


def _activations(shape: ModelShape, question: MemoryQuestion) -> int:
    """Of the profiling run, 16 bits each: hidden state and residual, queries, keys and values, gate, up and their
    product; and the logits of all slots twice, of 32 bits, for sampling.
    """
    widest = max(
        layer.query_width
        + layer.key_width
        + layer.value_width
        + 3 * (layer.feed_forward + layer.shared_feed_forward + layer.expert_feed_forward * shape.experts_used)
        for layer in shape.layers
    )
    tokens = min(BATCHED_TOKENS, _context(shape, question) * question.slots)
    return 2 * tokens * (2 * shape.embedding_length + widest) + 8 * question.slots * shape.vocabulary


def _profile(shape: ModelShape, question: MemoryQuestion, layers: list[LayerProfile]) -> ModelProfile:
    return ModelProfile(
        tuple(layers),
        name=shape.name,
        context_length=_context(shape, question),
        context_limit=shape.context_limit,
        slots=question.slots,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
    )


def _said(shape: ModelShape, question: MemoryQuestion, cache_type: str) -> Iterator[str]:
    parts = f"in {shape.files} files" if shape.files > 1 else "in one file"
    yield f"weights: {_mib(shape.weight_bytes)} of {shape.architecture} {parts}, {len(shape.layers)} layers"
    if shape.experts:
        yield f"experts: a token reads {shape.experts_used} of {shape.experts}"
    yield f"context: {_context(shape, question)} tokens a slot, cached as {cache_type}"


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"


def _corrected(found: MemoryEstimate, factor: float) -> MemoryEstimate:
    def more(size: int) -> int:
        return math.ceil(size * factor)

    layers = tuple(
        replace(layer, resident_bytes=more(layer.resident_bytes), kv_bytes=more(layer.kv_bytes))
        for layer in found.model.layers
    )
    return replace(
        found,
        model=replace(found.model, layers=layers),
        overhead_bytes=more(found.overhead_bytes),
        factor=factor,
        explanation=(*found.explanation, f"corrected by {factor:.3f}, as earlier runs were measured"),
    )

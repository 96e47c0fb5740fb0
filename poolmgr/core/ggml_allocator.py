"""How much memory ggml's graph allocator needs for a graph, by doing what it does.

llama.cpp reserves its compute buffer by running `ggml_gallocr` over the largest graph that it may compute
(ggml/src/ggml-alloc.c: one free list, best fit, the last block grows, results of some operations in place of an operand
that nobody else reads). What fits where decides the size, so a formula over the model's lengths is off by up to a third
where this is exact. Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64  # of the CPU's buffers; those of CUDA are aligned to 128
BOUNDLESS = 1 << 62
# ggml_op_can_inplace, of the operations that the graphs here have.
IN_PLACE = frozenset({"add", "mul", "div", "scale", "rope", "rms_norm", "soft_max"})


@dataclass(slots=True, eq=False)
class Node:
    """A tensor of the graph. `view_of`: shares the memory of that node. `external`: lives in another buffer.

    The rest is the allocator's own book-keeping.
    """

    operation: str
    size: int = 0
    sources: tuple[Node, ...] = ()
    view_of: Node | None = None
    external: bool = False
    readers: int = 0
    views: int = 0
    offset: int = -1
    allocated: bool = False


class Heap:
    """The free list of one buffer without an end. `peak`: the most that it ever spanned."""

    def __init__(self) -> None:
        self._free: list[tuple[int, int]] = [(0, BOUNDLESS)]  # (offset, length), by offset
        self.peak = 0

    def take(self, size: int) -> int:
        """The offset of a block: the smallest that fits, else the last, which is without an end."""
        size = _aligned(size)
        best = len(self._free) - 1
        for index, (_, length) in enumerate(self._free[:-1]):
            if size <= length <= self._free[best][1]:
                best = index
        offset, length = self._free[best]
        if length == size:
            del self._free[best]
        else:
            self._free[best] = (offset + size, length - size)
        self.peak = max(self.peak, offset + size)
        return offset

    def give(self, offset: int, size: int) -> None:
        """Gives a block back; it joins its free neighbours."""
        size = _aligned(size)
        if not size:  # of a model that lacks a part: nothing was taken
            return
        index = next(i for i, (start, _) in enumerate(self._free) if start > offset)
        after, length = self._free[index]
        if offset + size == after:
            size += length
            del self._free[index]
        if index and sum(self._free[index - 1]) == offset:
            offset, size = self._free[index - 1][0], self._free[index - 1][1] + size
            index -= 1
            del self._free[index]
        self._free.insert(index, (offset, size))


class Graph:
    """Collects nodes in the order of `ggml_build_forward_expand`: operands first, from left to right."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._inputs: list[Node] = []
        self._seen: set[int] = set()

    def input(self, size: int) -> Node:
        """An input. All of them are allocated first, so that nothing overwrites them before they are read."""
        node = Node("input", size)
        self._inputs.append(node)
        return node

    def expand(self, node: Node) -> Node:
        waiting = [(node, 0)]
        while waiting:
            current, place = waiting.pop()
            if place == 0 and id(current) in self._seen:
                continue
            self._seen.add(id(current))
            if place < len(current.sources):
                waiting += [(current, place + 1), (current.sources[place], 0)]
            elif current.operation != "input" and not current.external:
                self._nodes.append(current)
        return node

    def reserve(self) -> int:
        """Bytes of the buffer that the graph needs. To be called once."""
        heap = Heap()
        for node in self._inputs:
            _place(heap, node)
        _count(self._nodes)
        for node in self._nodes:
            _place(heap, node)
            for source in node.sources:
                source.readers -= 1
                _release(heap, source)
        return heap.peak


def view(node: Node) -> Node:
    """Another look at the same memory."""
    return Node("view", node.size, (node,), view_of=node.view_of or node)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _count(nodes: Sequence[Node]) -> None:
    for node in nodes:
        if node.view_of is not None:
            node.view_of.views += 1
        for source in node.sources:
            source.readers += 1


def _place(heap: Heap, node: Node) -> None:
    if node.view_of is not None:
        return
    reused = _reusable(node) if node.operation in IN_PLACE else None
    if reused is not None:
        node.offset = reused.offset
        reused.allocated = False
    else:
        node.offset = heap.take(node.size)
    node.allocated = True


def _reusable(node: Node) -> Node | None:
    """An operand of the same size that nobody else reads. A view is none: it owns no memory."""
    for source in node.sources:
        alone = source.readers == 1 and not source.views
        if source.allocated and source.size == node.size and alone:
            return source
    return None


def _release(heap: Heap, node: Node) -> None:
    """Gives back what nobody reads any more, through the last view of it too."""
    if node.readers or node.views:
        return
    owner = node
    if node.view_of is not None:
        owner = node.view_of
        owner.views -= 1
    if owner.allocated and not owner.readers and not owner.views:
        heap.give(owner.offset, owner.size)
        owner.allocated = False

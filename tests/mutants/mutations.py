"""Small faults to put into the code, by cosmic-ray's operators and one of our own.

cosmic-ray is used as a library: its own runner starts an interpreter and pytest for each fault, which here takes ten
times as long as the tests. mutmut wraps each function in others, which named tuples and slotted classes do not bear.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.operators.provider import OperatorProvider

NEED_ARGUMENTS = ("VariableReplacer", "VariableInserter")

Span = tuple[tuple[int, int], tuple[int, int]]


class RemoveStatement(Operator):
    """Leaves a call out: what `core` does is mostly calls for their effect, which cosmic-ray has no operator for."""

    def mutation_positions(self, node):
        if node.type == "simple_stmt" and node.children[0].type in ("atom_expr", "expr_stmt"):
            call = node.children[0]
            last = call.children[-1]
            if call.type == "atom_expr" and last.type == "trailer" and last.children[0].value == "(":
                yield (call.start_pos, call.end_pos)

    def mutate(self, node, index):
        call = node.children[0]
        node.children[0] = parso.python.tree.Name("pass", call.start_pos, prefix=call.get_first_leaf().prefix)
        return node

    @classmethod
    def examples(cls):
        return (Example("f(x)\n", "pass\n"),)


@dataclass(frozen=True, slots=True)
class Mutation:
    """The `occurrence`-th place of `operator` in the file at `path`, relative to the root of the tree."""

    path: str
    line: int
    column: int
    operator: str
    occurrence: int


@cache
def operators() -> dict[str, Operator]:
    provider = OperatorProvider()
    made = {name: provider[name]() for name in provider if name not in NEED_ARGUMENTS}
    return {**made, "RemoveStatement": RemoveStatement()}


def annotations(source: str) -> list[Span]:
    """Where types are named, which nothing evaluates: every module has `from __future__ import annotations`."""
    nodes: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            nodes.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes.append(node.returns)
    return [((n.lineno, n.col_offset), (n.end_lineno or 0, n.end_col_offset or 0)) for n in nodes if n is not None]


def mutations(path: str, source: str) -> list[Mutation]:
    """All of one file."""
    unevaluated, found = annotations(source), []
    nodes = list(ast_nodes(get_ast(source)))
    for name, operator in operators().items():
        places = (place for node in nodes for place in operator.mutation_positions(node))
        for occurrence, ((line, column), _) in enumerate(places):
            if not any(start <= (line, column) < end for start, end in unevaluated):
                found.append(Mutation(path, line, column, name, occurrence))
    return found


def sample(root: Path, paths: Sequence[str], count: int, seed: str) -> list[Mutation]:
    """`count` of them, at as many places: one of those that are possible at a place, drawn by `seed`.

    A place is a line and column; were all mutations alike, a sum with its eleven other operators would outweigh all.
    """
    places: dict[tuple[str, int, int], list[Mutation]] = {}
    for path in sorted(paths):
        for mutation in mutations(path, (root / path).read_text()):
            places.setdefault((path, mutation.line, mutation.column), []).append(mutation)
    rng = random.Random(seed)
    chosen = rng.sample(sorted(places), min(count, len(places)))
    return [rng.choice(places[place]) for place in sorted(chosen)]


def mutated(mutation: Mutation, source: str) -> str:
    """Raises ValueError where the mutation is none of this source."""
    code = mutate_code(source, operators()[mutation.operator], mutation.occurrence)
    if code is None:
        raise ValueError(f"{mutation} is not in this source")
    return str(code)


def difference(before: str, after: str) -> str:
    """What changed, on one line."""
    pairs = list(_changed(before.splitlines(), after.splitlines()))
    return " | ".join(f"{old.strip()} -> {new.strip()}" for old, new in pairs)


def _changed(before: Sequence[str], after: Sequence[str]) -> Iterator[tuple[str, str]]:
    if len(before) == len(after):
        yield from ((old, new) for old, new in zip(before, after, strict=True) if old != new)
        return
    first = next((n for n, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), 0)
    last = next((n for n, p in enumerate(zip(reversed(before), reversed(after), strict=False)) if p[0] != p[1]), 0)
    yield " ".join(before[first : len(before) - last]), " ".join(after[first : len(after) - last])

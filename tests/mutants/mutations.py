"""Small faults to put into the code, by cosmic-ray's operators and one of our own.

cosmic-ray is used as a library: its own runner starts an interpreter and pytest for each fault, which here takes ten
times as long as the tests. mutmut wraps each function in others, which named tuples and slotted classes do not bear.

What is left out, because no test could tell it, or because every test would, is one of these (`LEFT_OUT`); each is
counted, and nothing else is:

- types, which nothing evaluates under `from __future__ import annotations`;
- `slots=True` of a frozen dataclass: without slots nothing else can be set on it either;
- `is` against `==` where the right side is a member of an enum, of which there is one object: mypy has seen to it that
  the left side is one too, or None;
- `|` in a union of types that a module names, which any other operator ends at the import: a kill that says nothing;
- `|` in the pattern of a `case`, where any other operator is no Python.
"""

from __future__ import annotations

import ast
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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


def _span(node: ast.expr) -> Span:
    return ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0))


def _annotations(tree: ast.Module) -> Iterator[Span]:
    for node in ast.walk(tree):
        named = [node.annotation] if isinstance(node, ast.arg | ast.AnnAssign) else []
        named = [node.returns] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else named
        yield from (_span(n) for n in named if n is not None)


def _slots(tree: ast.Module) -> Iterator[Span]:
    calls = (c for n in ast.walk(tree) if isinstance(n, ast.ClassDef) for c in n.decorator_list)
    for call in calls:
        given = {k.arg: k.value for k in call.keywords} if isinstance(call, ast.Call) else {}
        if {"frozen", "slots"} <= given.keys() and all(ast.unparse(v) == "True" for v in given.values()):
            yield _span(given["slots"])


def _of_enum_members(tree: ast.Module) -> Iterator[Span]:
    """Where the operator stands in `x is Class.MEMBER`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and _is_member(node.comparators[0]):
            yield (_span(node.left)[1], _span(node.comparators[0])[0])


def _is_member(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id[0].isupper()
        and node.attr.isupper()
    )


def _unions(tree: ast.Module) -> Iterator[Span]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp):
            names = [n for n in ast.walk(node.value) if not isinstance(n, ast.BinOp | ast.BitOr | ast.Load)]
            if all(isinstance(n, ast.Name) and n.id[0].isupper() for n in names):
                yield _span(node.value)


def _patterns(tree: ast.Module) -> Iterator[Span]:
    for node in ast.walk(tree):
        if isinstance(node, ast.MatchOr):
            yield ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))


def _any(operator: str) -> bool:
    return True


def _identity(operator: str) -> bool:
    return operator.endswith(("_Is_Eq", "_IsNot_NotEq"))


def _of_bits(operator: str) -> bool:
    return operator.startswith("ReplaceBinaryOperator_BitOr_")


# Why, where, and which operators there.
LEFT_OUT: dict[str, tuple[Callable[[ast.Module], Iterator[Span]], Callable[[str], bool]]] = {
    "a type that nothing evaluates": (_annotations, _any),
    "slots of a frozen dataclass": (_slots, _any),
    "is or == with an enum's member": (_of_enum_members, _identity),
    "a union of types, which fails at the import": (_unions, _any),
    "alternatives of a pattern, which have no other operator": (_patterns, _of_bits),
}


def _all(path: str, source: str) -> Iterator[tuple[Mutation, str]]:
    """Every mutation of one file, with why it is left out, or nothing."""
    tree = ast.parse(source)
    spans = [(why, which, list(where(tree))) for why, (where, which) in LEFT_OUT.items()]
    nodes = list(ast_nodes(get_ast(source)))
    for name, operator in operators().items():
        places = (place for node in nodes for place in operator.mutation_positions(node))
        for occurrence, (at, _) in enumerate(places):
            reasons = (
                why for why, which, found in spans if which(name) and any(start <= at < end for start, end in found)
            )
            yield Mutation(path, *at, name, occurrence), next(reasons, "")


def mutations(path: str, source: str) -> list[Mutation]:
    """All of one file that count."""
    return [mutation for mutation, why in _all(path, source) if not why]


def left_out(root: Path, paths: Sequence[str]) -> Counter[str]:
    """How many do not, by reason."""
    return Counter(why for path in paths for _, why in _all(path, (root / path).read_text()) if why)


def sample(root: Path, paths: Sequence[str], count: int, seed: str) -> list[Mutation]:
    """`count` of them, at as many places: one of those that are possible at a place, drawn by `seed`.

    A place is a line and column; were all mutations alike, a sum with its eleven other operators would outweigh all.
    In no order of files, so that a run that is cut off has still tried a sample of them all.
    """
    places: dict[tuple[str, int, int], list[Mutation]] = {}
    for path in sorted(paths):
        for mutation in mutations(path, (root / path).read_text()):
            places.setdefault((path, mutation.line, mutation.column), []).append(mutation)
    rng = random.Random(seed)
    chosen = rng.sample(sorted(places), min(count, len(places)))
    return [rng.choice(places[place]) for place in chosen]


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

"""The house rules that no linter knows: sizes, the determinism seam, and the few exceptions, by name."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 50
MAX_P90_LINES = 25
MAX_EXCEPTIONS = 8
# "path", "path:function" or "path:class": which rule it breaks, and why it may.
EXCEPTIONS: dict[str, str] = {
    "poolmgr/core/state.py:Pool": "frozen, not slotted: it is copied for every lease, and slots are copied one by one"
}

# Time, randomness and threads reach `core` and `runtime` only through ports.
OUTSIDE = {"os", "subprocess", "time", "random", "secrets", "uuid", "threading", "concurrent", "datetime", "socket"}
SEAM = {"core": OUTSIDE | {"asyncio", "logging"}, "runtime": OUTSIDE}
PRIVATE_IMPORT = re.compile(r"from poolmgr\S* import .*\b(_[a-z]\w*)")


def product_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "poolmgr/**/*.py", "poolmgr/*.py", "ext/**/*.pyx"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [ROOT / name for name in sorted(set(listed.stdout.split())) if not name.startswith("poolmgr/v1/")]


def functions(tree: ast.Module) -> Iterator[tuple[str, int, ast.AST]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1, node


def is_flat_match(node: ast.AST) -> bool:
    """Whether all the branching is one match whose arms are one statement each, plus at most a loop-free rest."""
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    matches = [n for n in node.body if isinstance(n, ast.Match)]
    others = [n for n in node.body if isinstance(n, ast.If | ast.For | ast.While | ast.Try)]
    return len(matches) == 1 and len(others) <= 1 and all(len(case.body) == 1 for case in matches[0].cases)


def seam_breaks(path: Path, tree: ast.Module) -> Iterator[str]:
    package = path.relative_to(ROOT).parts[1]
    banned = SEAM.get(package, set())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            if name.split(".")[0] in banned:
                yield f"{path.relative_to(ROOT)}:{node.lineno} {package} imports {name}"
    if package == "runtime" and path.name != "tasks.py" and "create_task(" in path.read_text():
        yield f"{path.relative_to(ROOT)} makes a task outside runtime/tasks.py"


def problems(files: list[Path]) -> tuple[list[str], list[int]]:
    found: list[str] = []
    lengths: list[int] = []
    for path in files:
        name, text = str(path.relative_to(ROOT)), path.read_text()
        if text.count("\n") > MAX_MODULE_LINES and name not in EXCEPTIONS:
            found.append(f"{name} has {text.count(chr(10))} lines, the limit is {MAX_MODULE_LINES}")
        if path.suffix != ".py":
            continue
        tree = ast.parse(text)
        lines = text.splitlines()
        for function, length, node in functions(tree):
            lengths.append(length)
            where = f"{name}:{function}"
            if length > MAX_FUNCTION_LINES and where not in EXCEPTIONS:
                found.append(f"{where} has {length} lines, the limit is {MAX_FUNCTION_LINES}")
            heading = lines[node.lineno - 1 : node.lineno + 3]  # type: ignore[attr-defined]
            if any("noqa: C901" in line for line in heading) and not is_flat_match(node) and where not in EXCEPTIONS:
                found.append(f"{where} is marked as a flat match and is none")
        found.extend(seam_breaks(path, tree))
        found.extend(f"{name} imports the private {m}" for m in PRIVATE_IMPORT.findall(text))
    return found, lengths


def main() -> int:
    found, lengths = problems(product_files())
    p90 = statistics.quantiles(lengths, n=10)[-1]
    if p90 > MAX_P90_LINES:
        found.append(f"functions: p90 is {p90:.0f} lines, the limit is {MAX_P90_LINES}")
    if len(EXCEPTIONS) > MAX_EXCEPTIONS:
        found.append(f"{len(EXCEPTIONS)} exceptions, the limit is {MAX_EXCEPTIONS}")
    for problem in found:
        print(problem)
    for name, why in EXCEPTIONS.items():
        print(f"exception: {name}: {why}")
    print(f"functions: {len(lengths)}, p90 {p90:.0f} lines")
    print(f"exceptions: {len(EXCEPTIONS)}/{MAX_EXCEPTIONS}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

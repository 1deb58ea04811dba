"""What a Python file imports, read from its text: nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Sources = Mapping[str, str]  # path from the repository's root, with / → text


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, where, and whether it happens as soon as the file is imported."""

    target: str
    line: int
    is_eager: bool


def imports_of(path: str, source: str) -> Iterator[Import]:
    """Every import of a file: statements anywhere in it, and `import_module("…")` with a literal name."""
    yield from _walk(ast.parse(source, path), package_of(path), is_eager=True)


def package_of(path: str) -> list[str]:
    """The package a file's relative imports start from: "a/b/c.py" and "a/b/__init__.py" → ["a", "b"]."""
    return path.split("/")[:-1]


def _walk(node: ast.AST, package: list[str], *, is_eager: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        for target in _targets(child, package):
            yield Import(target, getattr(child, "lineno", 0), is_eager)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                yield from _walk(ast.Module([statement], []), package, is_eager=False)
            yield from _walk(ast.Module(child.orelse, []), package, is_eager=is_eager)
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(child, package, is_eager=is_eager and not is_function)


def _targets(node: ast.AST, package: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        return [f"{module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
            return [node.args[0].value]
    return []


def top(target: str) -> str:
    """The top-level package of a dotted name."""
    return target.partition(".")[0]


def files_run_by(target: str, sources: Sources) -> list[str]:
    """Our files that importing a dotted name runs: each package on the way, and the module itself."""
    parts = target.split(".")
    prefixes = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return [
        path for prefix in prefixes for path in (f"{prefix}/__init__.py", f"{prefix}.py") if path in sources
    ]

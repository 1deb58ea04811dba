"""The house's rules, each a function from sources to a list of breaches, and the order of its floors."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from graphlib import CycleError, TopologicalSorter

from tests.floors.imports import Sources, files_run_by, imports_of, top

PACKAGES = ("kvmerger", "evaluators", "jobs")
HOUSES = (*PACKAGES, "bench", "tests")
FORBIDDEN_INSIDE = {
    "kvmerger": {"evaluators", "jobs"},
    "evaluators": {"kvmerger", "jobs", "torch"},
}
ONLY_IN = {"ray": "jobs/execution/on_ray/", "mlflow": "jobs/tracking/"}
# Each folder imports those behind it in its line, and nobody imports a command (a file of jobs itself).
# fmt: off
ORDER = {
    "jobs": ("runs", "tracking", "gate", "reporting", "analysis", "execution", "results", "planning", "settings", "console"),
    "kvmerger": ("contract", "engine", "policies", "decoding", "prefill", "models", "merging", "kernels", "cache"),
    "evaluators": ("benchmarks", "metrics", "statistics"),
}
# fmt: on
HEAVY = {"torch", "ray", "mlflow", "transformers", "accelerate", "datasets", "gguf", "triton"}
# `--help`, plans, reports and verdicts run on a laptop: the commands and what they read with.
LIGHT_FOLDERS = (
    "jobs",
    "jobs/console",
    "jobs/settings",
    "jobs/planning",
    "jobs/results",
    "jobs/analysis",
    "jobs/analysis/choosing",
    "jobs/analysis/folder",
    "jobs/reporting",
    "jobs/gate",
    "jobs/execution/scheduling",
)
MAX_FILES = 15
CATALOGUES = ("kvmerger/policies/ranking", "evaluators/metrics")  # of one kind, a file each
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
# The public design names this folder, and inside a package it shadows nothing.
NAMED_BY_DESIGN = "evaluators/statistics/"
# Test folders without a folder of the same name in the packages, and what they hold instead of its tests.
BESIDE_THE_MIRROR = {
    "tests/kvmerger/kernels/both": "cases for a GPU and for Triton's interpreter",
    "tests/kvmerger/kernels/interpreter": "the latter",
}


def crossed_floors(sources: Sources) -> list[str]:
    """Imports, lazy ones too, that no file of a package may have."""
    breaches = []
    for path, source in sources.items():
        for found in imports_of(path, source):
            name = top(found.target)
            is_outside = name in ONLY_IN and not path.startswith(ONLY_IN[name])
            if is_outside or name in FORBIDDEN_INSIDE.get(path.split("/")[0], set()):
                breaches.append(f"{path}:{found.line} imports {found.target}")
    return breaches


def climbing(sources: Sources) -> list[str]:
    """Imports, lazy and typing ones too, from a folder into one that stands before it, or of a command."""
    breaches = []
    for path, source in sources.items():
        package, *folders, _ = path.split("/")
        order = ORDER.get(package)
        if order is None or not folders:
            continue
        for found in imports_of(path, source):
            to = next(reversed(files_run_by(found.target, sources)), "")
            if not to.startswith(f"{package}/"):
                continue
            room = to.split("/")[1]
            is_command = package == "jobs" and to.count("/") == 1 and not to.endswith("__init__.py")
            if is_command or (room in order and order.index(room) < order.index(folders[0])):
                breaches.append(f"{path}:{found.line} imports {found.target}")
    return breaches


def circle(sources: Sources, node_of: Callable[[str], str]) -> list[str]:
    """Nodes (files, or the rooms they lie in) of which each imports the next, in a circle; none where there is none."""
    graph: dict[str, set[str]] = {}
    for path, source in sources.items():
        ends = {files[-1] for it in imports_of(path, source) if (files := files_run_by(it.target, sources))}
        graph.setdefault(node_of(path), set()).update(map(node_of, ends))
    try:
        TopologicalSorter({node: ends - {node} for node, ends in graph.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def room_of(path: str) -> str:
    """A file's folder, or the file itself where it lies in a package's top folder."""
    return path if path.count("/") == 1 else path.rpartition("/")[0]


def heavy_at_import(sources: Sources, start: str) -> list[str]:
    """Heavy packages that importing `start` loads, directly or through our own files."""
    breaches, seen, waiting = [], {start}, [start]
    while waiting:
        path = waiting.pop()
        for found in imports_of(path, sources[path]):
            if not found.is_eager:
                continue
            if top(found.target) in HEAVY:
                breaches.append(f"{start} loads {found.target} at {path}:{found.line}")
            new = [file for file in files_run_by(found.target, sources) if file not in seen]
            seen.update(new)
            waiting.extend(new)
    return breaches


def full_rooms(paths: Iterable[str]) -> list[str]:
    """Folders with more files than one remembers, catalogues apart; `__init__.py` is no file to remember."""
    counts = Counter(
        path.rpartition("/")[0] for path in paths if not path.endswith(("__init__.py", "conftest.py"))
    )
    return [
        f"{folder}: {count} files"
        for folder, count in counts.items()
        if count > MAX_FILES and folder not in CATALOGUES
    ]


def without_mirror(paths: Iterable[str]) -> list[str]:
    """Folders of tests of a package that no folder of the package is the original of."""
    folders = {path.rpartition("/")[0] for path in paths}
    tested = {it for it in folders if it.startswith(tuple(f"tests/{house}/" for house in HOUSES))}
    return sorted(tested - {f"tests/{folder}" for folder in folders} - set(BESIDE_THE_MIRROR))


def oversized(sources: Sources) -> list[str]:
    """Files and functions (docstring included) over their limit."""
    breaches = []
    for path, source in sources.items():
        if (num_lines := len(source.splitlines())) > MAX_FILE_LINES:
            breaches.append(f"{path}: {num_lines} lines, at most {MAX_FILE_LINES}")
        for node in ast.walk(ast.parse(source, path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if num_lines > MAX_FUNCTION_LINES:
                    breaches.append(f"{path}:{node.lineno} {node.name}: {num_lines} lines")
    return breaches


def ill_named(sources: Sources) -> list[str]:
    """Files or folders with a name that says nothing, or that shadows a standard-library module."""
    forbidden = VAGUE_NAMES | sys.stdlib_module_names
    judged = {path: path.removeprefix(NAMED_BY_DESIGN) for path in sources}
    return [
        path
        for path, name in judged.items()
        if forbidden & set(name.removesuffix(".py").split("/")) - {"__init__"}
    ]

"""The floors hold: who may import whom, what must stay light, how large and how named a file may be.

Every rule is one function from sources to a list of breaches, and each is shown a breach of its own first,
so a rule that has gone blind fails here instead of passing for ever.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGES = ("kvmerger", "evaluators", "jobs")
FORBIDDEN_INSIDE = {
    "kvmerger": {"evaluators", "jobs"},
    "evaluators": {"kvmerger", "jobs", "torch"},
}
ONLY_IN = {
    "ray": {
        "jobs/execution/on_ray/pool.py",
        "jobs/execution/on_ray/controller.py",
        "jobs/execution/on_ray/answers.py",
        "jobs/execution/on_ray/cluster.py",
    },
    "mlflow": {"jobs/tracking/mlflow_runs.py", "jobs/tracking/mlflow_baseline.py"},
}
HEAVY = {"torch", "ray", "mlflow", "transformers", "accelerate", "datasets", "gguf", "triton"}
LIGHT_FILES = (
    "jobs/settings/schema.py",
    "jobs/planning/plan.py",
    "jobs/execution/scheduling/scheduler.py",
    "jobs/execution/scheduling/failure.py",
    "jobs/results/store.py",
    "jobs/report.py",
    "jobs/reporting/page.py",
    "jobs/analysis/differences.py",
    "jobs/compare.py",
    "jobs/planning/work.py",
    "jobs/nightly.py",
    "jobs/gate/judge.py",
    "jobs/gate/files.py",
    "jobs/gate/baseline.py",
    "jobs/sweep.py",
    "kvmerger/budget.py",
    "kvmerger/variants.py",
)
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
# The public design names this folder, and inside a package it shadows nothing.
NAMED_BY_DESIGN = "evaluators/statistics/"

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


def crossed_floors(sources: Sources) -> list[str]:
    """Imports, lazy ones too, that no file of a package may have."""
    breaches = []
    for path, source in sources.items():
        for found in imports_of(path, source):
            name = top(found.target)
            is_outside = name in ONLY_IN and path not in ONLY_IN[name]
            if is_outside or name in FORBIDDEN_INSIDE.get(path.split("/")[0], set()):
                breaches.append(f"{path}:{found.line} imports {found.target}")
    return breaches


def heavy_at_import(sources: Sources, start: str) -> list[str]:
    """Heavy packages that importing `start` loads, directly or through our own files."""
    assert start in sources, f"{start} is gone: take it off the list or put its successor there"
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


def files_run_by(target: str, sources: Sources) -> list[str]:
    """Our files that importing a dotted name runs: each package on the way, and the module itself."""
    parts = target.split(".")
    prefixes = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return [
        path for prefix in prefixes for path in (f"{prefix}/__init__.py", f"{prefix}.py") if path in sources
    ]


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


@pytest.fixture(scope="module")
def sources(repo_root: Path) -> dict[str, str]:
    """Every Python file of the three packages."""
    files = sorted(file for package in PACKAGES for file in (repo_root / package).rglob("*.py"))
    found = {file.relative_to(repo_root).as_posix(): file.read_text(encoding="utf-8") for file in files}
    assert {top(path.replace("/", ".")) for path in found} == set(PACKAGES)
    return found


def test_packages_do_not_import_across_the_floors(sources: Sources) -> None:
    assert crossed_floors(sources) == []


@pytest.mark.parametrize("path", LIGHT_FILES)
def test_light_file_loads_nothing_heavy(path: str, sources: Sources) -> None:
    assert heavy_at_import(sources, path) == []


def test_files_and_functions_stay_small(sources: Sources) -> None:
    assert oversized(sources) == []


def test_names_say_something_and_shadow_nothing(sources: Sources) -> None:
    assert ill_named(sources) == []


def test_help_loads_nothing_heavy(repo_root: Path) -> None:
    """Run as users run it; a third package that imports torch by itself would show only here."""
    command = [sys.executable, "-X", "importtime", "jobs/sweep.py", "--help"]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--dry-run" in done.stdout
    # One line of stderr per import: "import time: own us | cumulative us | name".
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"argparse"} <= loaded and HEAVY & loaded == set()


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kvmerger/a.py", "from evaluators.item import BenchmarkItem"),
        ("kvmerger/a.py", "import jobs"),
        ("evaluators/a.py", "def f():\n    import torch.nn.functional as F"),
        ("evaluators/metrics/a.py", "from ...kvmerger import budget"),
        ("evaluators/a.py", "if TYPE_CHECKING:\n    from kvmerger.budget import BudgetSpec"),
        ("jobs/planning/plan.py", "def f():\n    from ray import remote"),
        ("jobs/execution/inline.py", "import importlib\nx = importlib.import_module('ray.util')"),
        ("jobs/execution/on_ray/controller.py", "class A:\n    import mlflow"),
    ],
)
def test_import_rule_sees_a_crossed_floor(path: str, source: str) -> None:
    assert len(crossed_floors({path: source})) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "jobs/execution/unit_runner.py",
            "def f():\n    from kvmerger.engine import Engine\nfrom evaluators import registry",
        ),
        ("jobs/execution/on_ray/pool.py", "import ray"),
        ("jobs/tracking/mlflow_runs.py", "import mlflow"),
        ("kvmerger/a.py", "import torch\nfrom . import budget\nimport jobsite\nfrom rays import ray"),
    ],
)
def test_import_rule_leaves_the_rest_alone(path: str, source: str) -> None:
    assert crossed_floors({path: source}) == []


@pytest.mark.parametrize(
    "statement", ["import torch", "try:\n    import ray\nexcept ImportError:\n    ray = None"]
)
def test_light_rule_follows_our_own_files(statement: str) -> None:
    chain = {
        "jobs/planning/plan.py": "from evaluators.prompting import tokenize_item",
        "evaluators/__init__.py": "",
        "evaluators/prompting.py": "class A:\n    from . import registry",
        "evaluators/registry.py": statement,
    }
    assert len(heavy_at_import(chain, "jobs/planning/plan.py")) == 1
    in_package = {"jobs/planning/plan.py": "import kvmerger.budget", "kvmerger/__init__.py": statement}
    assert len(heavy_at_import(in_package, "jobs/planning/plan.py")) == 1


def test_light_rule_allows_lazy_and_typing_imports() -> None:
    lazy = "def f():\n    import ray\ng = lambda: __import__('mlflow')"
    typing_only = "if TYPE_CHECKING:\n    import torch\nelse:\n    import json"
    assert heavy_at_import({"jobs/planning/plan.py": f"{lazy}\n{typing_only}"}, "jobs/planning/plan.py") == []


def test_size_rule_sees_one_line_too_many() -> None:
    def function(num_lines: int) -> str:
        return "def f():\n" + "    x = 1\n" * (num_lines - 1)

    assert oversized({"a.py": function(MAX_FUNCTION_LINES), "b.py": "x = 1\n" * MAX_FILE_LINES}) == []
    assert (
        len(oversized({"a.py": function(MAX_FUNCTION_LINES + 1), "b.py": "x = 1\n" * (MAX_FILE_LINES + 1)}))
        == 2
    )


def test_name_rule_sees_vague_and_shadowing_names() -> None:
    bad = ["jobs/utils.py", "kvmerger/policies/random.py", "evaluators/calendar.py", "kvmerger/common/a.py"]
    assert ill_named(dict.fromkeys([*bad, "kvmerger/__init__.py", "kvmerger/random_keep.py"], "")) == bad

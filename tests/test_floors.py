"""The floors hold: who may import whom, what must stay light, how large and how named a file may be.

Every rule is one function from sources to a list of breaches, and each is shown a breach of its own first,
so a rule that has gone blind fails here instead of passing for ever.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.floors.imports import Sources
from tests.floors.rules import (
    HEAVY,
    HOUSES,
    LIGHT_FOLDERS,
    MAX_FILE_LINES,
    MAX_FILES,
    MAX_FUNCTION_LINES,
    ORDER,
    PACKAGES,
    circle,
    climbing,
    crossed_floors,
    full_rooms,
    heavy_at_import,
    ill_named,
    oversized,
    room_of,
    without_mirror,
)


@pytest.fixture(scope="module")
def house(repo_root: Path) -> dict[str, str]:
    """Every Python file of the three packages, of the benchmarks and of the tests."""
    files = sorted(file for name in HOUSES for file in (repo_root / name).rglob("*.py"))
    found = {file.relative_to(repo_root).as_posix(): file.read_text(encoding="utf-8") for file in files}
    assert {path.partition("/")[0] for path in found} == set(HOUSES)
    return found


@pytest.fixture(scope="module")
def sources(house: Sources) -> dict[str, str]:
    """Every Python file of the three packages."""
    return {path: text for path, text in house.items() if path.startswith(tuple(f"{it}/" for it in PACKAGES))}


def test_packages_do_not_import_across_the_floors(sources: Sources) -> None:
    assert crossed_floors(sources) == []


def test_every_import_between_folders_runs_down(sources: Sources) -> None:
    assert climbing(sources) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_has_its_place_in_the_order(package: str, sources: Sources) -> None:
    inner = {path.split("/")[1] for path in sources if path.startswith(f"{package}/") and path.count("/") > 1}
    assert inner == set(ORDER[package])


def test_there_is_no_circle_of_files_and_none_of_folders(house: Sources) -> None:
    code = {path: text for path, text in house.items() if not path.startswith("tests/")}
    assert circle(code, str) == []
    assert circle(code, room_of) == []


@pytest.mark.parametrize("folder", LIGHT_FOLDERS)
def test_light_folder_loads_nothing_heavy(folder: str, sources: Sources) -> None:
    files = [path for path in sources if path.rpartition("/")[0] == folder]
    assert files, f"{folder} is gone: take it off the list or put its successor there"
    assert [breach for path in files for breach in heavy_at_import(sources, path)] == []


def test_folders_stay_small(house: Sources) -> None:
    assert full_rooms(house) == []


def test_tests_mirror_the_tree(house: Sources) -> None:
    assert without_mirror(house) == []


def test_files_and_functions_stay_small(house: Sources) -> None:
    assert oversized(house) == []


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
    assert heavy_at_import({"jobs/plan.py": f"{lazy}\n{typing_only}"}, "jobs/plan.py") == []


@pytest.mark.parametrize(
    ("path", "source", "is_climbing"),
    [
        ("jobs/results/store.py", "from jobs.analysis.summary import summarize", True),
        ("jobs/planning/plan.py", "def f():\n    from jobs.results import store", True),
        ("jobs/console/paths.py", "from jobs.sweep import main", True),
        (
            "kvmerger/cache/layer_cache.py",
            "if TYPE_CHECKING:\n    from kvmerger.policies.base import Policy",
            True,
        ),
        ("jobs/analysis/summary.py", "from jobs.results import store", False),
        ("jobs/sweep.py", "from jobs.runs.night import Night", False),
        ("kvmerger/policies/base.py", "from kvmerger.cache.layer_cache import LayerCache", False),
    ],
)
def test_order_rule_sees_an_import_that_climbs(path: str, source: str, is_climbing: bool) -> None:
    there = ("jobs/analysis/summary.py", "jobs/results/store.py", "jobs/sweep.py", "jobs/runs/night.py")
    inside = ("kvmerger/policies/base.py", "kvmerger/cache/layer_cache.py")
    packages = [f"{package}/__init__.py" for package in PACKAGES]
    others = dict.fromkeys([*there, *inside, *packages, "jobs/results/__init__.py"], "")
    assert bool(climbing({**others, path: source})) is is_climbing


def test_circle_rule_sees_files_and_folders_that_import_each_other() -> None:
    files = {
        "a/x/b.py": "from a.x import c",
        "a/x/c.py": "def f():\n    import a.x.b",
        "a/d.py": "import a.x.b",
    }
    assert set(circle(files, str)) == {"a/x/b.py", "a/x/c.py"}
    assert circle(files, room_of) == []
    folders = {"a/x/b.py": "import a.y.c", "a/y/c.py": "", "a/y/d.py": "import a.x.b"}
    assert circle(folders, str) == []
    assert set(circle(folders, room_of)) == {"a/x", "a/y"}


def test_room_rule_sees_one_file_too_many_but_in_catalogues() -> None:
    files = [f"jobs/gate/{number}.py" for number in range(MAX_FILES)]
    assert full_rooms([*files, "jobs/gate/__init__.py"]) == []
    assert len(full_rooms([*files, "jobs/gate/more.py"])) == 1
    assert full_rooms([f"evaluators/metrics/{number}.py" for number in range(MAX_FILES + 1)]) == []


def test_mirror_rule_sees_tests_of_no_folder() -> None:
    files = [
        "jobs/gate/judge.py",
        "tests/jobs/gate/test_judge.py",
        "tests/jobs/test_sweep.py",
        "jobs/sweep.py",
    ]
    assert without_mirror([*files, "tests/fakes/rows.py"]) == []
    assert without_mirror([*files, "tests/jobs/gates/test_judge.py"]) == ["tests/jobs/gates"]


def test_size_rule_sees_one_line_too_many() -> None:
    def function(num_lines: int) -> str:
        return "def f():\n" + "    x = 1\n" * (num_lines - 1)

    most = {"a.py": function(MAX_FUNCTION_LINES), "b.py": "x = 1\n" * MAX_FILE_LINES}
    more = {"a.py": function(MAX_FUNCTION_LINES + 1), "b.py": "x = 1\n" * (MAX_FILE_LINES + 1)}
    assert oversized(most) == []
    assert len(oversized(more)) == 2


def test_name_rule_sees_vague_and_shadowing_names() -> None:
    bad = ["jobs/utils.py", "kvmerger/policies/random.py", "evaluators/calendar.py", "kvmerger/common/a.py"]
    assert ill_named(dict.fromkeys([*bad, "kvmerger/__init__.py", "kvmerger/random_keep.py"], "")) == bad

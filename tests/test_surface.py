"""The names people outside import from `kvmerger` and `evaluators` themselves, and that CONTRIBUTING.md needs no more."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import evaluators
import kvmerger

# A name that leaves this list breaks somebody's policy, benchmark or metric: say so in the changelog.
LISTED = {
    "kvmerger": """
        ATTENTION_MASS AttentionReducer Budget BudgetError BudgetSpec BytesLike BytesShare CacheShape CheckResult
        CodeLayout CodedForm DecodeRule DecodeRuleError DecodeStep DecodingPolicy EVICTED Engine Evidence
        EvidenceError Form FormError Generation Grid Groups Heirs InvalidPromptError KEY_NORMS KeptRatio LayerCache
        LayerStates LikeVariant Limits LoadedModel MemoryPoint ModelError ModelInfo NEIGHBOUR_COSINES Need Per PerHead
        Policy PolicyError Prompt Question Reducer RepeatStates Runs ScoredDecodingPolicy ScoringPolicy SelectingPolicy
        SlotCount Targets Variant VariantError VariantFailure VariantSpec attention_mass build_variant check_policy
        first_argmax first_kept_after groups_of heaviest_kept_of_run is_among_highest keep_highest last_kept_before load_model
        load_tokenizer member_weights merge_groups more_similar_neighbour most_similar_kept normalised_weights
        num_slots_for parse_policies protect register register_evidence register_wrapper require_choice
        require_choices require_cosine require_count require_flag require_positive require_ratio require_share
        require_switches run_maxima run_sums runs_of share_of slot_log_mass take_selected whole_runs window_attention
    """,
    "evaluators": """
        Benchmark BenchmarkError BenchmarkItem Combine ItemScore Metric MetricError PartsMetric PromptError QueryMode
        TaskInfo TaskSpec TokenizedPrompt Tokenizer UnknownNameError best_over_answers corpus_score describe_tasks
        list_metrics list_tasks load_items register_benchmark register_metric register_metric_of_parts score score_item
        text_digest tokenize_item
    """,
}
NAMES = {package: listed.split() for package, listed in LISTED.items()}
PACKAGES = {"kvmerger": kvmerger, "evaluators": evaluators}
HEAVY = {"torch", "ray", "mlflow", "transformers", "numpy", "scipy"}
# One file for each policy, benchmark and metric: these are loaded when a name is asked for, and may be written as outside.
CATALOGUES = ("kvmerger/policies/", "evaluators/benchmarks/", "evaluators/metrics/")
SMALLEST_POLICY_LINES = 10

both = pytest.mark.parametrize("package", PACKAGES.values(), ids=list(PACKAGES))


@both
def test_the_surface_is_this_list_and_every_name_can_be_had(package: ModuleType) -> None:
    assert sorted(package.__all__) == sorted(NAMES[package.__name__])
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))


@both
def test_no_name_hides_a_submodule(package: ModuleType) -> None:
    submodules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert submodules and not submodules & set(package.__all__)


@both
def test_type_checkers_see_each_name_where_it_is_loaded_from(package: ModuleType) -> None:
    """mypy reads the imports under TYPE_CHECKING, Python the table: both must say the same."""
    (block,) = (
        node
        for node in ast.parse(Path(package.__file__ or "").read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {
        alias.name: f"{statement.module}"
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
        if alias.asname is None
    }
    assert seen == {name: f"{package.__name__}.{module}" for name, module in package._MODULE_OF_NAME.items()}
    assert sorted(seen) == sorted(package.__all__)


@both
def test_a_misspelt_name_is_answered_with_the_nearest(package: ModuleType) -> None:
    wanted = package.__all__[-1]
    with pytest.raises(AttributeError, match=f"{package.__name__}.*no attribute.*[dD]id you mean '{wanted}'"):
        getattr(package, f"{wanted}s")
    with pytest.raises(ImportError):
        exec(f"from {package.__name__} import {wanted}s")
    assert not hasattr(package, "__wrapped__")


def test_importing_the_packages_loads_nothing_and_submodules_can_be_imported_as_ever() -> None:
    script = f"""
import sys, kvmerger, evaluators
ours = [name for name in sys.modules if name.partition('.')[0] in ('kvmerger', 'evaluators')]
assert sorted(ours) == ['evaluators', 'kvmerger'], ours
assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)
from evaluators import scoring, score
from kvmerger import RESULTS_VERSION, names, parse_policies, policies
import kvmerger.variants
assert kvmerger.variants.parse_policies is parse_policies and evaluators.score is scoring.score
assert 'torch' not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_our_own_light_files_import_past_the_surface(repo_root: Path) -> None:
    """`from kvmerger import Engine` loads torch, and the rules of test_floors.py follow import statements alone."""
    files = [file for name in (*PACKAGES, "jobs") for file in (repo_root / name).rglob("*.py")]
    breaches = [
        f"{file}: {name}"
        for file in files
        if not file.relative_to(repo_root).as_posix().startswith(CATALOGUES)
        for statement in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.ImportFrom) and statement.module in PACKAGES and not statement.level
        for name in (alias.name for alias in statement.names)
        if name in NAMES[statement.module]
    ]
    assert files and not breaches


def code_blocks(page: str) -> list[str]:
    """The Python blocks of a Markdown page."""
    return re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def modules_imported(code: str) -> Iterator[str]:
    """Every module that an import statement of ``code`` names."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "."


def from_inside(code: str) -> list[str]:
    """Modules that code of somebody outside has no business to import."""
    allowed = {*PACKAGES, "torch"}
    return [
        module
        for module in modules_imported(code)
        if module not in allowed and module.partition(".")[0] not in sys.stdlib_module_names
    ]


@pytest.fixture(scope="module")
def blocks(repo_root: Path) -> list[str]:
    return code_blocks((repo_root / "CONTRIBUTING.md").read_text(encoding="utf-8"))


def test_the_readme_needs_the_surface_alone(repo_root: Path) -> None:
    (block,) = code_blocks((repo_root / "README.md").read_text(encoding="utf-8"))
    assert from_inside(block) == []


def test_contributing_needs_the_surface_alone(blocks: list[str]) -> None:
    assert [from_inside(block) for block in blocks] == [[]] * 4
    assert from_inside("from kvmerger.budget import Budget\nimport numpy") == ["kvmerger.budget", "numpy"]


def test_the_smallest_policy_is_ten_lines_and_registers_nothing(blocks: list[str]) -> None:
    smallest = blocks[0]
    # The formatter's blank lines are nobody's work.
    assert sum(bool(line.strip()) for line in smallest.splitlines()) <= SMALLEST_POLICY_LINES
    assert "ScoringPolicy" in smallest and "register" not in smallest


def test_what_contributing_shows_works(blocks: list[str], tmp_path: Path) -> None:
    """In a process of its own: its policies, benchmark and metric must not be registered for all other tests."""
    for name, block in zip(("smallest", "vnorm", "minutes", "starts_with"), blocks, strict=True):
        (tmp_path / f"{name}.py").write_text(block, encoding="utf-8")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "may.txt").write_text("Ada\nWe met at noon.", encoding="utf-8")
    script = """
import minutes, smallest, starts_with, vnorm
from evaluators import TaskSpec, load_items, score
from kvmerger import check_policy
for name in ('smallest:MostAttended', 'vnorm'):
    broken = [result for result in check_policy(name) if not result.is_ok]
    assert not broken, broken
(item,) = load_items(TaskSpec('minutes/chair', data='data'), tokenizer=None)
assert (item.answers, item.context) == (('Ada',), 'We met at noon.')
assert (score('starts_with', ' ada did', ('Ada',)), score('starts_with', 'no', ('Ada',))) == (1.0, 0.0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_policies_that_tests_write_for_users_need_the_surface_alone(repo_root: Path) -> None:
    """A policy inside a test that reaches further in would not notice that a name is missing outside."""
    written = [
        (file.name, node.value)
        for file in sorted((repo_root / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.search(r"^class \w+\(\w*Policy\):", node.value, flags=re.MULTILINE)
    ]
    assert len(written) > 2
    inside = re.compile(r"^\s*(?:from|import) (?:kvmerger|evaluators)\.", flags=re.MULTILINE)
    assert [name for name, code in written if inside.search(code)] == []

"""The paper's tables as configurations: its tasks, budgets and models' limits, planned to the last row without a hub."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from evaluators import registry
from evaluators.item import BenchmarkItem
from jobs.analysis.published_figures import shipped_publications
from jobs.planning.plan import Plan
from jobs.settings.schema import DEMO_CONFIG, Settings, load_settings
from kvmerger.budget import KeptRatio
from kvmerger.building import build_variant, in_slots
from kvmerger.policies.base import CacheShape
from kvmerger.variants import FULL, VariantSpec
from tests.fakes.plans import Model, WordTokenizer, plan_of

LLAMA_2 = Model("Llama-2-7b-chat-hf", "r", "bfloat16", 32, 32, 128, 4096)
CASES = Path(__file__).parents[2] / "evaluators" / "cases"


def settings_of(name: str) -> Settings:
    """The shipped settings, their data in a folder."""
    path = DEMO_CONFIG.parent / f"kvmerger_{name}.yaml"
    num_tasks = len(load_settings(path).tasks)
    return load_settings(path, [f"tasks.{index}.data={CASES / name}" for index in range(num_tasks)])


def items_of(settings: Settings) -> list[BenchmarkItem]:
    tokenizer = WordTokenizer()
    return [item for task in settings.tasks for item in registry.load_items(task.to_spec(), tokenizer)]


def check(settings: Settings) -> Callable[[VariantSpec, int], str | None]:
    """Whether a policy can work on the model, in its own words."""
    policies = {it.label: build_variant(it).policy for it in settings.variants if it.label != FULL}

    def reason(spec: VariantSpec, num_tokens: int) -> str | None:
        policy, shape = policies[spec.label], CacheShape(num_tokens, 32, 32, 128, 2)
        policy.check(shape, in_slots(spec.budget or KeptRatio(1.0), policy, shape, lambda _: 2**30))
        return None

    return reason


def plan(name: str) -> Plan:
    """The plan for items of 5,000 words and blanks, on a model of 4,096 positions."""
    settings = settings_of(name)
    items = [replace(item, context="word " * 2500) for item in items_of(settings)]
    return plan_of(settings, items, model=LLAMA_2, check=check(settings))


@pytest.mark.parametrize("name", ["longbench", "zeroscrolls"])
def test_every_row_can_run_and_leaves_room_for_its_answer(name: str) -> None:
    planned = plan(name)
    assert planned.num_rows == planned.num_items * 9  # three references, three policies at two budgets
    assert [row.impossible_reason for row in planned.rows if row.impossible_reason] == []
    for row in planned.rows:
        assert row.planned is not None and row.planned.tokens.is_truncated
        num_tokens = len(row.planned.tokens.context_ids) + len(row.planned.tokens.tail_ids)
        assert num_tokens + row.item.max_new_tokens <= LLAMA_2.max_positions


@pytest.mark.parametrize(("name", "table"), [("longbench", "LongBench"), ("zeroscrolls", "ZeroSCROLLS")])
def test_tasks_mode_and_policies_are_those_of_the_published_table(name: str, table: str) -> None:
    settings = settings_of(name)
    tables = [it for paper in shipped_publications() for it in paper.tables if it.name.startswith(table)]
    assert tables
    for it in tables:
        assert {task.name for task in settings.tasks} == set(it.tasks)
        assert settings.query_mode == it.query_mode
        ours = {(spec.policy, spec.params, spec.budget) for spec in settings.variants}
        assert {(cell.spec.policy, cell.spec.params, cell.spec.budget) for cell in it.cells} <= ours


def test_models_named_in_the_files_are_those_the_tables_know() -> None:
    names = {name for paper in shipped_publications() for known in paper.models.values() for name in known}
    for path in DEMO_CONFIG.parent.glob("kvmerger_*.yaml"):
        assert load_settings(path).model.name.rpartition("/")[2] in names
        text = path.read_text(encoding="utf-8")
        assert "meta-llama/Llama-2-13b-chat-hf" in text and "mistralai/Mistral-7B-Instruct-v0.2" in text


def test_without_a_hub_validate_says_what_is_missing_in_a_sentence(tmp_path: Path, repo_root: Path) -> None:
    command = [sys.executable, "jobs/sweep.py", "validate", "jobs/configs/kvmerger_longbench.yaml"]
    alone = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(repo_root)}
    result = subprocess.run(command, cwd=repo_root, env=alone, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "model 'meta-llama/Llama-2-7b-chat-hf' could not be loaded" in result.stderr
    assert "HF_TOKEN" in result.stderr and "local folder" in result.stderr

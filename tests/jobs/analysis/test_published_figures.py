"""Published figures: what is not confirmed in a source, or belongs to nothing, does not get in."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.analysis.published_figures import (
    MEAN,
    SHIPPED,
    PublishedError,
    load_publication,
    shipped_publications,
)
from kvmerger.building import build_variant
from kvmerger.variants import FULL

PAPER: dict[str, Any] = {
    "source": "A paper",
    "read_in": {"S": "in a review"},
    "models": {"A model": ["a-model-hf"]},
    "tables": [
        {
            "name": "A table",
            "model": "A model",
            "query_mode": "query_aware",
            "tasks": ["longbench/qasper", "longbench/trec"],
            "cells": [
                {"task": "longbench/qasper", "policy": "full", "score": 20.5, "mark": "S"},
                {"task": "mean", "policy": "kvmerger_paper", "budget": 0.5, "score": 35, "mark": "S"},
            ],
        }
    ],
}


def write(folder: Path, paper: Any = PAPER) -> Path:
    path = folder / "paper.yaml"
    path.write_text(yaml.safe_dump(paper), encoding="utf-8")
    return path


def with_cell(**changes: Any) -> dict[str, Any]:
    """The paper with changes to its second cell."""
    (table,) = PAPER["tables"]
    first, second = table["cells"]
    changed = {key: value for key, value in {**second, **changes}.items() if value is not None}
    return {**PAPER, "tables": [{**table, "cells": [first, changed]}]}


def with_table(**changes: Any) -> dict[str, Any]:
    return {**PAPER, "tables": [PAPER["tables"][0] | changes]}


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    paper = load_publication(write(tmp_path))
    assert [cell.score for cell in paper.tables[0].cells] == [20.5, 35.0]


@pytest.mark.parametrize(
    ("paper", "complaint"),
    [
        (with_cell(mark="M"), "tables.0.cells.1.mark: the mark 'M' is neither S"),
        (with_cell(mark="M"), "from memory alone is not printed as the paper's"),
        (with_cell(mark="M✓"), "confirm the figure in a source, or leave it out"),
        (with_cell(mark="I"), "the mark 'I' is neither S"),
        (with_cell(mark="s"), "the mark 's' is neither S"),
        (with_cell(mark="P"), "`read_in` says nothing of the mark P"),
        (
            with_cell(task="longbench/qaspr"),
            "'longbench/qaspr' is neither 'mean' nor one of the table's tasks",
        ),
        (with_cell(task="longbench/gov_report"), "'longbench/gov_report' is neither"),
        (with_cell(task="longbench/qasper", policy="full", budget=None), "is there 2 times; keep one"),
        (with_cell(budget=None), "'kvmerger_paper' has the budget None; all but 'full' need one"),
        (with_cell(policy="full"), "'full' has the budget 0.5"),
        (with_cell(budget=50), "less than 1, got 50"),
        (with_cell(score=101), "less than or equal to 100, got 101"),
        (with_cell(score="35.02"), "got '35.02'"),
        (with_cell(marks="S"), "unknown key 'tables.0.cells.1.marks' (did you mean 'mark'?)"),
        (with_table(model="Another"), "the model 'Another' of a table is not among `models`: A model"),
        (with_table(tasks=["longbench/qaspr"]), "did you mean 'longbench/qasper'?"),
        (with_table(query_mode="aware"), "'aware' is not one of"),
        (with_table(cells=[]), "tables.0.cells"),
        ({**PAPER, "read_in": {"M": "in our memory"}}, "the mark 'M' is neither S"),
        ({key: value for key, value in PAPER.items() if key != "source"}, "'source' is missing"),
        (["a list"], "a list"),
    ],
)
def test_what_is_not_confirmed_or_not_whole_is_refused(tmp_path: Path, paper: Any, complaint: str) -> None:
    with pytest.raises(PublishedError) as caught:
        load_publication(write(tmp_path, paper))
    assert complaint in str(caught.value) and "paper.yaml" in str(caught.value)


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "paper.yaml").write_text("a: [1")
    with pytest.raises(PublishedError, match="cannot read published figures"):
        load_publication(tmp_path / "paper.yaml")
    with pytest.raises(PublishedError, match="cannot read published figures"):
        load_publication(tmp_path / "missing.yaml")


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_figure_is_of_a_policy_there_is(path: Path) -> None:
    cells = [cell for table in load_publication(path).tables for cell in table.cells]
    assert cells
    for cell in cells:
        assert cell.policy == FULL or build_variant(cell.spec).policy


def test_what_rests_on_memory_alone_is_not_shipped() -> None:
    """The 13B table, and to which budget H2O's second row belongs, stand in no source that we have read."""
    (paper,) = (it for it in shipped_publications() if "2407.08454" in it.source)
    assert not any("13b" in name.casefold() for names in paper.models.values() for name in names)
    llama = next(it for it in paper.tables if it.model.startswith("Llama") and "LongBench" in it.name)
    assert {(cell.policy, cell.budget) for cell in llama.cells} == {
        (FULL, None),
        ("h2o_decode", 0.5),
        ("kvmerger_paper", 0.5),
    }


def test_the_papers_mean_is_printed_as_it_stands_although_its_cells_give_another() -> None:
    (paper,) = (it for it in shipped_publications() if "2407.08454" in it.source)
    ours = [cell for cell in paper.tables[0].cells if cell.policy == "kvmerger_paper"]
    of_tasks = [cell.score for cell in ours if cell.task != MEAN]
    (mean,) = (cell.score for cell in ours if cell.task == MEAN)
    assert len(of_tasks) == 9 and round(sum(of_tasks) / 9, 2) == 35.00 and mean == 35.02

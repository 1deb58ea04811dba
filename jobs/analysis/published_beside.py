"""Published figures beside measured ones: only where model, mode, task, policy and budget are the same.

They are shown, never averaged with ours and never judged, since a paper measured on other prompts than we did.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from evaluators.statistics.intervals import Interval
from jobs.analysis.published_figures import (
    MEAN,
    Publication,
    PublishedCell,
    PublishedTable,
    shipped_publications,
)
from jobs.analysis.summary import ResultSummary, TaskSummary
from jobs.analysis.variant_summary import VariantSummary, mean_of
from jobs.results.grouping import Setting

_PERCENT = 100


@dataclass(frozen=True, slots=True)
class FigureBeside:
    """One published figure and ours; scores 0 to 100. `kept_ratio` is measured, `budget` what the paper calls it.

    `task` is None for the mean of `num_tasks` tasks. `interval` is of our score where that is a mean over the items of
    one task.
    """

    label: str
    policy: str
    task: str | None
    num_tasks: int
    num_items: int
    kept_ratio: float | None
    ours: float
    interval: Interval | None
    published: float
    budget: float | None
    mark: str


@dataclass(frozen=True, slots=True)
class PublishedBeside:
    """The figures of one published table that a setting has as well, and what to know of them."""

    source: str
    table: str
    published_model: str
    our_model: str
    figures: tuple[FigureBeside, ...]
    read_in: Mapping[str, str]
    differs: tuple[str, ...]


def published_beside(
    summary: ResultSummary, setting: Setting, publications: Sequence[Publication] | None = None
) -> tuple[PublishedBeside, ...]:
    """Tables with at least one figure for this setting; of the shipped publications unless others are given.

    Raises:
        PublishedError: a shipped file cannot be used.
    """
    tasks = {task.task: task for task in summary.tasks if task.setting == setting}
    found = []
    for publication in shipped_publications() if publications is None else publications:
        for table in publication.tables:
            if not _is_same_model(setting, publication.models[table.model]) or (
                setting.query_mode != table.query_mode
            ):
                continue
            figures = tuple(_figures(table, tasks))
            if figures:
                marks = {it.mark for it in figures}
                found.append(
                    PublishedBeside(
                        source=publication.source,
                        table=table.name,
                        published_model=table.model,
                        our_model=setting.model_name,
                        figures=figures,
                        read_in={key: words for key, words in publication.read_in.items() if key in marks},
                        differs=(*table.differs, *publication.differs),
                    )
                )
    return tuple(found)


def _is_same_model(setting: Setting, names: Sequence[str]) -> bool:
    """Whether a setting's model is one of those names, in any case."""
    # By the last part of a hub id or folder: mirrors of one model differ in the owner, not in the name.
    ours = setting.model.rstrip("/").rpartition("/")[2].casefold()
    return ours in {name.casefold() for name in names}


def _figures(table: PublishedTable, tasks: Mapping[str, TaskSummary]) -> Iterator[FigureBeside]:
    for cell in table.cells:
        if cell.task == MEAN:
            figure = _mean_figure(
                cell, [tasks[task] for task in table.tasks if task in tasks], len(table.tasks)
            )
        else:
            figure = _task_figure(cell, tasks[cell.task]) if cell.task in tasks else None
        if figure is not None:
            yield figure


def _task_figure(cell: PublishedCell, task: TaskSummary) -> FigureBeside | None:
    variant = _variant_of(cell, task)
    score = None if variant is None else _score_of(variant)
    if variant is None or score is None:
        return None
    return FigureBeside(
        label=variant.label,
        policy=variant.policy,
        task=task.task,
        num_tasks=1,
        num_items=variant.num_finished,
        kept_ratio=variant.kept_ratio,
        ours=_PERCENT * score,
        interval=variant.score if variant.corpus_score is None else None,
        published=cell.score,
        budget=cell.budget,
        mark=cell.mark,
    )


def _mean_figure(cell: PublishedCell, tasks: Sequence[TaskSummary], num_wanted: int) -> FigureBeside | None:
    """Our mean of the same tasks, each weighing the same; None unless all of them are there."""
    # All tasks or nothing: a mean of some of them is no neighbour of the paper's mean of all.
    figures = [figure for task in tasks if (figure := _task_figure(cell, task)) is not None]
    if len(figures) != num_wanted:
        return None
    ratios = [it.kept_ratio for it in figures if it.kept_ratio is not None]
    kept_ratio = statistics.fmean(ratios) if len(ratios) == num_wanted else None
    return FigureBeside(
        label=figures[0].label,
        policy=cell.spec.policy,
        task=None,
        num_tasks=num_wanted,
        num_items=sum(it.num_items for it in figures),
        kept_ratio=kept_ratio,
        ours=statistics.fmean(it.ours for it in figures),
        interval=None,
        published=cell.score,
        budget=cell.budget,
        mark=cell.mark,
    )


def _variant_of(cell: PublishedCell, task: TaskSummary) -> VariantSummary | None:
    """The row with the cell's policy and budget, and no parameters of its own."""
    wanted = cell.spec.canonical()
    for variant in task.variants:
        # As values, not as text: JSON of equal settings may differ in the order of keys.
        asked = (
            variant.policy,
            json.loads(variant.params or "{}"),
            json.loads(variant.budget_asked or "null"),
        )
        if asked == (wanted["policy"], wanted["params"], wanted["budget"]):
            return variant
    return None


def _score_of(variant: VariantSummary) -> float | None:
    """The score, 0 to 1, as papers publish it for the task: the mean over items, or made of corpus means of its parts."""
    return mean_of(variant.score) if variant.corpus_score is None else variant.corpus_score

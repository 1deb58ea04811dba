"""Figures that others published, each with the source it was read in; one known from memory alone is refused.

Nothing here is compared or averaged: see `published_beside`.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from evaluators import registry
from evaluators.prompting import QueryMode
from jobs.results.schema import ResultError
from jobs.settings.errors import explain, nearest_name
from kvmerger.variants import FULL, VariantSpec, parse_policies

SHIPPED = Path(__file__).parents[1] / "published"
MEAN = "mean"  # in place of a task: the mean of all tasks of the table
_MARKS = ("S", "P")


class PublishedError(ResultError):
    """A file of published figures that cannot be used. The message names the key, the value and the remedy."""


def _read_somewhere(mark: object) -> object:
    if mark not in _MARKS:
        memory = "; what is known from memory alone is not printed as the paper's" if mark == "M" else ""
        raise ValueError(
            f"the mark {mark!r} is neither S (read in a secondary source) nor P (in a primary one){memory}: "
            "confirm the figure in a source, or leave it out"
        )
    return mark


def _known_task(task: str) -> str:
    known = registry.list_tasks()
    if task not in known:
        raise ValueError(f"there is no task {task!r}{nearest_name(task, known)}")
    return task


# Before pydantic's own check of the literal, whose message could not say why "M" is refused.
Mark = Annotated[Literal["S", "P"], BeforeValidator(_read_somewhere)]
Task = Annotated[str, AfterValidator(_known_task)]
Words = Annotated[str, Field(min_length=1)]


# `strict` refuses a figure that was written as text. It would refuse a list for a tuple and text for an enum as well, so
# fields of those types take it back with `strict=False`.
class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PublishedCell(_Section):
    """One figure: `score` 0 to 100, as printed. `budget` is the fraction kept by name; none for the full cache."""

    task: str
    policy: Words
    budget: Annotated[float, Field(gt=0, lt=1)] | None = None
    score: Annotated[float, Field(ge=0, le=100)]
    mark: Mark

    @model_validator(mode="after")
    def _budget_of_a_policy(self) -> Self:
        if (self.policy == FULL) != (self.budget is None):
            raise ValueError(f"{self.policy!r} has the budget {self.budget}; all but {FULL!r} need one")
        return self

    @property
    def spec(self) -> VariantSpec:
        """The variant with that name, budget and no parameters."""
        (spec,) = parse_policies(
            [self.policy if self.budget is None else {"name": self.policy, "budget": self.budget}]
        )
        return spec


class PublishedTable(_Section):
    """A table as printed, or what of it was read. `differs`: in what its set-up is not ours, or not known."""

    name: Words
    model: Words
    query_mode: Annotated[QueryMode, Field(strict=False)]
    tasks: Annotated[tuple[Task, ...], Field(min_length=1, strict=False)]
    differs: Annotated[tuple[Words, ...], Field(strict=False)] = ()
    cells: Annotated[tuple[PublishedCell, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="after")
    def _cells_are_of_its_tasks_and_there_once(self) -> Self:
        places = Counter((cell.task, cell.policy, cell.budget) for cell in self.cells)
        for (task, policy, budget), count in places.items():
            if task not in (MEAN, *self.tasks):
                raise ValueError(f"{task!r} is neither {MEAN!r} nor one of the table's tasks")
            if count > 1:
                raise ValueError(f"{policy} at {budget} on {task} is there {count} times; keep one")
        return self


class Publication(_Section):
    """All tables of one source. `models`: a model as the tables call it → names of its weights, in any case.

    `read_in` says in words what each mark means for this source.
    """

    source: Words
    read_in: dict[Mark, Words]
    models: dict[str, Annotated[tuple[Words, ...], Field(min_length=1, strict=False)]]
    differs: Annotated[tuple[Words, ...], Field(strict=False)] = ()
    tables: Annotated[tuple[PublishedTable, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="after")
    def _words_for_all_models_and_marks(self) -> Self:
        for table in self.tables:
            if table.model not in self.models:
                known = ", ".join(self.models)
                raise ValueError(f"the model {table.model!r} of a table is not among `models`: {known}")
        missing = {cell.mark for table in self.tables for cell in table.cells} - self.read_in.keys()
        if missing:
            raise ValueError(f"`read_in` says nothing of the mark {', '.join(sorted(missing))}")
        return self


_SECTIONS: dict[tuple[str, ...], type[BaseModel]] = {
    (): Publication,
    ("tables",): PublishedTable,
    ("tables", "cells"): PublishedCell,
}


# Checking a file takes longer than reading it, and a page asks once for each setting.
@functools.cache
def shipped_publications() -> tuple[Publication, ...]:
    """The publications that come with the package."""
    return tuple(load_publication(path) for path in sorted(SHIPPED.glob("*.yaml")))


def load_publication(path: Path) -> Publication:
    """Read and check one file.

    Raises:
        PublishedError: the file cannot be read, or a key or value in it is missing, unknown or unusable.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Publication.model_validate(raw)
    except ValidationError as error:
        raise PublishedError(explain(error, _SECTIONS, str(path))) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PublishedError(f"cannot read published figures from {str(path)!r}: {error}") from error

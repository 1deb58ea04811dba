"""Which rows belong together, told by the rows alone: one setting, one task, one prefill."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from evaluators.prompting import QueryMode
from jobs.results.schema import Row

ISOLATED = "isolated"


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """What all tables of one comparison share."""

    query_mode: str
    model: str
    model_revision: str
    execution: str

    @property
    def model_name(self) -> str:
        """The model's name, of a local folder its last part, with its revision."""
        name = self.model.rstrip("/").rpartition("/")[2] if self.model.startswith("/") else self.model
        return f"{name}@{self.model_revision}" if self.model_revision else name


def setting_of(row: Row) -> Setting:
    """What a row shares with the rows it may be compared with."""
    return Setting(row["query_mode"], row["model"], row["model_revision"] or "", row["execution"])


def task_of(row: Row) -> str:
    """The task's full name, such as "longbench/qasper"."""
    return f"{row['benchmark']}/{row['task']}"


def prefill_of(row: Row) -> Hashable:
    """A key that rows of one prefill share: fused, of a context of a unit; isolated, of a context under one variant."""
    # With the question in view each item has a prefill of its own. Otherwise items on one text share it, and since a text
    # may be truncated otherwise for another question, the tokens are part of the key.
    is_agnostic = row["query_mode"] != QueryMode.AWARE
    context = (row["cluster_id"], row["context_tokens"]) if is_agnostic else row["item_id"]
    return row["unit_id"], context, row["variant"] if row["execution"] == ISOLATED else ""


def grouped(rows: Iterable[Row], key_of: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by a key, in the order in which the keys first appear."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key_of(row), []).append(row)
    return groups

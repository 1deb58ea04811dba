"""A results folder, read once: the terminal, the page, MLflow, a comparison and the gate are all made of this value.

Its rows are those the folder's latest run owes, under the plan's labels and in its order. What is derived from them is
computed when it is first asked for, and once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import yaml

from evaluators.hints import nearest_name_hint
from jobs.analysis.choosing.certificates import Certificates, Contract, certify
from jobs.analysis.choosing.losses import ChoiceError
from jobs.analysis.differences import Difference, differences_to_full
from jobs.analysis.summary import ResultSummary, summarize
from jobs.planning.work import RowKey
from jobs.results.grouping import task_of
from jobs.results.planned import planned_rows, planned_table
from jobs.results.schema import ResultError, Row
from jobs.results.store import ResultStore
from jobs.settings.file import parsed

_DEFAULT_NAME = "sweep"


@dataclass(frozen=True, eq=False)
class Findings:
    """What a folder holds for its latest plan.

    `table` has the planned rows with every column; without a plan (`planned` is None) all rows count as planned.
    `num_other` rows of the folder belong to other settings. `meta` and `settings_yaml` are empty where none were stored.
    """

    table: pa.Table
    planned: tuple[RowKey, ...] | None = None
    num_other: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)
    settings_yaml: str = ""

    @classmethod
    def read(cls, store: ResultStore) -> Findings:
        """Read the folder. Raises ResultError when a file in it cannot be read; an empty folder has no rows."""
        return cls.of(
            store.read_table(), store.read_plan(), store.read_run_meta(), store.read_settings_text()
        )

    @classmethod
    def of(
        cls,
        stored: pa.Table,
        planned: Sequence[RowKey] | None = None,
        meta: Mapping[str, Any] | None = None,
        settings_yaml: str = "",
    ) -> Findings:
        """The findings of `stored` rows, one of each identity, of which `planned` are owed (None: all of them)."""
        owed = planned_table(stored, planned)
        keys = None if planned is None else tuple(planned)
        return cls(owed, keys, stored.num_rows - owed.num_rows, meta or {}, settings_yaml)

    @cached_property
    def rows(self) -> Sequence[Row]:
        """The rows without their heavy columns, which are most of a folder's bytes."""
        return planned_rows(self.table)

    def rows_with(self, *heavy: str) -> list[Row]:
        """The rows with these heavy columns too. They are not kept here: the caller decides how long they live."""
        # Light values are shared with `rows`, so that a second list of rows costs its heavy columns and little more.
        extra = self.table.select(list(heavy)).to_pylist()
        return [{**row, **more} for row, more in zip(self.rows, extra, strict=True)]

    @cached_property
    def summary(self) -> ResultSummary:
        """Every table, and where each planned row went."""
        num_planned = len(self.rows) if self.planned is None else len(self.planned)
        return summarize(self.rows, num_planned, self.num_other)

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """Every variant against the full cache, with verdicts."""
        # Resamples every comparison, which takes far longer than the tables: computed only for who shows it.
        return differences_to_full(self.rows)

    @cached_property
    def certificates(self) -> Certificates | None:
        """What the rows certify under the default contract; None where they cannot tell, as without the full cache."""
        try:
            return certify(self.rows, Contract())
        except ChoiceError:
            return None

    def of_task(self, task: str) -> Findings:
        """The findings of one task alone, of its items that have a row. Raises ResultError for a task that is not there."""
        tasks = list(map(task_of, self.rows))
        if task not in tasks:
            raise ResultError(
                f"there is no task {task!r} in these results. {nearest_name_hint(task, set(tasks))}"
            )
        items = {row["item_id"] for row, name in zip(self.rows, tasks, strict=True) if name == task}
        keys = None if self.planned is None else tuple(it for it in self.planned if it.item_id in items)
        taken = self.table.filter(pa.array([name == task for name in tasks]))
        return replace(self, table=taken, planned=keys)

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The stored settings; empty when there are none, or none that are YAML."""
        try:
            loaded = parsed(self.settings_yaml)
        except yaml.YAMLError:
            return {}  # an edited file must not keep anybody from a report of sound rows
        if not isinstance(loaded, Mapping):
            return {}
        # Nor what stands in the place of a text or a section.
        kinds: Mapping[str, type] = {"name": str, "tracking": dict}
        return {key: value for key, value in loaded.items() if isinstance(value, kinds.get(key, object))}

    @property
    def name(self) -> str:
        """The sweep's name, of its settings or else of its rows."""
        of_rows = self.rows[0]["sweep"] if self.rows else _DEFAULT_NAME
        return str(self.settings.get("name", of_rows))

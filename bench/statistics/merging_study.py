"""Does merging beat evicting to the same slots? Chosen on one half of the items, confirmed on the other.

    python -m bench.statistics.merging_study RESULTS        (the folder of jobs/configs/merging_study.yaml)

In the first table both sides hold the same tokens' slots in every layer and head, so what differs is what is in them. In
the second the slots differ as well, and only their number over the whole model is the same.

Contexts, not items, are put into halves, by a digest that no result can influence. A task takes part only if the full
cache beats having no context on all its items by an interval above 0. Families (LongBench, RULER at each length) weigh
the same; within one, items do. Negative differences are better: KL to the full cache and NLL of the gold answer are losses.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from evaluators.statistics.intervals import Interval
from evaluators.statistics.macro_average import TaskPairs, macro_difference, macro_test
from evaluators.statistics.paired_tests import holm
from evaluators.statistics.skewed import skewed_macro_difference
from jobs.analysis.pairing import ANSWER_NLL, ComparedMetric, pair
from jobs.analysis.variant_summary import NllScale
from jobs.results.grouping import grouped, task_of
from jobs.results.planned import planned_rows
from jobs.results.schema import Row
from jobs.results.store import ResultStore

KL = ComparedMetric("kl_mean", "KL", is_higher_better=False, unit_factor=1)
METRICS = (KL, ANSWER_NLL)
HALVES = ("chosen on", "confirmed on")
_OTHER_SLOTS = {
    "pivots": ("h2o", "protected"),
    "pivots.both": ("pivots",),
    "protected": ("h2o",),
    "h2o": ("snapkv",),
    "blend": ("snapkv",),
    "blend+comp": ("snapkv", "h2o"),
    "kvmerger": ("h2o",),
    "kvmerger-attn": ("h2o", "snapkv", "blend+comp"),
}
"""What a variant's name is compared with beyond its own slots."""


@dataclass(frozen=True, slots=True)
class Found:
    """One merged variant against its reference: the difference in each metric on each half, None where there is none."""

    label: str
    reference: str
    interval_by: Mapping[tuple[str, str], Interval]
    p_by: Mapping[tuple[str, str], float]

    def is_better_on(self, half: str) -> bool:
        """Whether both metrics' intervals lie below 0."""
        intervals = [self.interval_by[half, metric.name] for metric in METRICS]
        return all(it.high is not None and it.high < 0 for it in intervals)


def same_slots(label: str) -> str | None:
    """The label that keeps the same tokens and merges nothing: what is before a `+`, or KVMerger's pivots."""
    name, _, budget = label.rpartition("@")
    stem = name.partition("-")[0]  # what follows a dash says how members are merged
    if "+" in name:
        return f"{name.rpartition('+')[0]}@{budget}"
    return f"{stem.replace('kvmerger', 'pivots')}@{budget}" if stem.startswith("kvmerger") else None


def other_slots(label: str) -> list[str]:
    """Labels of the same budget that keep other tokens."""
    name, _, budget = label.rpartition("@")
    return [f"{other}@{budget}" for other in _OTHER_SLOTS.get(name, ())]


def half_of(row: Row) -> str:
    """Which half the row's context belongs to: the same for all items and variants on it."""
    # Not `hash`, which is another for the same text in every process.
    return HALVES[zlib.crc32(str(row["cluster_id"]).encode()) % 2]


def family_of(row: Row) -> str:
    """LongBench as a whole, RULER by length."""
    return "longbench" if row["benchmark"] == "longbench" else f"ruler/{row['task'].partition('/')[0]}"


def rows_with_scale(rows: Sequence[Row]) -> tuple[list[Row], list[str], list[str]]:
    """Rows of the tasks that may speak, those tasks, and the others."""
    kept: list[Row] = []
    tasks: dict[bool, list[str]] = {True: [], False: []}
    for task, of_task in grouped(rows, task_of).items():
        is_usable = NllScale.of(grouped(of_task, lambda row: str(row["variant"]))).is_usable
        tasks[is_usable].append(task)
        kept += of_task if is_usable else []
    return kept, tasks[True], tasks[False]


def study(rows: Sequence[Row], references_of: Callable[[str], Sequence[str]]) -> list[Found]:
    """Every variant against every reference it has among the rows, in their order."""
    by_label = grouped(rows, lambda row: str(row["variant"]))
    return [
        _compare(label, reference, by_label)
        for label in by_label
        for reference in references_of(label)
        if reference in by_label
    ]


def _compare(label: str, reference: str, by_label: Mapping[str, Sequence[Row]]) -> Found:
    interval_by, p_by = {}, {}
    for half in HALVES:
        for metric in METRICS:
            strata = _strata(by_label[label], by_label[reference], metric, lambda row: half_of(row) == half)  # noqa: B023
            # A few items carry a mean of KL, and Student's t misses it too often.
            difference = skewed_macro_difference if metric is KL else macro_difference
            interval_by[half, metric.name] = difference(strata).interval
            p_by[half, metric.name] = macro_test(strata).p_value
    return Found(label, reference, interval_by, p_by)


def _strata(
    policy: Sequence[Row], reference: Sequence[Row], metric: ComparedMetric, is_wanted: Callable[[Row], bool]
) -> list[TaskPairs]:
    families = dict.fromkeys(family_of(row) for row in policy)
    pairs = [
        pair(
            [row for row in policy if family_of(row) == family and is_wanted(row)],
            [row for row in reference if family_of(row) == family and is_wanted(row)],
            metric.column,
        )
        for family in families
    ]
    return [it.task_pairs for it in pairs if it.item_ids]


def render(title: str, found: Sequence[Found]) -> Table:
    """Differences of both halves; those chosen on the first half carry Holm's p on the second."""
    chosen = [it for it in found if it.is_better_on(HALVES[0])]
    adjusted = holm(
        {
            (it.label, it.reference, metric.name): it.p_by[HALVES[1], metric.name]
            for it in chosen
            for metric in METRICS
        }
    )
    table = Table(title=title, title_justify="left")
    for head in ("variant", "against", *(f"{m.name}, {half}" for half in HALVES for m in METRICS), "verdict"):
        table.add_column(head)
    for it in sorted(found, key=lambda one: one.interval_by[HALVES[0], KL.name].mean):
        cells = [_shown(it.interval_by[half, metric.name]) for half in HALVES for metric in METRICS]
        is_significant = it in chosen and all(
            adjusted[it.label, it.reference, metric.name].is_significant for metric in METRICS
        )
        table.add_row(it.label, it.reference, *cells, _verdict(it, it in chosen, is_significant))
    return table


def _verdict(it: Found, is_chosen: bool, is_significant: bool) -> str:
    if not is_chosen:
        return ""
    return "confirmed" if it.is_better_on(HALVES[1]) and is_significant else "not confirmed"


def _shown(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.mean:+.4f}"
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def main() -> None:
    """Print the table of a finished study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results_dir", type=Path)
    store = ResultStore(parser.parse_args().results_dir)
    table, plan = store.read_table(), store.read_plan()
    rows, used, left_out = rows_with_scale(planned_rows(table, plan))
    console = Console(width=220)
    num_items = len({row["item_id"] for row in rows})
    console.print(f"{num_items} items of {len(used)} tasks: {', '.join(used)}")
    console.print(
        f"left out, because the full cache does not beat no context there: {', '.join(left_out) or 'none'}"
    )
    tables = {
        "merged - evicted, the same tokens' slots (negative: merging is better)": lambda label: (
            [reference] if (reference := same_slots(label)) else []
        ),
        "other slots, as many of them (negative: the variant is better)": other_slots,
    }
    for title, references_of in tables.items():
        console.print(render(title, study(rows, references_of)))


if __name__ == "__main__":
    main()

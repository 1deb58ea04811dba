"""A finished sweep as numbers under keys that can be compared and charted: those of the report, from the same rows.

Under a mean stand the ends of its 95 % interval, cut to the values the quantity can take. `delta/…` is score - the full
cache's score on the same items (0 to 1), `delta_nll/…` the same of the answer NLL; `…/mean` is the mean over tasks, also
where there is one, so that all sweeps are listed by the same keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from evaluators.statistics.intervals import Interval
from jobs.analysis.differences import Difference
from jobs.analysis.pairing import SCORE
from jobs.analysis.summary import MacroMean, ResultSummary
from jobs.analysis.variant_summary import VariantSummary
from jobs.console.addresses import hidden_in
from jobs.planning.work import RowKey
from jobs.reporting.headline import verdict_counts
from jobs.results.grouping import grouped, task_of
from jobs.results.schema import DONE_STATUSES, Row
from jobs.tracking import metrics as what
from jobs.tracking.metrics import (
    HIGH,
    LOW,
    MetricPoint,
    Ranking,
    Readings,
    is_finite,
    mean_numbers,
    metric_key,
    time_ms_of,
    trace_points,
)
from kvmerger.variants import FULL, REFERENCE_LABELS

_MEAN = "mean"  # stands where a task's name would
_DELTA, _DELTA_NLL = "delta", "delta_nll"
_BEST = "best"
_TOLD_OF_BEST = (
    what.SCORE,
    what.ANSWER_NLL,
    what.NLL_RECOVERED,
    what.KL,
    what.HELD_BYTES,
    what.HELD_SHARE,
    what.KEPT_RATIO,
)


def sweep_readings(
    summary: ResultSummary, differences: Sequence[Difference], rows: Sequence[Row]
) -> Readings:
    """The numbers of the sweep's own run: how many planned rows ended how, the headline's counts, and the best policy's."""
    counts: dict[str, float | None] = {
        "rows/planned": summary.num_planned,
        "rows/ok": summary.num_ok,
        "rows/truncated": summary.num_truncated,
        "rows/failed": summary.num_failed,
        "rows/missing": summary.num_missing,
    }
    found = counts | _verdict_counts(summary, differences) | _of_best(best_policy(summary))
    return Readings(_finite(found), len(rows), _newest_ms(rows))


def variant_readings(
    summary: ResultSummary, differences: Sequence[Difference], rows: Sequence[Row]
) -> dict[str, Readings]:
    """Label → all its numbers. `rows` are the ones `summary` and `differences` were made of."""
    found = {}
    for label, of_label in grouped(rows, lambda row: str(row["variant"])).items():
        values: dict[str, float | None] = {**mean_numbers(of_label), **_row_counts(of_label)}
        for task in summary.tasks:
            for variant in (it for it in task.variants if it.label == label):
                values |= _of_task(task.task, variant)
        for setting in summary.settings():
            means = (it for it in summary.macro_means(setting) if it.label == label)
            values |= {metric_key(name, _MEAN): value for it in means for name, value in _of_mean(it).items()}
        values |= _deltas(label, differences, _only_task(summary))
        found[label] = Readings(_finite(values), len(of_label), _newest_ms(of_label))
    return found


def listed_keys(summary: ResultSummary) -> list[str]:
    """The few numbers that a list of variants shows, means over the tasks; what ranks it is among them."""
    # MLflow sorts columns by name and shows three in a window of 1400 px, so no fourth may come between these.
    measures = (what.HELD_SHARE, what.ANSWER_NLL, what.SCORE)
    keys = [metric_key(measure, _MEAN) for measure in measures] if summary.tasks else []
    by = ranking(summary)
    return [*keys, by.key] if by is not None and by.key not in keys else keys


def ranking(summary: ResultSummary) -> Ranking | None:
    """By answer NLL, which tells variants apart soonest; by score or KL where there is none; None without any of them."""
    measured = {
        name for mean in _policy_means(summary) for name, value in _of_mean(mean).items() if is_finite(value)
    }
    found = next((it for it in _RANKED if it.key in measured), None)
    return None if found is None else found._replace(key=metric_key(found.key, _MEAN))


def best_policy(summary: ResultSummary) -> MacroMean | None:
    """The first by `ranking`, of equal ones that with the fewest bytes; not that it is told apart from the others."""
    by = ranking(summary)
    if by is None:
        return None
    name = by.key.partition("/")[0]
    ranked = [(mean, _of_mean(mean)) for mean in _policy_means(summary)]

    def place(it: tuple[MacroMean, Mapping[str, float | None]]) -> tuple[float, float, str]:
        value, share = it[1][name], it[1][what.HELD_SHARE]
        assert value is not None
        return value if by.is_less_better else -value, math.inf if share is None else share, it[0].label

    return min((it for it in ranked if is_finite(it[1][name])), key=place)[0]


def charted_traces(
    rows: Sequence[Row], planned: Sequence[RowKey] | None = None
) -> dict[str, list[list[MetricPoint]]]:
    """Label → a trace for each task, thinned: of the first item, in the plan's order, that the full cache finished.

    None yet for a task whose first item of `planned` has no row: MLflow would keep the other item's chart for ever.
    """
    # The first, not the most complete: it stays the same item when the sweep goes on with more items or variants.
    traced = [row for row in rows if row["status"] in DONE_STATUSES and row["trace"] not in (None, "[]")]
    # Reversed, so that of a task's items the first one is written last and stays.
    first = {task_of(row): row["item_id"] for row in reversed(traced) if row["variant"] == FULL}
    for task in _not_begun(rows, planned or ()):
        first.pop(task, None)
    charted: dict[str, list[list[MetricPoint]]] = {}
    for row in traced:
        if first.get(task_of(row)) == row["item_id"]:
            charted.setdefault(row["variant"], []).append(trace_points(row))
    return charted


def _not_begun(rows: Sequence[Row], planned: Sequence[RowKey]) -> set[str]:
    """Tasks that have rows, and perhaps not those of their first item."""
    task_by_identity = {row["identity"]: task_of(row) for row in rows}
    begun: set[str] = set()
    not_begun: set[str] = set()
    is_after_a_gap = False
    for key in planned:
        if key.label != FULL:
            continue
        task = task_by_identity.get(key.identity)
        # A row that is missing is of its neighbours' task, that before it or that behind it.
        if task is not None and task not in begun:
            begun.add(task)
            not_begun |= {task} if is_after_a_gap else set()
        is_after_a_gap = task is None
    return not_begun


def flat_params(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `section.key` → text, lists by their place; passwords in addresses are taken out."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        nested = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(nested, Mapping):
            flat |= flat_params({str(inner): it for inner, it in nested.items()}, f"{name}.")
        else:
            flat[metric_key(name)] = str(hidden_in(str(value)))
    return flat


_RANKED = (Ranking(what.ANSWER_NLL, True), Ranking(what.SCORE, False), Ranking(what.KL, True))


def _of_task(task: str, variant: VariantSummary) -> dict[str, float | None]:
    values = {
        **_with_ends(metric_key(what.SCORE, task), variant.score_interval, 0.0, 1.0),
        **_with_ends(metric_key(what.ANSWER_NLL, task), variant.answer_nll, 0.0, math.inf),
        **_with_ends(metric_key(what.KL, task), variant.kl, 0.0, math.inf),
        **_with_ends(metric_key(what.TOP1, task), variant.top1_agreement, 0.0, 1.0),
    }
    return values | {
        metric_key(what.NLL_RECOVERED, task): variant.nll_recovered,
        metric_key(what.PUBLISHED_SCORE, task): variant.corpus_score,
    }


def _deltas(label: str, differences: Sequence[Difference], only_task: str | None) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    for it in differences:
        if it.paired is None or label not in (it.label, FULL):
            continue
        name, reach = (_DELTA, 1.0) if it.metric is SCORE else (_DELTA_NLL, math.inf)
        # The full cache differs from itself by 0 on every item; MLflow shows what is absent as NaN.
        interval = (
            it.paired.interval if label == it.label else replace(it.paired.interval, mean=0, low=0, high=0)
        )
        for where in {it.task or _MEAN, _MEAN if it.task == only_task else it.task or _MEAN}:
            values |= _with_ends(metric_key(name, where), interval, -reach, reach)
    return values


def _only_task(summary: ResultSummary) -> str | None:
    tasks = {task.task for task in summary.tasks}
    return tasks.pop() if len(tasks) == 1 else None


def _policy_means(summary: ResultSummary) -> list[MacroMean]:
    """The means over tasks of all variants that are no references."""
    means = (mean for setting in summary.settings() for mean in summary.macro_means(setting))
    return [mean for mean in means if mean.label not in REFERENCE_LABELS]


def _of_best(best: MacroMean | None) -> dict[str, float | None]:
    values = {} if best is None else _of_mean(best)
    return {metric_key(_BEST, name): values[name] for name in _TOLD_OF_BEST if name in values}


def _verdict_counts(summary: ResultSummary, differences: Sequence[Difference]) -> dict[str, float | None]:
    """Of how many variants the headline says what; nothing where it cannot say that of any."""
    # Of several settings there would be several counts under one name; what is mirrored has one.
    counts = verdict_counts(summary.tasks, differences) if len(summary.settings()) == 1 else None
    return {} if counts is None else {f"verdicts/{name}": float(it) for name, it in counts._asdict().items()}


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    # MLflow takes NaN and shows an infinity as the largest float, so neither is sent.
    return {key: float(value) for key, value in values.items() if is_finite(value)}


def _of_mean(mean: MacroMean) -> dict[str, float | None]:
    """Name, as yet without a place → value."""
    return {
        what.SCORE: mean.score,
        what.ANSWER_NLL: mean.answer_nll,
        what.NLL_RECOVERED: mean.nll_recovered,
        what.KL: mean.kl,
        what.TOP1: mean.top1_agreement,
        what.KEPT_RATIO: mean.kept_ratio,
        what.KV_BYTES: mean.kv_bytes,
        what.HELD_BYTES: mean.storage.held_bytes,
        what.HELD_SHARE: mean.storage.held_share,
        what.READ_SHARE: mean.storage.read_share,
        what.POSITION_BYTES: mean.storage.position_bytes,
        what.BITS_K: mean.storage.bits_k,
        what.BITS_V: mean.storage.bits_v,
    }


def _with_ends(key: str, interval: Interval | None, lowest: float, highest: float) -> dict[str, float | None]:
    if interval is None:
        return {}
    # Student's t may end where no score or probability can.
    low, high = (
        None if end is None else min(max(end, lowest), highest) for end in (interval.low, interval.high)
    )
    return {key: interval.mean, f"{key}/{LOW}": low, f"{key}/{HIGH}": high}


def _row_counts(rows: Sequence[Row]) -> dict[str, float]:
    counts = {f"rows/{status}": 0.0 for status in ("ok", "truncated", "failed")}
    for row in rows:
        counts[f"rows/{row['status']}"] += 1
    return counts


def _newest_ms(rows: Sequence[Row]) -> int:
    return max(map(time_ms_of, rows), default=0)

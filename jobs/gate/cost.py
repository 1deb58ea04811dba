"""Speed and memory tonight against the baseline, item by item.

Speed is compared in isolated rows alone; speed and peak bytes only between rows of one device whose name is known. An
item's seconds are its policy's own prefill, compression and decoding; ratios are compared, on their logarithms. Bytes are
measured, not sampled, so nothing is inferred from them; those that a step reads are compared where they are not those held.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence

from evaluators.statistics.macro_average import TaskPairs
from jobs.analysis.pairing import Pairs, pair
from jobs.gate.check import BASELINE, TONIGHT, Check, TaskSides, Verdict, worst_of
from jobs.gate.paired import PairedTask, Scale, paired_check
from jobs.reporting.notation import shown_device
from jobs.results.grouping import ISOLATED
from jobs.results.schema import DONE_STATUSES, Row
from jobs.results.stored_bytes import reads_otherwise
from jobs.settings.gate import MarginSettings
from kvmerger.variants import FULL, FULL_AA

_PERCENT = 100
_COLUMN = "log_seconds"
# The batch of an isolated run is the policy's own.
_PHASES = ("prefill_s", "repeat_s", "compress_s", "decode_shared_s")
_NOT_ISOLATED = "rows are fused: set `execution: isolated`"
_PEAK, _READ = "peak_bytes", "read_bytes"
_METRICS = {"kv_bytes": "KV bytes", _READ: "bytes read", _PEAK: "peak bytes"}


def speed_checks(sides: Sequence[TaskSides], labels: Sequence[str], margins: MarginSettings) -> list[Check]:
    """A check per variant and task."""
    # On logarithms an item that takes twice as long and one that takes half cancel out; as ratios they would not.
    margin = math.log1p(margins.speed_percent / _PERCENT)
    scale = Scale("speed", "seconds", "%", margin, lambda loss: _PERCENT * math.expm1(loss))
    return [_speed_check(it, label, scale) for label in labels for it in sides]


def _speed_check(sides: TaskSides, label: str, scale: Scale) -> Check:
    tonight, baseline = (_timed(of.get(label, ())) for of in (sides.tonight, sides.baseline))
    reason = _why_not_measured(tonight, baseline)
    pairs = pair(tonight, baseline, _COLUMN, names=(TONIGHT, BASELINE))
    if reason or not pairs.item_ids:
        return Check(
            kind=scale.kind,
            metric=scale.metric,
            unit=scale.unit,
            label=label,
            task=sides.task,
            margin=scale.shown(scale.margin),
            verdict="not measured" if reason else "inconclusive",
            reason=reason or "no item has the number on both sides",
            dropped=dict(pairs.dropped),
        )
    noise = _noise(sides.baseline)
    task = PairedTask(
        sides.task,
        pairs.item_ids,
        _gains(pairs),
        _gains(noise) if noise.item_ids else None,
        dict(pairs.dropped),
    )
    return paired_check(scale, label, [task])


def _timed(rows: Sequence[Row]) -> list[Row]:
    return [{**row, _COLUMN: _log_seconds(row)} for row in rows]


def _log_seconds(row: Row) -> float | None:
    if row["status"] not in DONE_STATUSES or row["execution"] != ISOLATED or not row.get("seconds"):
        return None
    seconds = json.loads(row["seconds"])
    # Absent phases did not happen, such as the compression of the full cache.
    total = sum(seconds.get(phase, 0.0) for phase in _PHASES)
    return math.log(total) if total > 0 else None


def _why_not_measured(tonight: Sequence[Row], baseline: Sequence[Row]) -> str:
    if not baseline:
        return "the baseline has no such variant here"
    # In a fused run all policies share one prefill and one batch, so no seconds are a policy's own.
    if any(row["execution"] != ISOLATED for row in (*tonight, *baseline)):
        return _NOT_ISOLATED
    # A faster machine would pass for a faster policy.
    if reason := _another_device(tonight, baseline):
        return reason
    return "" if any(row[_COLUMN] is not None for row in baseline) else "the baseline has no seconds"


def _another_device(tonight: Sequence[Row], baseline: Sequence[Row]) -> str:
    """Why not all of both is known to come from one kind of device; empty where it is, or where tonight has no rows."""
    before, now = (
        {(str(row["device"]), row["device_name"]) for row in rows if row["status"] in DONE_STATUSES}
        for rows in (baseline, tonight)
    )
    # No rows at all are lost ones, and what is lost must not look like what cannot be compared.
    if not now or (before == now and len(now) == 1 and all(name for _, name in now)):
        return ""
    shown = [", ".join(sorted(shown_device(*it) for it in devices)) for devices in (before, now)]
    if before != now:
        return f"another device: {shown[0]} in the baseline, {shown[1]} tonight"
    return (
        f"several devices on both sides: {shown[1]}"
        if len(now) > 1
        else f"not known to be one device: {shown[1]}"
    )


def _noise(by_label: Mapping[str, Sequence[Row]]) -> Pairs:
    return pair(_timed(by_label.get(FULL_AA, ())), _timed(by_label.get(FULL, ())), _COLUMN)


def _gains(pairs: Pairs) -> TaskPairs:
    """Fewer seconds are better."""
    return TaskPairs([-it for it in pairs.policy], [-it for it in pairs.reference], pairs.clusters)


def memory_checks(sides: Sequence[TaskSides], labels: Sequence[str], margins: MarginSettings) -> list[Check]:
    """A check per variant, task and kind of memory: the mean growth over the items may not exceed the margin."""
    return [
        _memory_check(it, label, column, margins.memory_percent)
        for column in _METRICS
        for label in labels
        for it in sides
        if column != _READ or _reads_otherwise(it, label)
    ]


def _reads_otherwise(sides: TaskSides, label: str) -> bool:
    # Elsewhere the bytes held say it already: the same growth twice would count as two findings.
    return any(reads_otherwise(row) for of in (sides.tonight, sides.baseline) for row in of.get(label, ()))


def _memory_check(sides: TaskSides, label: str, column: str, margin: float) -> Check:
    pairs = sides.pairs(label, column)
    reason, growth = sides.why_not_measured(label, column), _growth(pairs)
    # Kernels and libraries take their work space by the GPU they find; bytes of keys and values are the same on all.
    if not reason and column == _PEAK:
        reason = _another_device(sides.tonight.get(label, ()), sides.baseline.get(label, ()))
    verdict: Verdict = "not measured" if reason else "inconclusive"
    if not reason and growth:
        verdict = "fail" if statistics.fmean(growth) > margin else "pass"
    worst, num_worse = worst_of(pairs.item_ids, growth)
    return Check(
        kind="memory",
        metric=_METRICS[column],
        unit="%",
        label=label,
        task=sides.task,
        margin=margin,
        verdict=verdict,
        reason=reason or ("" if growth else "no item has the number on both sides"),
        num_items=len(growth),
        num_contexts=len(set(pairs.clusters)),
        dropped=dict(pairs.dropped),
        loss=statistics.fmean(growth) if growth else None,
        worst_items=worst,
        num_worse=num_worse,
    )


def _growth(pairs: Pairs) -> list[float]:
    """Percent by which each item grew; infinite where the baseline held nothing and tonight holds something."""
    # Mean of percents, item by item: in a percent of the means the longest prompts would outvote all others.
    return [
        _PERCENT * (now / before - 1) if before else (float("inf") if now else 0.0)
        for now, before in zip(pairs.policy, pairs.reference, strict=True)
    ]

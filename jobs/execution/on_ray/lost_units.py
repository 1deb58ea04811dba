"""Rows of units whose actors died, and what the last attempt at such a unit leaves out.

A policy of a user's own may kill its process: a kernel that writes where it must not, a segmentation fault. So the last
attempt is made without such policies, where there are others; then they alone have failed rows.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from jobs.execution.scheduling.events import FailUnit
from jobs.planning.work import WorkUnit
from jobs.results.rows import Failure, RowMaker, RunContext, failed_rows
from jobs.results.schema import Row
from kvmerger.budget import label_referred_to
from kvmerger.variants import VariantSpec

NO_REPORT = TimeoutError("its actor did not report for far longer than it should take, and was killed")


def drop_user_policies(unit: WorkUnit) -> WorkUnit:
    """The unit without users' own policies (`module:Class`) and budgets like theirs; unchanged if nothing else is owed."""
    by_label = {spec.label: spec for spec in unit.variants}
    own = {label for label in by_label if _is_own(label, by_label)}
    keys = tuple(key for key in unit.row_keys if key.label not in own)
    if not keys:
        return unit
    # `unit_id` stays, though it is a digest of all rows: those left out become failed rows in the same file.
    variants = tuple(spec for spec in unit.variants if spec.label not in own)
    return replace(unit, row_keys=keys, variants=variants)


def _is_own(label: str, by_label: Mapping[str, VariantSpec]) -> bool:
    """Whether the variant is a user's policy, or its `like` budget leads to one."""
    spec = by_label.get(label)
    if spec is None:  # a reference row, which no unit lists
        return False
    like = label_referred_to(spec.budget)
    return ":" in spec.policy or (like is not None and _is_own(like, by_label))


def rows_of_lost(unit: WorkUnit, end: FailUnit, error: Exception, context: RunContext) -> list[Row]:
    """A failed row for every row key of a unit that is given up; `error` is the last loss."""
    preempted = f", {end.preemptions} of them preempted" if end.preemptions else ""
    message = f"{end.kind.value} after {end.attempts} attempts{preempted}: {error}"
    if len(unit.contexts) > 1:
        message += f"; {len(unit.contexts)} contexts were computed together: with items_at_once=1 a bad one costs only itself"
    return _failed(unit, message, error, context)


def rows_left_out(
    unit: WorkUnit, answered: Collection[str], error: Exception, context: RunContext
) -> Sequence[Row]:
    """A failed row for every row key whose identity is not in `answered`: the last attempt left its policy out."""
    keys = tuple(key for key in unit.row_keys if key.identity not in answered)
    if not keys:
        return []
    own = sorted({key.label for key in keys})
    message = (
        f"its unit was lost each time until it was done without {', '.join(map(repr, own))}: the last attempt leaves out "
        f"policies that are not ours, since one may kill its process, and budgets like theirs; to see, run one at a time "
        f"with `executor: inline`. The last loss: {error}"
    )
    return _failed(replace(unit, row_keys=keys), message, error, context)


def _failed(unit: WorkUnit, message: str, error: Exception, context: RunContext) -> list[Row]:
    failure = Failure("actor", type(error).__name__, message, Failure.of("actor", error).traceback)
    return failed_rows(unit, failure, RowMaker(context, unit.unit_id, unit.execution, time.time()))

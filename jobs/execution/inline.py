"""All units in this process, one after the other, without Ray: for breakpoints and for small machines.

The rows, the order of units and the events are those of the Ray executor with one actor, except that a unit starts when the
one before it has been written. An interrupt keeps the rows that were handed over.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from jobs.execution.run_events import ActorLoaded, ActorStarting, OnEvent, OnRows, UnitEnded, UnitStarted
from jobs.execution.unit_runner import DeviceLostError, LoadEngine, UnitRunner, load_engine
from jobs.planning.work import WorkUnit
from jobs.results.rows import Failure, RowMaker, RunContext, failed_rows
from jobs.results.schema import Row
from jobs.settings.schema import Settings

_ACTOR = "inline"


def run_units(
    units: Sequence[WorkUnit],
    settings: Settings,
    context: RunContext,
    *,
    on_rows: OnRows,
    on_event: OnEvent,
    load: LoadEngine = load_engine,
) -> None:
    """Run every unit, the costliest first, and hand its rows to `on_rows`. Without units nothing is loaded.

    Raises:
        ModelError: the model cannot be loaded. Errors inside a unit become failed rows instead.
        OtherModelError: it is not the one that was planned.
    """
    if not units:
        return
    runner = UnitRunner(settings.model, context, load)
    on_event(ActorStarting(_ACTOR))
    runner.load()
    on_event(ActorLoaded(_ACTOR))
    # The sort is stable, as the scheduler's is: units of equal cost keep the order of the plan.
    for unit in sorted(units, key=lambda unit: -unit.cost_tokens):
        on_event(UnitStarted(_ACTOR, unit.unit_id, attempt=1))
        rows = _run_or_fail(runner, unit, context)
        on_rows(unit, rows)  # before the event: what is reported as ended is stored
        on_event(UnitEnded.of(unit, rows))


def _run_or_fail(runner: UnitRunner, unit: WorkUnit, context: RunContext) -> list[Row]:
    """A unit on a lost device fails, as do those after it: there is no other process here to run them."""
    try:
        return runner.run(unit)
    except DeviceLostError as error:
        maker = RowMaker(context, unit.unit_id, unit.execution, time.time())
        return failed_rows(unit, Failure.of("device", error), maker)

"""Results of Ray calls become the scheduler's events, and its decisions are carried out; nothing is decided here.

Each unit's rows are handed over exactly once, from this thread, as soon as they are there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import ray

from jobs.execution import run_events
from jobs.execution.on_ray.call_results import cause_of, event_of
from jobs.execution.on_ray.cluster import connected, job_env
from jobs.execution.on_ray.lost_units import NO_REPORT, drop_user_policies, rows_left_out, rows_of_lost
from jobs.execution.on_ray.pool import ActorPool, CallResult
from jobs.execution.on_ray.resources import ActorResources, ResourcesError, resources_for
from jobs.execution.on_ray.shipped_code import source_paths
from jobs.execution.run_events import OnEvent, OnRows, UnitEnded
from jobs.execution.scheduling.events import (
    Abort,
    AcceptUnit,
    ActorDied,
    ActorReady,
    Assign,
    Begin,
    Decision,
    Done,
    DropResult,
    Event,
    FailUnit,
    Interrupted,
    Queue,
    StartActor,
    StopActor,
    Tick,
    UnitFailed,
    UnitFinished,
)
from jobs.execution.scheduling.failure import OF_THE_PLACE, ErrorKind, FailurePolicy
from jobs.execution.scheduling.scheduler import Scheduler
from jobs.execution.unit_runner import LoadEngine, load_engine
from jobs.planning.work import WorkUnit
from jobs.results.rows import RunContext
from jobs.results.schema import Row
from jobs.settings.schema import Settings

PLACEMENT_TIMEOUT_S = 600.0
"""A cluster that grows needs minutes for a new machine; one that cannot grow would otherwise wait for ever."""

_POLL_S = 0.25  # an interrupt is noticed between two polls, and `ray job stop` does not wait for long
_HAND_OVER = 1


class _NoResources(Exception):
    """No actor was placed in time."""


def run_units(
    units: Sequence[WorkUnit],
    settings: Settings,
    context: RunContext,
    *,
    on_rows: OnRows,
    on_event: OnEvent,
    load: LoadEngine = load_engine,
    resources: ActorResources | None = None,
    failure: FailurePolicy | None = None,
    placement_timeout_s: float = PLACEMENT_TIMEOUT_S,
) -> None:
    """Run every unit on Ray actors and hand its rows to `on_rows`. Without units nothing is started.

    Joins the cluster that RAY_ADDRESS (or the Ray job) names, otherwise starts one on this machine and stops it again.
    A unit whose actor dies is tried again as `failure` says, then becomes failed rows. An interrupt hands over what is
    finished before it is raised again.

    Raises:
        RayStartError, ResourcesError, ShippedCodeError: with the remedy.
        ModelError, OtherModelError: what loading the model raised in an actor.
    """
    if not units:
        return
    with connected(
        source_paths((path for spec in settings.variants for path in spec.paths), sys.modules)
    ) as cluster:
        if cluster.job_id is not None:
            on_event(run_events.ClusterJoined(cluster.job_id, cluster.dashboard))
        resources = resources or resources_for(
            cluster.nodes, device=settings.model.device, asked=settings.actors, can_grow=cluster.can_grow
        )
        if job_env() is not None and (advice := short_lived_results(settings.output_dir, Path.cwd())):
            on_event(run_events.Advice(advice))
        # Inside the connection: actors can neither be started nor stopped once it is closed.
        pool = ActorPool(settings.model, context, load, resources)
        scheduler = Scheduler(
            {unit.unit_id: unit.cost_tokens for unit in units},
            resources.num_actors,
            failure or FailurePolicy(),
            placement_timeout_s,
        )
        try:
            Controller(units, context, pool, scheduler, on_rows, on_event).run()
        except _NoResources as error:
            raise ResourcesError(_describe_shortage(resources, placement_timeout_s)) from error
        finally:
            pool.close()


class Controller:
    """Brings call results to the scheduler and carries out its decisions until it says that the run is over."""

    def __init__(
        self,
        units: Sequence[WorkUnit],
        context: RunContext,
        pool: ActorPool,
        scheduler: Scheduler,
        on_rows: OnRows,
        on_event: OnEvent,
    ) -> None:
        self._units = {unit.unit_id: unit for unit in units}
        self._context = context
        self._pool = pool
        self._scheduler = scheduler
        self._on_rows = on_rows
        self._on_event = on_event
        self._rows: dict[str, list[Row]] = {}  # by unit, until all decisions on them are carried out
        self._decisions: list[Decision] = []  # in the order in which they are to be carried out
        self._errors: dict[str, Exception] = {}  # the latest of each unit
        self._error_by_kind: dict[ErrorKind, Exception] = {}  # the latest of each

    def run(self) -> None:
        """Run until every unit has ended. Raises what ends the run before that."""
        try:
            self._carry_out(self._scheduler.start(time.monotonic()))
            while not self._scheduler.is_closed:
                self._enter(self._pool.wait(_POLL_S))
                # After the answers: an actor whose report is there is not stuck.
                self._tell(Tick(time.monotonic()))
        except KeyboardInterrupt:
            # Finished rows are kept: those that were being handed over, and those that have come since. Work that was
            # decided on but not given out yet is dropped.
            self._decisions = [it for it in self._decisions if _turn(it) == _HAND_OVER]
            self._tell(Interrupted(time.monotonic()))
            self._enter(self._pool.wait(0))
            raise

    def _enter(self, answers: Sequence[CallResult]) -> None:
        decisions: list[Decision] = []
        for answer in answers:
            event = event_of(answer, time.monotonic())
            match event:
                case ActorDied(kind=kind) | UnitFailed(kind=kind) if not self._scheduler.is_closed:
                    assert answer.error is not None
                    # All calls of a dead actor fail: the unit it worked on is lost, whichever call is the first to fail.
                    is_death = isinstance(event, ActorDied)
                    unit_id = self._scheduler.unit_of(answer.actor_id) if is_death else answer.unit_id
                    self._note(unit_id, kind, answer.error)
                case UnitFinished(unit_id=unit_id):
                    self._rows.setdefault(unit_id, answer.value)  # a second result is dropped, not stored
                    is_whole = len(answer.value) == len(self._units[unit_id].row_keys)
                    event = replace(event, is_whole=is_whole)
            if isinstance(event, ActorDied) and self._pool.stop(event.actor_id):
                self._on_event(run_events.ActorLost(_name(event.actor_id), event.kind))
            elif isinstance(event, ActorReady):
                self._on_event(run_events.ActorLoaded(_name(event.actor_id)))
            decisions += self._scheduler.handle(event)
            if isinstance(event, ActorDied) and event.kind in OF_THE_PLACE and not self._scheduler.is_closed:
                # Told here or nowhere: others go on, so the error ends nothing.
                assert answer.error is not None
                self._on_event(
                    run_events.Advice(f"{cause_of(answer.error)}. The other actors go on without it")
                )
        self._carry_out(decisions)

    def _tell(self, event: Event) -> None:
        self._carry_out(self._scheduler.handle(event))

    def _carry_out(self, decisions: Sequence[Decision]) -> None:
        """Carry these out, after those that an interrupt has left."""
        # Free actors get work before any rows are written: no device waits for this machine's disk.
        self._decisions += sorted(decisions, key=_turn)
        while self._decisions:
            # Taken off before it is carried out: what an interrupt cuts short must not be handed over twice.
            match decision := self._decisions.pop(0):
                case StartActor(actor_id=actor_id):
                    self._pool.start(actor_id)
                    self._on_event(run_events.ActorStarting(_name(actor_id)))
                case StopActor(actor_id=actor_id, kind=kind, unit_id=stopped_unit_id):
                    self._note(stopped_unit_id, kind, NO_REPORT)
                    self._pool.stop(actor_id)
                    self._on_event(run_events.ActorLost(_name(actor_id), kind))
                case Assign(
                    actor_id=actor_id,
                    unit_id=unit_id,
                    attempt=attempt,
                    without_user_policies=without_user_policies,
                ):
                    self._pool.run(actor_id, self._given(unit_id, without_user_policies))
                    self._on_event(run_events.UnitStarted(_name(actor_id), unit_id, attempt))
                case Queue(actor_id=actor_id, unit_id=unit_id, without_user_policies=without_user_policies):
                    # Ray runs an actor's calls in the order in which they were made.
                    self._pool.run(actor_id, self._given(unit_id, without_user_policies))
                case Begin(actor_id=actor_id, unit_id=unit_id, attempt=attempt):
                    self._on_event(run_events.UnitStarted(_name(actor_id), unit_id, attempt))
                case AcceptUnit(unit_id=unit_id):
                    self._hand_over(unit_id, self._rows_of(unit_id))
                case FailUnit():
                    self._hand_over(decision.unit_id, self._rows_of_failure(decision))
                case Abort(kind=kind):
                    self._abort(kind)
                case DropResult() | Done():
                    pass
        self._rows.clear()

    def _hand_over(self, unit_id: str, rows: list[Row]) -> None:
        unit = self._units[unit_id]
        self._on_rows(unit, rows)
        self._on_event(UnitEnded.of(unit, rows))

    def _given(self, unit_id: str, without_user_policies: bool) -> WorkUnit:
        """The unit as an actor gets it."""
        unit = self._units[unit_id]
        return drop_user_policies(unit) if without_user_policies else unit

    def _rows_of(self, unit_id: str) -> list[Row]:
        rows = self._rows[unit_id]
        answered = {row["identity"] for row in rows}
        error = cause_of(self._errors.get(unit_id, NO_REPORT))
        return [*rows, *rows_left_out(self._units[unit_id], answered, error, self._context)]

    def _rows_of_failure(self, decision: FailUnit) -> list[Row]:
        error = self._errors.get(decision.unit_id) or self._error_by_kind[decision.kind]
        return rows_of_lost(self._units[decision.unit_id], decision, cause_of(error), self._context)

    def _note(self, unit_id: str | None, kind: ErrorKind, error: Exception) -> None:
        self._error_by_kind[kind] = error
        if unit_id is not None:
            self._errors[unit_id] = error

    def _abort(self, kind: ErrorKind) -> NoReturn:
        if kind is ErrorKind.NO_RESOURCES:
            raise _NoResources
        raise cause_of(self._error_by_kind[kind])


def short_lived_results(output_dir: Path, job_folder: Path) -> str | None:
    """A warning if a submitted job's results lie in its own unpacked folder, which Ray deletes with the job; else None."""
    if not output_dir.is_relative_to(job_folder):
        return None
    return (
        f"results go to {output_dir}, inside the job's own copy of the submitted folder, which Ray deletes: give "
        f"--output_dir an absolute path"
    )


def _turn(decision: Decision) -> int:
    """The order of carrying out: work to actors first, then finished rows, then what ends the run."""
    match decision:
        case AcceptUnit() | FailUnit():
            return _HAND_OVER
        case Abort() | Done():
            return _HAND_OVER + 1
        case _:
            return _HAND_OVER - 1


def _name(actor_id: int) -> str:
    return f"actor {actor_id}"


def _describe_shortage(resources: ActorResources, timeout_s: float) -> str:
    return (
        f"no actor with {resources.num_cpus:g} CPUs and {resources.num_gpus:g} GPUs found a place within "
        f"{timeout_s:g} s; the cluster has {_counts(ray.cluster_resources())}, free are "
        f"{_counts(ray.available_resources())}: stop other jobs, add nodes, or run with `executor: inline`"
    )


def _counts(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"

"""Ray, reduced to starting actors, giving them units and asking who has answered; it decides nothing.

An actor holds one model and runs one unit at a time. Every call that was made is reported once, with its value or its
exception, unless its actor was stopped before.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import ray

from jobs.execution.on_ray.resources import ActorResources
from jobs.execution.unit_runner import LoadEngine, UnitRunner
from jobs.planning.work import WorkUnit
from jobs.results.rows import RunContext
from jobs.results.schema import Row
from jobs.settings.schema import ModelSettings


class Call(StrEnum):
    """The actor's method that was called."""

    PLACE = "place"
    LOAD = "load"
    RUN = "run"


@dataclass(frozen=True, slots=True)
class CallResult:
    """How a call ended: `error` is None exactly when `value` counts. `unit_id` is set for `Call.RUN`."""

    actor_id: int
    call: Call
    unit_id: str | None
    value: Any
    error: Exception | None


@dataclass(frozen=True, slots=True)
class _Pending:
    actor_id: int
    call: Call
    unit_id: str | None = None


class EngineActor:
    """What Ray runs in a process of its own; `ActorPool` adds the resources."""

    def __init__(
        self, settings: ModelSettings, context: RunContext, load: LoadEngine, num_gpus: float
    ) -> None:
        """`num_gpus` below 1 is the actor's share of a device that others use too."""
        self._runner = UnitRunner(settings, context, load)
        self._num_gpus = num_gpus

    def place(self) -> str:
        """Where the actor is, for people: `host:process id`. Answers as soon as the process runs."""
        return f"{socket.gethostname()}:{os.getpid()}"

    def load(self) -> None:
        """Load the model; raises what loading raises."""
        # A method of its own: an exception in an actor's constructor reaches the driver as a dead actor, without its type.
        if 0 < self._num_gpus < 1:
            # In the actor's process, before anything is allocated there. 0: no device; 1: all of one.
            from kvmerger.device import keep_to

            keep_to(self._num_gpus)
        self._runner.load()

    def run(self, unit: WorkUnit) -> list[Row]:
        """The unit's rows.

        Raises:
            DeviceLostError: this process can run nothing more.
        """
        return self._runner.run(unit)


class ActorPool:
    """Actors by id, and the calls they have not answered. Needs an initialised Ray."""

    def __init__(
        self, settings: ModelSettings, context: RunContext, load: LoadEngine, resources: ActorResources
    ) -> None:
        self._arguments = (settings, context, load, resources.num_gpus)
        # Never restarted or retried by Ray: the scheduler counts attempts, and has each unit in one place at a time.
        self._actor_class = ray.remote(
            num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, max_restarts=0, max_task_retries=0
        )(EngineActor)
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, _Pending] = {}

    def start(self, actor_id: int) -> None:
        """Ask for a new actor and let it load; answers `place`, then `load`."""
        actor = self._actor_class.remote(*self._arguments)
        self._actors[actor_id] = actor
        # Two calls, so that an actor that waits for resources can be told from one whose model takes long to load.
        self._pending[actor.place.remote()] = _Pending(actor_id, Call.PLACE)
        self._pending[actor.load.remote()] = _Pending(actor_id, Call.LOAD)

    def run(self, actor_id: int, unit: WorkUnit) -> None:
        """Give the unit to the actor, which runs it after those it was given before; answers `run`.

        Does nothing if the actor has been stopped in the meantime: the scheduler has been told of that.
        """
        actor = self._actors.get(actor_id)
        if actor is not None:
            self._pending[actor.run.remote(unit)] = _Pending(actor_id, Call.RUN, unit.unit_id)

    def wait(self, timeout_s: float) -> list[CallResult]:
        """All answers there are, waiting at most `timeout_s` for the first."""
        if not self._pending:
            return []
        # Asked for all at once, Ray would wait for the last of them: so wait for one, then take all that are there.
        ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
        return [self._answer(ref) for ref in ready]

    def stop(self, actor_id: int) -> bool:
        """Kill the actor and forget its calls; returns whether it was there, and is safe with a dead one."""
        actor = self._actors.pop(actor_id, None)
        if actor is None:
            return False
        # Its calls end with an error later, which is no news: forgotten, so that a death is reported once.
        ray.kill(actor)
        self._pending = {ref: call for ref, call in self._pending.items() if call.actor_id != actor_id}
        return True

    def close(self) -> None:
        """Stop every actor."""
        for actor_id in list(self._actors):
            self.stop(actor_id)

    def _answer(self, ref: Any) -> CallResult:
        call = self._pending.pop(ref)
        try:
            return CallResult(call.actor_id, call.call, call.unit_id, ray.get(ref), None)
        except Exception as error:  # noqa: BLE001 - edge of the process: the controller maps it by type
            return CallResult(call.actor_id, call.call, call.unit_id, None, error)

"""Ray, reduced to a session, starting actors, giving them units and asking who has answered; it decides nothing.

Every call that was made is reported once, with its value or its exception, unless its actor was stopped before.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import ray
from ray import exceptions as ray_errors

from jobs.actor import EngineActor
from jobs.config import ModelSettings
from jobs.rows import RunContext
from jobs.work import WorkUnit
from jobs.worker import LoadEngine

_CONNECT_TIMEOUT_S = 5.0
_OBJECT_STORE_BYTES = 200 * 2**20  # rows are small; Ray would take a third of the memory
# Ray's own 15 would let every other program of the machine go before the model.
_WORKER_NICENESS = 0


class RayStartError(ValueError):
    """Ray cannot be reached or started; raised before any work is done."""


@dataclass(frozen=True, slots=True)
class ActorResources:
    """How many actors at most, and what each of them asks Ray for."""

    num_actors: int
    num_cpus: float
    num_gpus: float


class Call(StrEnum):
    """The actor's method that answered."""

    PLACE = "place"
    LOAD = "load"
    RUN = "run"


@dataclass(frozen=True, slots=True)
class Answer:
    """One call's end: `error` is None exactly when `value` counts. `unit_id` is set for `Call.RUN`."""

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


def resources_for(nodes: Sequence[dict[str, Any]], *, device: str) -> ActorResources:
    """One GPU per actor where there are GPUs, else one actor with all cores of the largest node.

    `nodes` is `ray.nodes()`. A CPU actor takes all cores, because Ray sets OMP_NUM_THREADS from what it asks for.
    `device: cpu` leaves GPUs alone; `cuda` asks for one even if no node has it yet, so that a cluster can grow.
    """
    totals = [node["Resources"] for node in nodes if node["Alive"]]
    num_gpus = int(sum(total.get("GPU", 0) for total in totals))
    if device != "cpu" and (num_gpus or device.startswith("cuda")):
        return ActorResources(max(1, num_gpus), num_cpus=1, num_gpus=1)
    num_cpus = max((total.get("CPU", 0) for total in totals), default=0)
    return ActorResources(1, num_cpus=max(1, num_cpus), num_gpus=0)


class ActorPool:
    """Actors by id, and the calls they have not answered. Needs an initialised Ray."""

    def __init__(
        self, settings: ModelSettings, context: RunContext, load: LoadEngine, resources: ActorResources
    ) -> None:
        self._arguments = (settings, context, load)
        self._actor_class = ray.remote(
            num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, max_restarts=0, max_task_retries=0
        )(EngineActor)
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, _Pending] = {}

    def start(self, actor_id: int) -> None:
        """Ask for a new actor and let it load; answers `place`, then `load`."""
        actor = self._actor_class.remote(*self._arguments)
        self._actors[actor_id] = actor
        self._pending[actor.place.remote()] = _Pending(actor_id, Call.PLACE)
        self._pending[actor.load.remote()] = _Pending(actor_id, Call.LOAD)

    def run(self, actor_id: int, unit: WorkUnit) -> None:
        """Give the unit to the actor; answers `run`."""
        self._pending[self._actors[actor_id].run.remote(unit)] = _Pending(actor_id, Call.RUN, unit.unit_id)

    def wait(self, timeout_s: float) -> list[Answer]:
        """All answers there are, waiting at most `timeout_s` for the first."""
        if not self._pending:
            return []
        ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
        return [self._answer(ref) for ref in ready]

    def stop(self, actor_id: int) -> bool:
        """Kill the actor and forget its calls; returns whether it was there, and is safe with a dead one."""
        actor = self._actors.pop(actor_id, None)
        if actor is None:
            return False
        ray.kill(actor)
        self._pending = {ref: call for ref, call in self._pending.items() if call.actor_id != actor_id}
        return True

    def close(self) -> None:
        """Stop every actor."""
        for actor_id in list(self._actors):
            self.stop(actor_id)

    def _answer(self, ref: Any) -> Answer:
        call = self._pending.pop(ref)
        try:
            return Answer(call.actor_id, call.call, call.unit_id, ray.get(ref), None)
        except Exception as error:  # noqa: BLE001 - edge of the process: the controller maps it by type
            return Answer(call.actor_id, call.call, call.unit_id, None, error)


@contextmanager
def ray_session() -> Iterator[None]:
    """An initialised Ray: the caller's own, the cluster RAY_ADDRESS names, or a local one that is ours to stop.

    Raises:
        RayStartError: in seconds, with the remedy.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            _check_listening(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        else:
            # A cluster of our own tells nobody that it is token-protected: there is nothing to do about it.
            logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(
                logging.ERROR
            )
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                object_store_memory=_OBJECT_STORE_BYTES,
                _system_config={"worker_niceness": _WORKER_NICENESS},
            )
    except (OSError, RuntimeError, ValueError, ray_errors.RayError) as error:  # ConnectionError is an OSError
        raise RayStartError(
            f"Ray at {address or 'this machine'} cannot be used ({type(error).__name__}: {error}); check that "
            f"RAY_ADDRESS is right and RAY_AUTH_MODE and the token are the cluster's, or run with "
            f"`executor: inline`"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Ray itself would try an address nobody listens at for minutes, and end the process in the end."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()

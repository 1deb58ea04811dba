"""One actor holds one model and runs one unit at a time; it decides nothing.

Loading is a method, not the constructor: an exception in an actor's constructor reaches nobody as itself.
"""

from __future__ import annotations

import os
import socket

from jobs.planning.work import WorkUnit
from jobs.results.rows import RunContext
from jobs.results.schema import Row
from jobs.settings.schema import ModelSettings
from jobs.worker import LoadEngine, UnitRunner


class EngineActor:
    """What Ray runs in a process of its own. Made by `jobs.actor_pool`, which adds the resources."""

    def __init__(
        self, settings: ModelSettings, context: RunContext, load: LoadEngine, num_gpus: float
    ) -> None:
        """``num_gpus`` below 1 is its share of a device that others use too."""
        self._runner = UnitRunner(settings, context, load)
        self._num_gpus = num_gpus

    def place(self) -> str:
        """Where the actor is, for people: `host:process id`. Answers as soon as the process runs."""
        return f"{socket.gethostname()}:{os.getpid()}"

    def load(self) -> None:
        """Load the model; raises what loading raises."""
        if 0 < self._num_gpus < 1:
            from kvmerger.device import keep_to

            keep_to(self._num_gpus)
        self._runner.load()

    def run(self, unit: WorkUnit) -> list[Row]:
        """The unit's rows.

        Raises:
            DeviceLostError: this process can run nothing more.
        """
        return self._runner.run(unit)

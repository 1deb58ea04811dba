"""A scheduler for tests, the ids of its units, and a count of how they ended."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from jobs.execution.scheduling.events import Abort, AcceptUnit, Decision, Done, FailUnit
from jobs.execution.scheduling.failure import FailurePolicy
from jobs.execution.scheduling.scheduler import Scheduler

PLACEMENT_TIMEOUT_S = 30.0


def make_scheduler(
    costs: dict[str, float], max_actors: int = 1, max_attempts: int = 3, max_preemptions: int = 20
) -> Scheduler:
    return Scheduler(costs, max_actors, FailurePolicy(max_attempts, max_preemptions), PLACEMENT_TIMEOUT_S)


def unit_ids(num_units: int) -> list[str]:
    return [f"u{index}" for index in range(num_units)]


@dataclass
class Ledger:
    """What a test saw happen: how each unit ended, and whether the run did."""

    ends: Counter[str] = field(default_factory=Counter)
    num_done: int = 0
    aborts: list[Abort] = field(default_factory=list)

    def enter(self, decisions: tuple[Decision, ...]) -> None:
        for decision in decisions:
            match decision:
                case AcceptUnit(unit_id=unit_id) | FailUnit(unit_id=unit_id):
                    self.ends[unit_id] += 1
                case Done():
                    self.num_done += 1
                case Abort():
                    self.aborts.append(decision)

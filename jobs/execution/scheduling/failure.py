"""What is done about a failure, decided by its kind and the number of attempts, never by the words of a message.

Pure: the executor translates its own exceptions into an `ErrorKind` at the edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

DEFAULT_MAX_ATTEMPTS = 3  # one try, one for bad luck, one to tell bad luck from a unit that kills its actor
DEFAULT_MAX_PREEMPTIONS = 20
"""Machines that are taken away say nothing about the unit. The bound only ends a unit longer than any machine stays."""


class ErrorKind(StrEnum):
    """What went wrong, as far as it matters for what to do next."""

    ACTOR_DIED = "actor_died"
    NODE_DIED = "node_died"
    PREEMPTED = "preempted"  # its node was drained: a spot machine taken back, a node that is serviced
    OUT_OF_HOST_MEMORY = "out_of_host_memory"  # the machine's; a full GPU is an exception inside the unit
    DEVICE_LOST = "device_lost"
    RESULT_LOST = "result_lost"  # computed, but gone with the node that kept the rows; the actor may be alive
    STUCK = "stuck"  # it had not reported for longer than its timeout, and we stopped it
    UNIT_RAISED = "unit_raised"
    LOAD_RAISED = "load_raised"
    OTHER_MODEL = "other_model"  # the machine has another model under the planned one's name
    NO_RESOURCES = "no_resources"
    INTERNAL = "internal"  # nothing of the above, so a bug of ours


class FailureDecision(StrEnum):
    """RETRY the work, GIVE_UP on it (failed rows, the run goes on), or RAISE (the run ends)."""

    RETRY = "retry"
    GIVE_UP = "give_up"
    RAISE = "raise"


# A kind that is in no set (LOAD_RAISED, NO_RESOURCES, INTERNAL) ends the run: every other actor would meet it too.
_TRANSIENT = frozenset(
    {
        ErrorKind.ACTOR_DIED,
        ErrorKind.NODE_DIED,
        ErrorKind.OUT_OF_HOST_MEMORY,
        ErrorKind.DEVICE_LOST,
        ErrorKind.RESULT_LOST,
        ErrorKind.STUCK,
    }
)
MAY_BE_THE_UNITS_FAULT = frozenset(
    {ErrorKind.ACTOR_DIED, ErrorKind.OUT_OF_HOST_MEMORY, ErrorKind.DEVICE_LOST, ErrorKind.STUCK}
)
"""Kinds of an actor's death that leave open whether its unit or its place is to blame."""
OF_THE_NODE = frozenset({ErrorKind.NODE_DIED, ErrorKind.PREEMPTED})
"""Kinds of an actor's death that say nothing against its place: the next actor there will be on another machine."""
# The same code on the same input raises again; another attempt only costs time.
_DETERMINISTIC = frozenset({ErrorKind.UNIT_RAISED})
OF_THE_PLACE = frozenset({ErrorKind.OTHER_MODEL})
"""Kinds that any further attempt in the same place would meet again."""


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """How often transient failures are tried again; preemptions are counted by themselves.

    Raises:
        ValueError: `max_attempts` or `max_preemptions` below 1.
    """

    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    max_preemptions: int = DEFAULT_MAX_PREEMPTIONS

    def __post_init__(self) -> None:
        for name in ("max_attempts", "max_preemptions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def decide(self, kind: ErrorKind, attempt: int, *, has_worked: bool = False) -> FailureDecision:
        """Decide on the failure of attempt number `attempt` (the first is 1), of a preemption on its own number.

        `has_worked`: what was tried has succeeded elsewhere, so the place is to blame, whatever the kind.
        """
        if kind in OF_THE_PLACE:
            return FailureDecision.GIVE_UP if has_worked else FailureDecision.RAISE
        if kind is ErrorKind.PREEMPTED:
            return FailureDecision.RETRY if attempt < self.max_preemptions else FailureDecision.GIVE_UP
        if kind in _TRANSIENT or has_worked:
            return FailureDecision.RETRY if attempt < self.max_attempts else FailureDecision.GIVE_UP
        return FailureDecision.GIVE_UP if kind in _DETERMINISTIC else FailureDecision.RAISE

"""How long an actor may say nothing before it counts as stuck: a driver that hangs answers nobody, and raises nothing.

Pure. Generous, since a unit that is only slow would be lost three times: what is stuck would be so for ever.
"""

from __future__ import annotations

from collections.abc import Collection

_S_PER_H = 3600.0
LOAD_S = 6 * _S_PER_H
"""For weights that come over a slow line."""
UNKNOWN_S = 6 * _S_PER_H
"""For a unit while nobody has finished one."""
LEAST_S = _S_PER_H
TIMES = 20.0
"""As long as the slowest actor would take by its pace so far."""


def unit_patience_s(cost: float, paces: Collection[float]) -> float:
    """Seconds that a unit of this cost may take, with what actors have done per second so far."""
    return max(LEAST_S, TIMES * cost / min(paces)) if paces else UNKNOWN_S

"""How the threads of a computation on the processor wait for each other, where other processes want the cores too."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_BUSY_SHARE = 0.5
"""Of the cores that others use on average; from there on two threads of ours seldom run at the same time."""


def choose_thread_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have waiting threads sleep where the machine is busy; call it before torch is imported. Keeps what is set already.

    OpenMP's threads wait by spinning, which is fastest while each has a core to itself. Where one has to wait for its core,
    the others spin for as long as it does, on the very cores that it waits for: a decode step on two threads beside busy
    processes then takes several times as long as with threads that sleep, which cost a third more on an idle machine
    (`bench/engine/busy_steps.py`).
    """
    if any(name in environment for name in _VARIABLES) or not hasattr(os, "getloadavg"):
        return
    if os.getloadavg()[0] > _BUSY_SHARE * (os.cpu_count() or 1):
        environment["GOMP_SPINCOUNT"] = "0"

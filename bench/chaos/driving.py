"""What all faults share: the moment to strike, and drivers that have to end as we promise."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.chaos.world import Driver, World, drive

LIMIT_S = 240.0
_EDGE = 0.1  # of the moments, at either end
_MOST_RUNS = 4
_SHOWN_CHARS = 1500


class Broken(Exception):
    """A promise was broken; says which."""


@dataclass(frozen=True, slots=True)
class Life:
    """How long an undisturbed driver lives, and how long there are actors in it (0: none)."""

    driver_s: float
    actors_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Done:
    """What a fault did. `is_hit`: what it disturbs was alive, or there, at that moment.

    `is_finished`: the sweep has ended with 0 since. `versions` are those of the policy's file, the last one is there now.
    """

    told: str
    is_hit: bool = True
    is_finished: bool = False
    versions: tuple[int, ...] = (1,)


Fault = Callable[[World, random.Random, Life], Done]
"""Disturbs a world."""


def moment(draw: random.Random, life_s: float) -> float:
    """Seconds from the start of a life."""
    where = draw.random()
    if where < _EDGE:
        return 0.0
    return life_s * (1.0 if where > 1 - _EDGE else draw.random())


def resumed(world: World, is_known: Callable[[str], bool] = lambda _: False) -> list[int]:
    """Run the command until it ends with 0; after a 2, which only `is_known` may explain, its remedy has been followed."""
    codes = []
    for _ in range(_MOST_RUNS):
        driver = drive(world)
        codes.append(driver.end(LIMIT_S))
        told = driver.log.read_text()
        if codes[-1] == 0:
            return codes
        if "Traceback" in told or not (codes[-1] == 3 or (codes[-1] == 2 and is_known(told))):
            raise Broken(f"the same command ended with {codes}: {excerpt(told)!r}")
    raise Broken(f"the same command never ended with 0: {codes}")


def ended(driver: Driver, allowed: tuple[int, ...]) -> int:
    """The driver's exit code, which is one of those, and no stack was printed."""
    code = driver.end(LIMIT_S)
    told = driver.log.read_text()
    if code not in allowed or (code != -signal.SIGKILL and "Traceback" in told):
        raise Broken(f"ended with {code}, not {allowed}: {excerpt(told)!r}")
    return code


def excerpt(told: str) -> str:
    """The part of what a driver printed that says most."""
    at = told.find("Traceback")
    return told[at : at + _SHOWN_CHARS] if at >= 0 else told[-_SHOWN_CHARS:]


def age(driver: Driver) -> float:
    """Seconds since it was started."""
    return time.monotonic() - driver.started_s


def shown(moments: list[float]) -> str:
    """Moments as a line of the log has them."""
    return ", ".join(f"{it:.2f}" for it in moments) + " s"

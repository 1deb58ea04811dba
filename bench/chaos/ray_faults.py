"""What is done to Ray: actors and whole nodes are killed or stopped while they are there, and the same run goes on.

A moment is drawn over an actor's life, not the driver's: starting Ray takes most of that.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil

from bench.chaos.driving import Done, Fault, Life, age, ended, moment, shown
from bench.chaos.faults import interrupted, killed
from bench.chaos.nodes import cluster
from bench.chaos.world import Driver, World, actors_of, drive, write_settings

_POLL_S = 0.05


def wait_for(driver: Driver, is_so: Callable[[], object]) -> bool:
    """Wait until it is so; False where the driver ended before."""
    while driver.is_alive():
        if is_so():
            return True
        time.sleep(_POLL_S)
    return False


def _moment_of_an_actor(
    driver: Driver, draw: random.Random, life: Life, is_there: Callable[[], object]
) -> float | None:
    """Wait for a moment in the life of an actor, in seconds of the driver's; None where there was no actor any more."""
    if not wait_for(driver, is_there):
        return None
    at = age(driver) + moment(draw, life.actors_s)
    driver.wait_until(at)
    return at


def actors_killed(world: World, draw: random.Random, life: Life) -> Done:
    """SIGKILL or SIGTERM of an actor, once or twice; the same run goes on."""
    driver, moments, sent = drive(world), [], []
    for _ in range(draw.randint(1, 2)):
        at = _moment_of_an_actor(driver, draw, life, lambda: actors_of(driver))
        if at is None:
            break
        moments.append(at)
        number = draw.choice([signal.SIGKILL, signal.SIGTERM])
        for pid in draw.sample(found := actors_of(driver), min(len(found), 1)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
                sent.append(number.name)
    code = ended(driver, (0, 3))
    return Done(f"{', '.join(sent) or 'none there'} at {shown(moments)}: {code}", bool(sent))


def actors_stopped(world: World, draw: random.Random, life: Life) -> Done:
    """SIGSTOP of an actor for some seconds; the same run goes on."""
    driver = drive(world)
    at = _moment_of_an_actor(driver, draw, life, lambda: actors_of(driver))
    found = actors_of(driver)[:1]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(draw.uniform(0.5, 3.0) if number == signal.SIGSTOP else 0.0)
    ended(driver, (0,))
    return Done(f"{len(found)} at {shown([] if at is None else [at])}", bool(found))


@contextmanager
def with_nodes(world: World, inputs: Path) -> Iterator[World]:
    """The world with a cluster of its own."""
    with cluster() as nodes:
        rigged = replace(world, nodes=nodes)
        write_settings(rigged, inputs)
        yield rigged


def node_killed(world: World, draw: random.Random, life: Life) -> Done:
    """SIGKILL of a node's raylet and of all that it started, at once, as a power cut would; the same run goes on."""
    assert world.nodes is not None
    nodes, driver = world.nodes, drive(world)
    at = _moment_of_an_actor(driver, draw, life, lambda: any(nodes.actors().values()))
    actors = nodes.actors()
    raylet = draw.choice(sorted(it for it in actors if actors[it]) or sorted(actors))
    for process in [(it := psutil.Process(raylet)), *it.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    code = ended(driver, (0, 3))
    told = f"one of {len(actors)} nodes, with {len(actors[raylet])} actors, at {shown([] if at is None else [at])}"
    return Done(f"{told}: {code}", bool(actors[raylet]))


ON_RAY: Mapping[str, Fault] = {
    "actor killed (Ray)": actors_killed,
    "actor stopped (Ray)": actors_stopped,
    "driver killed (Ray)": killed,
    "driver interrupted (Ray)": interrupted,
}
ON_NODES: Mapping[str, Fault] = {"node killed (Ray)": node_killed}

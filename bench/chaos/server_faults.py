"""What is done to an MLflow server that a sweep tracks to: it dies while the sweep runs, and is started again later.

A sweep can fail for its tracker's sake before it starts alone; after that its rows are all there, and it says how they are
delivered. In the end MLflow has every point once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.chaos.driving import Broken, Done, Fault, Life, ended, moment, resumed, shown
from bench.chaos.world import World, drive, write_settings
from tests.servers.mlflow_server import Server


@contextmanager
def with_server(world: World, inputs: Path) -> Iterator[World]:
    """The world with a server of its own on its database."""
    server = Server(world.folder)
    try:
        server.start()
        rigged = replace(world, server=server)
        write_settings(rigged, inputs)
        yield rigged
    finally:
        server.kill()


def server_killed(world: World, draw: random.Random, life: Life) -> Done:
    """SIGKILL of the server; it comes back during the run or after it, and `mirror` or the same command delivers the rest."""
    assert world.server is not None
    driver, at = drive(world), moment(draw, life.driver_s)
    is_there = driver.wait_until(at)
    world.server.kill()
    away_s = draw.uniform(0.0, 2 * life.driver_s) if draw.random() < 0.5 else float("inf")
    if away_s < float("inf"):
        time.sleep(away_s)
        world.server.start()
    code = ended(driver, (0, 2))
    told, num_files = driver.log.read_text(), len(list((world.results / "rows").glob("*.parquet")))
    if code == 2 and num_files:
        raise Broken(f"ended with 2 for its tracker's sake after it had {num_files} files of rows")
    if code == 0 and num_files < world.num_files:
        raise Broken("0 with rows missing")
    is_told = "did not take everything" in told
    if is_told and "mirror" not in told:
        raise Broken("what was not delivered was told without its remedy")
    if away_s == float("inf"):
        world.server.start()
    by = "mirror" if code == 0 and draw.random() < 0.7 else "the same command"
    if by == "mirror":
        ended(drive(world, "mirror", ["mirror", str(world.results)]), (0,))
    else:
        resumed(world)
    away = "until it had ended" if away_s == float("inf") else f"for {away_s:.1f} s and a start"
    undelivered = ", not all delivered" if is_told else ""
    return Done(f"at {shown([at])}, away {away}: {code}{undelivered}, then {by}", is_there, is_finished=True)


ON_A_SERVER: Mapping[str, Fault] = {"MLflow server killed": server_killed}

"""Disturb small sweeps in every way known, finish them, and compare what is there with an undisturbed run, bit for bit.

    python -m bench.chaos --seeds 50                 all faults in turn, without Ray
    python -m bench.chaos --seeds 12 --executor ray  faults of a Ray of this machine's own
    python -m bench.chaos --first 17 --seeds 1       one seed again

A line a seed, the table at the end; exit code 1 where anything was lost, doubled or changed, or a promise was broken. It
kills only processes that it started. Linux only; disks in memory need root, and are left out without it.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.chaos.checker import Rows, Tracked, Verdict, compared, rows_in, tracked_differences, tracked_in
from bench.chaos.disks import Untried
from bench.chaos.faults import INLINE, LIMIT_S, ON_RAY, Broken, Fault, resumed
from bench.chaos.world import World, drive, make_inputs, make_world

_READ_BEFORE = (
    "mlflow.store.tracking.sqlalchemy_store",
    "transformers.models.llama.modeling_llama",
    "matplotlib.figure",
    "jobs.sweep",
    "jobs.runs.sweep_run",
    "jobs.execution.inline",
    "jobs.planning.preparation",
    "jobs.reporting.page",
    "jobs.tracking.mlflow_runs",
)
"""What takes a driver seconds to import, and would be most of its life."""


@dataclass
class Tally:
    """What became of the seeds of one fault."""

    seeds: int = 0
    untried: int = 0
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    mlflow: int = 0
    broken: list[str] = field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        """Count a seed."""
        self.seeds += 1
        self.lost += verdict.lost
        self.doubled += verdict.doubled
        self.changed += verdict.changed
        self.mlflow += bool(verdict.mlflow)

    @property
    def is_sound(self) -> bool:
        """Whether nothing went wrong in any seed."""
        return not (self.lost or self.doubled or self.changed or self.mlflow or self.broken)


@dataclass(frozen=True)
class Expected:
    """What an undisturbed run leaves, and how long it lives."""

    rows: Rows
    tracked: Tracked
    life_s: float
    num_files: int


def undisturbed(inputs: Path, folder: Path, executor: str, database: Path) -> Expected:
    """Run it."""
    world = make_world(inputs, folder, executor, database)
    started_s = time.monotonic()
    driver = drive(world)
    if driver.end(2 * LIMIT_S) != 0:
        raise SystemExit(f"the undisturbed run ended with {driver.code}: {driver.log.read_text()}")
    life_s = time.monotonic() - started_s
    rows, num_doubled = rows_in(world.results / "rows")
    assert rows and not num_doubled
    return Expected(rows, tracked_in(world.database), life_s, len(list((world.results / "rows").iterdir())))


def disturbed(world: World, fault: Fault, draw: random.Random, expected: Expected) -> tuple[str, Verdict]:
    """Disturb and resume one sweep. Raises Broken and Untried."""
    told = fault(world, draw, expected.life_s)
    home = world.folder / "results"
    if not home.exists():
        codes = resumed(world)
        told += f", then {codes}"
        home = world.results
    verdict = compared(home / "rows", expected.rows)
    if (
        "run_meta.json" not in told
    ):  # without it nobody knows which sweep of MLflow's it was: docs/reliability.md
        differences = tracked_differences(tracked_in(world.database), expected.tracked)
        verdict = replace(verdict, mlflow=differences)
    return told, verdict


def run_seeds(options: argparse.Namespace, folder: Path) -> Mapping[str, Tally]:
    """All seeds, a line each."""
    faults = ON_RAY if options.executor == "ray" else INLINE
    chosen = [name for name in faults if not options.faults or name in options.faults]
    inputs = make_inputs(folder)
    database = folder / "empty.db"
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as other:  # its engine has threads
        other.submit(_make_database, f"sqlite:///{database}").result()
    expected = undisturbed(inputs, folder / "undisturbed", options.executor, database)
    deadline_s = time.monotonic() + 60 * options.minutes
    print(f"undisturbed: {len(expected.rows)} rows in {expected.life_s:.1f} s", flush=True)
    tallies = {name: Tally() for name in chosen}
    for seed in range(options.first, options.first + options.seeds):
        if time.monotonic() > deadline_s:
            print("the time is over", flush=True)
            break
        name = chosen[seed % len(chosen)]
        new = make_world(inputs, folder / f"seed{seed}", options.executor, database)
        world = replace(new, num_files=expected.num_files)
        try:
            told, verdict = disturbed(world, faults[name], random.Random(seed), expected)
        except Untried as error:
            tallies[name].untried += 1
            print(f"seed {seed} {name}: not tried: {error}", flush=True)
            continue
        except Broken as error:
            tallies[name].broken.append(f"seed {seed}: {error}")
            tallies[name].seeds += 1
            print(f"seed {seed} {name}: BROKEN: {error}", flush=True)
            continue
        tallies[name].add(verdict)
        print(f"seed {seed} {name}: {told}: {verdict}{'' if verdict.is_sound else ' WRONG'}", flush=True)
    return tallies


def _make_database(uri: str) -> None:
    from jobs.tracking.connection import connect

    connect(uri).search_experiments()


def table(tallies: Mapping[str, Tally]) -> str:
    """The table of docs/reliability.md."""
    lines = [
        "| fault | seeds | lost | doubled | changed | MLflow differs | promises broken |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, it in tallies.items():
        seeds = f"{it.seeds}" + (f" ({it.untried} not tried)" if it.untried else "")
        lines.append(
            f"| {name} | {seeds} | {it.lost} | {it.doubled} | {it.changed} | {it.mlflow} | {len(it.broken)} |"
        )
    return "\n".join(lines)


def main() -> int:
    """0 where nothing went wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--executor", choices=("inline", "ray"), default="inline")
    parser.add_argument("--minutes", type=float, default=24 * 60, help="begin no seed after these")
    parser.add_argument("--faults", nargs="*", default=[], help="these only")
    options = parser.parse_args()
    import torch

    # Drivers are forks, and threads do not come with a fork.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    for module in _READ_BEFORE:
        importlib.import_module(module)

    with tempfile.TemporaryDirectory(prefix="kvmerger-chaos-") as folder:
        tallies = run_seeds(options, Path(folder))
    print(f"\n{table(tallies)}")
    return 0 if all(it.is_sound for it in tallies.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

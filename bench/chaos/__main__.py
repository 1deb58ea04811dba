"""Disturb small sweeps in every way known, finish them, and compare what is there with an undisturbed run, bit for bit.

    python -m bench.chaos --seeds 50               all faults in turn, without Ray
    python -m bench.chaos --seeds 12 --with ray    faults of a Ray of this machine's own
    python -m bench.chaos --seeds 8 --with nodes   a Ray cluster of two nodes on this machine
    python -m bench.chaos --seeds 8 --with server  an MLflow server
    python -m bench.chaos --first 17 --seeds 1     one seed again

A line a seed, the table at the end, in which `hit` counts the seeds where what was disturbed was there at that moment; exit
code 1 where anything was lost, doubled or changed, or a promise was broken. It kills only processes that it started. Linux
only; disks in memory need root, and are left out without it.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.chaos.checker import Rows, Tracked, Verdict, compared, rows_in, tracked_differences, tracked_in
from bench.chaos.disks import Untried
from bench.chaos.driving import LIMIT_S, Broken, Done, Fault, Life, age, resumed
from bench.chaos.faults import INLINE
from bench.chaos.ray_faults import ON_NODES, ON_RAY, wait_for, with_nodes
from bench.chaos.server_faults import ON_A_SERVER, with_server
from bench.chaos.world import Driver, World, actors_of, drive, make_inputs, make_world

_POLL_S = 0.05
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
    hit: int = 0
    untried: int = 0
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    mlflow: int = 0
    broken: list[str] = field(default_factory=list)

    def add(self, verdict: Verdict, *, is_hit: bool = True) -> None:
        """Count a seed."""
        self.seeds += 1
        self.hit += is_hit
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
    life: Life
    num_files: int


@dataclass(frozen=True)
class Kind:
    """Faults of one kind of world; `rig` gives a world what it needs beside its files, for as long as its block lasts."""

    executor: str
    faults: Mapping[str, Fault]
    rig: Callable[[World, Path], AbstractContextManager[World]]


KINDS: Mapping[str, Kind] = {
    "nothing": Kind("inline", INLINE, lambda world, _: nullcontext(world)),
    "ray": Kind("ray", ON_RAY, lambda world, _: nullcontext(world)),
    "nodes": Kind("ray", ON_NODES, with_nodes),
    "server": Kind("inline", ON_A_SERVER, with_server),
}


@dataclass
class Trial:
    """Sweeps of one kind: a new world for each seed, and what is expected of it."""

    kind: Kind
    inputs: Path
    folder: Path
    database: Path
    _expected: dict[int, Expected] = field(default_factory=dict)

    def expected(self, version: int = 1) -> Expected:
        """Of a run with that version of the policy, which nobody disturbs; run once."""
        if version not in self._expected:
            self._expected[version] = self._undisturbed(version)
        return self._expected[version]

    def _undisturbed(self, version: int) -> Expected:
        with self.world(f"undisturbed{version}", version) as world:
            driver = drive(world)
            actors_s = _actors_life(world, driver) if self.kind.executor == "ray" else 0.0
            code, ended_s = driver.end(LIMIT_S), age(driver)
            if code != 0:
                raise SystemExit(f"the undisturbed run ended with {code}: {driver.log.read_text()}")
            life = Life(ended_s, actors_s)
            rows, num_doubled = rows_in(world.results / "rows")
            assert rows and not num_doubled
            num_files = len(list((world.results / "rows").iterdir()))
            return Expected(rows, tracked_in(world.database), life, num_files)

    @contextmanager
    def world(self, name: str, version: int = 1) -> Iterator[World]:
        """A new one."""
        new = make_world(self.inputs, self.folder / name, self.kind.executor, self.database, version)
        with self.kind.rig(new, self.inputs) as world:
            yield world

    def disturbed(self, fault: Fault, seed: int) -> tuple[Done, Verdict]:
        """Disturb and resume one sweep. Raises Broken and Untried."""
        known = self.expected()
        with self.world(f"seed{seed}") as world:
            world = replace(world, num_files=known.num_files)
            done = fault(world, random.Random(seed), known.life)
            if not done.is_finished:
                done = replace(done, told=f"{done.told}, then {resumed(world)}")
            home = world.folder / "results"
            *earlier, expected = map(self.expected, done.versions)
            others = {name: row for it in earlier for name, row in it.rows.items()}
            verdict = compared((home if home.exists() else world.results) / "rows", expected.rows, others)
            # Without it nobody knows which sweep of MLflow's it was: docs/reliability.md
            if "run_meta.json" not in done.told:
                differences = tracked_differences(tracked_in(world.database), expected.tracked)
                verdict = replace(verdict, mlflow=differences)
        return done, verdict


def _actors_life(world: World, driver: Driver) -> float:
    """From the first to the last moment at which there was an engine actor, in seconds."""

    def are_there() -> bool:
        return any(world.nodes.actors().values()) if world.nodes else bool(actors_of(driver))

    wait_for(driver, are_there)
    first_s = last_s = age(driver)
    while driver.is_alive():
        last_s = age(driver) if are_there() else last_s
        time.sleep(_POLL_S)
    return last_s - first_s


def run_seeds(options: argparse.Namespace, folder: Path) -> Mapping[str, Tally]:
    """All seeds, a line each."""
    kind = KINDS[options.world]
    chosen = [name for name in kind.faults if not options.faults or name in options.faults]
    database = folder / "empty.db"
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as other:  # its engine has threads
        other.submit(_make_database, f"sqlite:///{database}").result()
    trial = Trial(kind, make_inputs(folder), folder, database)
    known = trial.expected()
    deadline_s = time.monotonic() + 60 * options.minutes
    print(f"undisturbed: {len(known.rows)} rows, {known.life}", flush=True)
    tallies = {name: Tally() for name in chosen}
    for seed in range(options.first, options.first + options.seeds):
        if time.monotonic() > deadline_s:
            print("the time is over", flush=True)
            break
        name = chosen[seed % len(chosen)]
        try:
            done, verdict = trial.disturbed(kind.faults[name], seed)
        except Untried as error:
            tallies[name].untried += 1
            print(f"seed {seed} {name}: not tried: {error}", flush=True)
            continue
        except Broken as error:
            tallies[name].broken.append(f"seed {seed}: {error}")
            tallies[name].seeds += 1
            print(f"seed {seed} {name}: BROKEN: {error}", flush=True)
            continue
        tallies[name].add(verdict, is_hit=done.is_hit)
        wrong = "" if verdict.is_sound else " WRONG"
        print(f"seed {seed} {name}: {done.told}: {verdict}{wrong}", flush=True)
    return tallies


def _end_on_sigterm() -> None:
    """End as on Ctrl-C, so that servers and clusters end as well; drivers, which are forks, know nothing of it."""
    own = os.getpid()

    def end(number: int, _: object) -> None:
        if os.getpid() == own:
            raise SystemExit(128 + number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)


def _make_database(uri: str) -> None:
    from jobs.tracking.connection import connect

    connect(uri).search_experiments()


def table(tallies: Mapping[str, Tally]) -> str:
    """The table of docs/reliability.md."""
    lines = [
        "| fault | seeds | hit | lost | doubled | changed | MLflow differs | promises broken |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, it in tallies.items():
        seeds = f"{it.seeds}" + (f" ({it.untried} not tried)" if it.untried else "")
        lines.append(
            f"| {name} | {seeds} | {it.hit} | {it.lost} | {it.doubled} | {it.changed} | {it.mlflow} | {len(it.broken)} |"
        )
    return "\n".join(lines)


def main() -> int:
    """0 where nothing went wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--with", dest="world", choices=KINDS, default="nothing", help="beside the sweep itself"
    )
    parser.add_argument("--minutes", type=float, default=24 * 60, help="begin no seed after these")
    parser.add_argument("--faults", nargs="*", default=[], help="these only")
    options = parser.parse_args()
    import torch

    # Drivers are forks, and threads do not come with a fork.
    torch.set_num_threads(1)
    _end_on_sigterm()
    os.environ["OMP_NUM_THREADS"] = "1"
    for module in _READ_BEFORE:
        importlib.import_module(module)

    with tempfile.TemporaryDirectory(prefix="kvmerger-chaos-") as folder:
        tallies = run_seeds(options, Path(folder))
    print(f"\n{table(tallies)}")
    return 0 if all(it.is_sound for it in tallies.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

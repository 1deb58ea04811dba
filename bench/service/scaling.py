"""Items per hour through the real service with one actor, two, and so on: how near to linear?

    python -m bench.service.scaling [--actors 1 2] [--items 200] [--model demo|random-8b|random-135m] [--length 4096]
    python -m bench.service.scaling --table scaling.jsonl

Each count is a whole `jobs/sweep.py` with Ray in a fresh folder, tracking off, on RULER items that need no download. The rate
is that of a sweep under way: from the moment when each actor has finished two items on average to the last item, so that
starting Ray and loading models, which a longer sweep pays once, is left out, and the last actor's tail is not. Kernels that a
machine has never compiled are not left out either: run the first count twice on a fresh one, and the last line counts.

random-8b and random-135m are models of these shapes with random weights: 16 and 0.3 GB in the output folder, where they stay.

Each sweep is a line in $OUT/scaling.jsonl at once. Sweeps of separate commands belong together where settings, code, versions
and device are the same: the table joins this command's with those in the file, and --table prints files alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.records import append, default_path, provenance, read

ROOT = Path(__file__).parents[2]
_TASKS = ("ruler/niah_single_2", "ruler/vt")
_POLICIES = ("kvmerger", "snapkv", "streaming_llm", "knorm", "tova", "keydiff", "h2o")
_WARM_UP_ITEMS = 2  # of each actor
_TARGET = 0.95
_RANDOM = "random-"
_EXIT_OK, _EXIT_SOME_FAILED = 0, 3


Record = Mapping[str, Any]
"""One sweep: ``actors``, ``num_items``, ``num_failed_rows``, ``wall_s`` of the whole command, ``items_per_hour`` while it was
under way; what was asked for (`_ASKED`), and `provenance`."""
_ASKED = ("model", "length", "asked_items", "num_cpus")
_ALIKE = (*_ASKED, "device", "versions", "sources")
"""What sweeps must have in common to be compared."""


def main() -> None:
    """Run the sweeps and print a table."""
    options = _parser().parse_args()
    if options.table:
        print(markdown(read(*options.table)))
        return
    folder = options.output or Path(tempfile.mkdtemp(prefix="scaling-"))
    folder.mkdir(parents=True, exist_ok=True)
    path = default_path("scaling")
    measured = read(path) if path is not None and path.exists() else []
    asked = {
        "model": options.model,
        "length": options.length,
        "asked_items": options.items,
        "num_cpus": options.num_cpus,
        **provenance("cpu"),
        "device": _device(),
    }
    model = saved_model(options.model, folder)
    for actors in options.actors:
        # A new folder each time: in an old one the sweep would find its rows and compute nothing.
        settings = settings_for(options, model, actors, folder / f"actors-{actors}-{time.time_ns()}")
        record = {**asked, **run_sweep(settings, actors, folder / f"actors-{actors}.yaml")}
        append(path, record)
        measured.append(record)
        print(json.dumps(record), flush=True)
    print(markdown(measured))


def settings_for(options: argparse.Namespace, model: str, actors: int, output_dir: Path) -> dict[str, Any]:
    """The sweep: the same items for every number of actors."""
    per_task = -(-options.items // len(_TASKS))
    return {
        "name": f"scaling-{actors}",
        "model": {"name": model},
        "tasks": [{"name": task, "length": options.length, "limit": per_task, "seed": 7} for task in _TASKS],
        "policies": ["full", *({"name": name, "budget": 0.5} for name in _POLICIES)],
        "query_mode": "query_agnostic",
        "executor": "ray",
        "actors": {"count": actors, **({"num_cpus": options.num_cpus} if options.num_cpus else {})},
        "output_dir": str(output_dir.absolute()),
        "tracking": False,  # what `tracking: off` is once YAML has been read
    }


def run_sweep(settings: Mapping[str, Any], actors: int, config: Path) -> dict[str, Any]:
    """Run one sweep in a process of its own, with Ray; ends this program if it could not run."""
    config.write_text(json.dumps(settings))  # JSON is YAML
    start_s = time.monotonic()
    code = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "sweep.py"), str(config)],
        # To stderr: stdout holds records and table.
        cwd=ROOT, check=False, stdout=sys.stderr, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ).returncode  # fmt: skip
    if code not in (_EXIT_OK, _EXIT_SOME_FAILED):
        raise SystemExit(f"the sweep of {config} ended with exit code {code}; what it said is above")
    wall_s = time.monotonic() - start_s
    from jobs.results.store import ResultStore

    rows = ResultStore(Path(settings["output_dir"])).read_table().to_pylist()
    finished = {row["item_id"]: row["created_at_s"] for row in rows}
    return {
        "actors": actors,
        "num_items": len(finished),
        "num_failed_rows": sum(row["status"] == "failed" for row in rows),
        "wall_s": wall_s,
        "items_per_hour": items_per_hour(sorted(finished.values()), actors),
    }


def items_per_hour(finished_s: Sequence[float], actors: int) -> float:
    """The rate after each actor's warm-up; ``finished_s`` ascends, one moment per item.

    Raises:
        ValueError: hardly any item is left after the warm-up.
    """
    num_skipped = _WARM_UP_ITEMS * actors
    if len(finished_s) < 2 * num_skipped:
        raise ValueError(
            f"{len(finished_s)} items are too few for {actors} actors; ask for {2 * num_skipped} or more with --items"
        )
    start_s = finished_s[num_skipped - 1]
    # Items of one unit finish at one moment: none of those that the warm-up ends with belongs to the time after it.
    return 3600 * sum(moment_s > start_s for moment_s in finished_s) / (finished_s[-1] - start_s)


def markdown(measured: Iterable[Record]) -> str:
    """A table for each group of comparable sweeps: rates as shares of the one-actor rate, scaled by the number of actors.

    Of sweeps with the same number of actors the last one counts; without one of one actor, the fewest there are is the base.
    """
    groups: dict[str, dict[int, Record]] = {}
    for record in measured:
        alike = json.dumps([record.get(name) for name in _ALIKE], sort_keys=True)
        groups.setdefault(alike, {})[record["actors"]] = record
    return "\n\n".join(
        _table([by_actors[actors] for actors in sorted(by_actors)]) for by_actors in groups.values()
    )


def _table(group: Sequence[Record]) -> str:
    first = group[0]
    base = first["items_per_hour"] / first["actors"]
    asked = ", ".join(f"{name} {first[name]}" for name in _ASKED if first.get(name) is not None)
    lines = [
        f"{asked}; {first.get('device')}; code {first.get('commit')} {first.get('sources')}; {first.get('versions')}",
        "",
        f"| actors | items | failed rows | wall s | items per hour | of linear (asked: ≥ {_TARGET:.0%}) |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {one['actors']} | {one['num_items']} | {one['num_failed_rows']} | {one['wall_s']:.0f} | "
        f"{one['items_per_hour']:,.0f} | {one['items_per_hour'] / one['actors'] / base:.1%} |"
        for one in group
    ]
    if first["actors"] != 1:
        lines += ["", f"No sweep of one actor is among them: linear is from {first['actors']}."]
    return "\n".join(lines)


def saved_model(model: str, folder: Path) -> str:
    """The model's name; one with random weights is made and saved first, by a process that then leaves the device."""
    if not model.startswith(_RANDOM):
        return model
    from bench.random_llama import SHAPES  # with torch and all: --table and other models do without

    shape = model.removeprefix(_RANDOM)
    if shape not in SHAPES:
        return model
    path = folder.absolute() / model
    subprocess.run([sys.executable, "-m", "bench.random_llama", shape, str(path)], cwd=ROOT, check=True)
    return str(path)


def _device() -> str:
    """The device's name, from a process of its own: this one holds no memory of a GPU that the actors shall have."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu')"
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--actors", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--length", type=int, default=4096, help="tokens of prompt and answer together")
    parser.add_argument(
        "--model", default="demo", help="demo, random-8b or random-135m (their shapes), a folder or a hub id"
    )
    parser.add_argument("--num-cpus", type=float, help="of each actor; default: as the service decides")
    parser.add_argument(
        "--table", nargs="+", type=Path, metavar="JSONL", help="print these results and do nothing else"
    )
    parser.add_argument(
        "--output", type=Path, help="a folder for the sweeps; default: a new one under the system's"
    )
    return parser


if __name__ == "__main__":
    main()

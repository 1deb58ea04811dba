"""What must hold of a folder and of MLflow's database whatever happened to them: nothing lost, doubled or changed.

Rows are compared bit for bit with those of a run that nobody disturbed, in all columns but the times and what names the run.
"""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from jobs.results.schema import DONE_STATUSES
from jobs.results.seal import read_parquet

# Times, which unit a row was computed in (that depends on what was done before), and what names the run.
_NOT_COMPARED = frozenset({"created_at_s", "seconds", "unit_id", "sweep", "versions"})
_SAME = 1e-12  # the order of a sum may change its last bits
_TIME = "time/"

Rows = Mapping[str, str]
"""Identity → every compared value of the row, written out."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong, counted; all 0 where nothing is."""

    num_rows: int
    lost: int
    doubled: int
    changed: int
    mlflow: tuple[str, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.doubled or self.changed or self.mlflow)

    def __str__(self) -> str:
        told = f"{self.num_rows} rows, {self.lost} lost, {self.doubled} doubled, {self.changed} changed"
        return told + (f"; MLflow: {'; '.join(self.mlflow)}" if self.mlflow else "")


def rows_in(rows_folder: Path) -> tuple[Rows, int]:
    """The finished rows of a folder's files, and how many of them are there a second time."""
    found: dict[str, str] = {}
    num_doubled = 0
    for path in sorted(rows_folder.glob("*.parquet")):
        # Not by the store: that keeps one of two rows, and nobody would see the other.
        for row in read_parquet(path.read_bytes()).to_pylist():
            if row["status"] not in DONE_STATUSES:
                continue
            num_doubled += row["identity"] in found
            # repr tells 0.0 from -0.0, and floats of different bits apart.
            found[row["identity"]] = repr([row[name] for name in sorted(row.keys() - _NOT_COMPARED)])
    return found, num_doubled


def compared(rows_folder: Path, expected: Rows, others: Rows = MappingProxyType({})) -> Verdict:
    """The folder's rows against those of the undisturbed run.

    `others` may be there or not, and are looked at as well; a row of neither counts as changed.
    """
    found, num_doubled = rows_in(rows_folder)
    known = {**others, **expected}
    changed = sum(row != known.get(identity) for identity, row in found.items())
    return Verdict(len(found), len(expected.keys() - found.keys()), num_doubled, changed)


@dataclass(frozen=True, slots=True)
class Tracked:
    """What MLflow's database holds: label → key → value, what is there twice, and runs that are no single finished one."""

    values: Mapping[str, Mapping[str, float]]
    faults: tuple[str, ...]


def tracked_in(database: Path) -> Tracked:
    """Read the database itself, whose copies in a client may be old."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        labels = dict(
            connection.execute(
                "select run_uuid, value from tags where key = 'kvmerger.variant' union "
                "select run_uuid, '(sweep)' from tags where key = 'kvmerger.role' and value = 'sweep'"
            )
        )
        alive = dict(connection.execute("select run_uuid, status from runs where lifecycle_stage = 'active'"))
        (num_doubled,) = connection.execute(
            "select count(*) from (select 1 from metrics group by run_uuid, key, step having count(*) > 1)"
        ).fetchone()
        latest = connection.execute("select run_uuid, key, value from latest_metrics").fetchall()
    faults = [f"{num_doubled} points doubled"] if num_doubled else []
    for label, count in Counter(labels[run] for run in alive if run in labels).items():
        faults += [f"{count} runs of {label}"] if count > 1 else []
    faults += [f"{labels.get(run, run)} is {status}" for run, status in alive.items() if status != "FINISHED"]
    values: dict[str, dict[str, float]] = {}
    for run, key, value in latest:
        if run in alive and not key.startswith(_TIME):
            values.setdefault(labels.get(run, run), {})[key] = value
    return Tracked(values, tuple(faults))


def tracked_differences(found: Tracked, expected: Tracked) -> tuple[str, ...]:
    """What MLflow shows otherwise than after the undisturbed run."""
    told = list(found.faults)
    for label in sorted(expected.values.keys() | found.values.keys()):
        ours, theirs = found.values.get(label, {}), expected.values.get(label, {})
        if keys := sorted(ours.keys() ^ theirs.keys()):
            told.append(f"{label}: keys {', '.join(keys[:3])}")
        wrong = [
            key
            for key in ours.keys() & theirs.keys()
            if not math.isclose(ours[key], theirs[key], rel_tol=_SAME, abs_tol=_SAME)
        ]
        if wrong:
            told.append(f"{label}: other values of {', '.join(sorted(wrong)[:3])}")
    return tuple(told)

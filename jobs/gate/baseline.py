"""What a night is compared with: a results folder, the night promoted last, or the run that carries MLflow's tag.

Finding a baseline changes nothing but a cache. Promoting a night leaves exactly one baseline, and while it is being done
there is never none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jobs.analysis.folder.findings import Findings
from jobs.console.paths import shown
from jobs.gate.judge import HEAVY_COLUMNS
from jobs.results.schema import Row
from jobs.results.store import ResultStore

_POINTER = "baseline.json"


class BaselineError(ValueError):
    """There is no baseline, or it cannot be read or set. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """Rows to compare with. `name` is what a reader calls it; `origin` says where it was found."""

    name: str
    origin: str
    rows: list[Row]


class Baselines(Protocol):
    """A place that keeps baselines: a folder, a pointer file or MLflow."""

    def find(self) -> Baseline | None:
        """The baseline, None while nothing was promoted.

        Raises:
            BaselineError: it cannot be read.
            TrackingError: the server cannot be asked.
        """
        ...

    def promote(self, store: ResultStore) -> str:
        """Make a night the only baseline; returns its name. Raises as `find` does."""
        ...


@dataclass(frozen=True, slots=True)
class FolderBaseline:
    """A results folder that the settings or the command line name; nothing is ever promoted over it."""

    folder: Path

    def find(self) -> Baseline:
        """The folder's rows; BaselineError when there are none."""
        return Baseline(self.folder.name, f"folder {shown(self.folder)}", rows_of(self.folder))

    def promote(self, store: ResultStore) -> str:
        """Always refused with BaselineError: a folder that was named is changed by naming another."""
        raise BaselineError(
            f"--promote cannot change the baseline, because the folder {shown(self.folder)} is named for it; "
            f"name {shown(store.root)} instead, or leave `gate.baseline` and --baseline out"
        )


@dataclass(frozen=True, slots=True)
class PromotedNight:
    """Without a tracker: `baseline.json` beside the nights names one of them."""

    root: Path

    def find(self) -> Baseline | None:
        """The rows of the night that was promoted last."""
        stored = ResultStore(self.root).read_json(_POINTER, "delete it and promote a night")
        if stored is None:
            return None
        name = stored.get("night")
        # A folder beside it: what leads elsewhere was written by somebody else.
        if not isinstance(name, str) or name in ("", "..") or "\0" in name or Path(name).name != name:
            raise BaselineError(f"{self.root / _POINTER} names no night; delete it and promote a night")
        # Only the name is stored, not the path: the nights may be moved together, or mounted elsewhere.
        return Baseline(name, f"night {name}, promoted here", rows_of(self.root / name))

    def promote(self, store: ResultStore) -> str:
        """Name the night in `baseline.json`, replaced whole."""
        ResultStore(self.root).write_json(_POINTER, {"night": store.root.name})
        return store.root.name


def rows_of(folder: Path) -> list[Row]:
    """The rows of a results folder that its latest run owes, with the columns that the gate reads.

    Raises:
        BaselineError: no such folder, or nothing in it.
        ResultError: files that cannot be read.
    """
    rows = Findings.read(ResultStore(folder)).rows_with(*HEAVY_COLUMNS)
    if not rows:
        raise BaselineError(
            f"the baseline {shown(folder)} has no results; name the output_dir of a finished sweep"
        )
    return rows

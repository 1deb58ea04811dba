"""Which nights have not been delivered to the tracker, and what stands in for a tracker that cannot be reached."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import ValidationError

from jobs.console.addresses import shown_address
from jobs.results.schema import ResultError
from jobs.results.store import ResultStore
from jobs.settings.file import parsed
from jobs.settings.schema import Settings
from jobs.tracking.tracker import NullTracker, SweepReport

_MARKER = ".delivered"


class UnreachableTracker(NullTracker):
    """Stands in for a server that does not answer: reports that nothing was delivered, so that a later run delivers."""

    def finish(self, report: SweepReport) -> bool:
        """Nothing was delivered."""
        return False

    @property
    def how_to_open(self) -> str:
        """Why there is nothing to open."""
        return "the tracker could not be reached"


def undelivered(root: Path, uri: str) -> list[tuple[ResultStore, Settings]]:
    """The nights under `root` that belong to the tracker at `uri` and are not marked as delivered, oldest first."""
    found = []
    # Unless the user names them, names of nights begin with the date, and so sort by time.
    for folder in sorted(path.parent for path in root.glob("*/run_meta.json")):
        store = ResultStore(folder)
        settings = _settings_of(store)
        if (
            settings is None
            or not settings.tracking.enabled
            or shown_address(settings.tracking_uri) != shown_address(uri)
        ):
            continue
        if not (folder / _MARKER).exists():
            found.append((store, settings))
    return found


def mark_delivered(store: ResultStore, is_delivered: bool) -> None:
    """Remember in the night's folder whether all of its rows, verdict and files were delivered."""
    if is_delivered:
        store.write_text(_MARKER, "")
    else:
        # A night that goes on has rows that were not delivered yet.
        (store.root / _MARKER).unlink(missing_ok=True)


def _settings_of(store: ResultStore) -> Settings | None:
    """The settings a night was run with; None if this version cannot read them."""
    try:
        return Settings.model_validate(parsed(store.read_settings_text()))
    except (ValidationError, ResultError, yaml.YAMLError):
        return None

"""Show a results folder in MLflow without running anything: `python jobs/sweep.py mirror RESULTS_DIR [--uri URI]`.

For what was computed while the server was away, scored again, or brought from another machine. Doing it twice changes
nothing; the sweep's runs are the ones that running it would continue.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from jobs.console.command_line import EXIT_BAD_INPUT, EXIT_OK
from jobs.mirror_content import MirrorContent, sweep_of_folder
from jobs.results.schema import ResultError
from jobs.results.store import ResultStore
from jobs.tracker import RunStatus, TrackingError
from jobs.tracking import make_tracker


def main(arguments: Sequence[str] | None = None) -> int:
    """Mirror one folder; 0, or 2 when there is nothing to mirror or the server did not take it."""
    parser = argparse.ArgumentParser(
        prog="sweep.py mirror", description="Show a results folder in MLflow without running anything."
    )
    parser.add_argument("results_dir", type=Path, help="the output_dir of a sweep, such as results/demo")
    parser.add_argument("--uri", help="tracking server or sqlite:///FILE (default: what the settings name)")
    parser.add_argument("--experiment", help="(default: what the settings name)")
    options = parser.parse_args(arguments)
    try:
        is_delivered, how_to_open = mirror_folder(
            ResultStore(options.results_dir), options.uri, options.experiment
        )
    except (ResultError, TrackingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    print(f"MLflow  {how_to_open}")
    if not is_delivered:
        print("error: not everything arrived; the same command sends what is missing", file=sys.stderr)
        return EXIT_BAD_INPUT
    return EXIT_OK


def mirror_folder(store: ResultStore, uri: str | None, experiment: str | None) -> tuple[bool, str]:
    """Deliver the folder; whether all of it arrived, and where to look.

    Raises:
        ResultError: it is not the folder of a sweep, or it cannot be read.
        TrackingError: the server cannot be used.
    """
    store.check_exists()
    content = MirrorContent.read(store)
    sweep = sweep_of_folder(content, store.root)
    settings = yaml.safe_load(content.settings_yaml)
    tracker = make_tracker(
        is_enabled=True,
        uri=uri or _uri_of(settings, store.root),
        artifact_dir=store.root.absolute().parent / "mlartifacts",
    )
    with tempfile.TemporaryDirectory(prefix="kvmerger-mirror-") as folder:
        status: RunStatus = "KILLED" if content.summary.num_missing else "FINISHED"
        report = content.report(status, content.page(), Path(folder))
        tracker.start(replace(sweep, experiment=experiment) if experiment else sweep)
        return tracker.finish(report), tracker.how_to_open


def _uri_of(settings: Mapping[str, Any], root: Path) -> str:
    tracking = settings.get("tracking") or {}
    if not tracking.get("enabled", True):
        raise TrackingError("this sweep ran with `tracking: off`; name a server or a database with --uri")
    return tracking.get("uri") or f"sqlite:///{root.absolute().parent / 'mlflow.db'}"


if __name__ == "__main__":
    sys.exit(main())

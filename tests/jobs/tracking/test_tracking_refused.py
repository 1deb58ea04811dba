"""Where nothing can be tracked, a run ends before it starts, within seconds and with the remedy."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from jobs.tracking.mlflow_tracker import MlflowTracker
from jobs.tracking.tracker import TrackingError
from tests.jobs.tracking.test_mlflow_tracker import PROBE_LIMIT_S, make_sweep


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("./mlruns", "is a folder"),
        ("databricks", "no address that a sweep can use"),
        ("databricks://profile", "no address that a sweep can use"),
        ("sqlite:////proc/none/mlflow.db", "cannot write"),
        ("postgresql://127.0.0.1:9/mlflow", "no database answers at 127.0.0.1:9"),
        ("http://127.0.0.1:9", "cannot be used"),
        ("carrier-pigeon://x", "cannot be used"),
    ],
)
def test_unusable_uri_stops_the_run_before_it_starts_with_the_remedy(
    uri: str, reason: str, tmp_path: Path
) -> None:
    begin_s = time.monotonic()
    with pytest.raises(TrackingError, match=reason):
        MlflowTracker(uri, tmp_path).start(make_sweep())
    assert time.monotonic() - begin_s < PROBE_LIMIT_S


def test_an_address_of_mlflows_variable_is_not_looked_for_in_the_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(TrackingError, match=r"'\./mlruns' \(of MLFLOW_TRACKING_URI\) is a folder"):
        MlflowTracker("./mlruns", tmp_path).start(make_sweep())


def test_server_that_accepts_and_never_answers_is_given_up_in_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin_s = time.monotonic()
        with pytest.raises(TrackingError, match="tracking: off"):
            MlflowTracker(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path).start(make_sweep())
    assert time.monotonic() - begin_s < PROBE_LIMIT_S


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text(
        "not a database, but long enough to look like one at first sight" * 20
    )
    with pytest.raises(TrackingError, match=r"mlflow\.db"):
        MlflowTracker(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path).start(make_sweep())


def test_sweep_id_that_a_search_could_not_quote_is_refused() -> None:
    with pytest.raises(ValueError, match="o'clock"):
        make_sweep(sweep_id="o'clock")

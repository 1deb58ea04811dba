"""A new MLflow database for each test, without the seconds that MLflow takes to make one."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database MLflow has made its tables in, which takes it seconds."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments(max_results=1)
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path: Path, empty_database: bytes) -> Path:
    """A folder with such a database, as `sqlite_tracker` wants it."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mlflow.db").write_bytes(empty_database)
    return tmp_path

"""MLflow's client for an address. A sqlite database is there whole or not at all, however many processes want it at once.

MLflow makes its tables one by one: a second process that finds some of them fails, and one that dies half-way leaves a file
that nobody can use. So a new database is made under another name and renamed, by one process at a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

from jobs.console.addresses import SQLITE, sqlite_path, sqlite_uri
from jobs.console.turns import turn

_TURN_LIMIT_S = 120.0  # a busy machine takes half a minute for a new database
# They tell every step of making a database, and the store prints a stack each time that a database is locked, which whoever
# called it is told by the exception as well.
_TOO_LOUD = {
    "mlflow": logging.WARNING,
    "alembic": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,
}


def connect(uri: str) -> Any:
    """A client, with the database made if it is a sqlite file that is yet to be; may raise whatever MLflow raises."""
    from mlflow import MlflowClient

    for name, level in _TOO_LOUD.items():
        logging.getLogger(name).setLevel(level)
    path = sqlite_path(uri).absolute() if uri.startswith(SQLITE) else None
    if path is not None and _is_empty(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with turn(path.with_name(f".{path.name}.turn"), _TURN_LIMIT_S):
            if _is_empty(path):
                _make(path)
    return MlflowClient(tracking_uri=uri)


def _is_empty(path: Path) -> bool:
    # Whoever looks whether a database can be written leaves a file of no bytes.
    return not path.exists() or path.stat().st_size == 0


def _make(path: Path) -> None:
    from mlflow import MlflowClient

    arriving = path.with_name(f".{path.name}.{os.getpid()}.arriving")
    try:
        client = MlflowClient(tracking_uri=sqlite_uri(arriving))
        client.search_experiments(max_results=1)
        # Its pool keeps files open under a name that is about to go.
        with contextlib.suppress(AttributeError):
            client._tracking_client.store.engine.dispose()
        # Asked again: whoever takes no turns, such as `mlflow ui`, may have made one, and it may hold runs.
        if _is_empty(path):
            arriving.replace(path)
    finally:
        arriving.unlink(missing_ok=True)

"""A tracking URI that cannot work is refused in seconds, before MLflow's own long retries begin.

Knows URIs, files and sockets; not MLflow. Whether an HTTP server speaks MLflow is asked of it later.
"""

from __future__ import annotations

import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from jobs.console.addresses import SQLITE, has_hidden, malformed, shown_address, sqlite_path, sqlite_uri
from jobs.settings.mlflow_variables import URI, origin_of
from jobs.tracking.tracker import TrackingError

_CONNECT_TIMEOUT_S = 5.0
_HOSTED = ("databricks", "databricks-uc", "uc")
"""Databricks keeps files in places of its own, which it wants an experiment to be made for by hand."""
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def is_http(uri: str) -> bool:
    """Whether the URI names a tracking server."""
    return urlsplit(uri).scheme in ("http", "https")


def is_absent_file(uri: str) -> bool:
    """Whether the URI names a sqlite file that is yet to be made, so that there is nothing to be read; makes none.

    Where it could not be made, something else is wrong.
    """
    if not uri.startswith(SQLITE):
        return False
    path = sqlite_path(uri).absolute()
    # Below a file nothing can be made, and to call that merely absent would hide it.
    return not path.exists() and next(folder for folder in path.parents if folder.exists()).is_dir()


def check_usable(uri: str) -> None:
    """Refuse what cannot work; makes the folder of a sqlite file, and changes nothing else.

    Raises:
        TrackingError: a folder, a sqlite file that cannot be written, a database nobody listens for.
    """
    where = f"tracking uri {shown_address(uri)!r}{origin_of(uri)}"
    if has_hidden(uri):
        raise TrackingError(
            f"{where} was stored without its password; give the whole address in {URI}, or as --uri where a folder is "
            f"mirrored, or as `tracking.uri`"
        )
    if "://" in uri and (fault := malformed(uri)):
        raise TrackingError(f"{where} {fault}")
    # "postgresql+psycopg2" names the driver too.
    dialect = urlsplit(uri).scheme.partition("+")[0]
    remedy = (
        f"use `{sqlite_uri(Path('mlflow.db'))}` or the address of a tracking server as `tracking.uri`, or run "
        "with `tracking: off`"
    )
    if dialect in _HOSTED or uri in _HOSTED:
        raise TrackingError(f"{where} is no address that a sweep can use; {remedy}")
    if dialect in ("", "file"):
        raise TrackingError(f"{where} is a folder, which MLflow no longer writes to; {remedy}")
    if dialect == "sqlite":
        _check_sqlite(uri)
    elif dialect in _DATABASE_PORTS:
        _check_listening(uri, _DATABASE_PORTS[dialect])


def _check_sqlite(uri: str) -> None:
    path = sqlite_path(uri)
    if not uri.startswith(SQLITE) or not path.name:
        raise TrackingError(
            f"tracking uri {shown_address(uri)!r}{origin_of(uri)} names no file; write `{SQLITE}/absolute/path/mlflow.db`"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=_CONNECT_TIMEOUT_S)) as connection:
            connection.execute("BEGIN IMMEDIATE")  # takes the write lock; nothing is written
            connection.rollback()
    except (OSError, sqlite3.Error) as error:
        raise TrackingError(
            f"cannot write the tracking database {str(path)!r}{origin_of(uri)} ({error}); set `tracking.uri` to a place "
            f"that can be written, or run with `tracking: off`"
        ) from error


def _check_listening(uri: str, default_port: int) -> None:
    parts = urlsplit(uri)
    address = (parts.hostname or "localhost", parts.port or default_port)
    try:
        socket.create_connection(address, timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise TrackingError(
            f"no database answers at {address[0]}:{address[1]}{origin_of(uri)} ({error}); start it, correct "
            f"`tracking.uri`, or run with `tracking: off`"
        ) from error

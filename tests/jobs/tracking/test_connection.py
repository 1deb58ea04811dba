"""A new database is there whole or not at all, and what MLflow prints of a locked one stays unprinted."""

import logging
import multiprocessing
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy

from jobs.tracking.connection import connect


def _make(uri: str, name: str) -> None:
    connect(uri).create_experiment(name)


def test_many_processes_make_one_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=_make, args=(uri, f"e{number}")) for number in range(2)]
    for it in running:
        it.start()
    for it in running:
        it.join()
    assert [it.exitcode for it in running] == [0] * 2
    names = {it.name for it in connect(uri).search_experiments()}
    assert names == {"Default", "e0", "e1"}
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_database_that_was_being_made_when_its_process_died_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / ".mlflow.db.17.arriving").write_bytes(b"half")
    (tmp_path / ".mlflow.db.turn").write_bytes(b"")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert [it.name for it in connect(uri).search_experiments()] == ["Default"]


def test_a_locked_database_raises_and_prints_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # MLflow waits 20 s for a lock, in every session.
    text = sqlalchemy.sql.text
    monkeypatch.setattr(
        sqlalchemy.sql,
        "text",
        lambda words: text(words.replace("busy_timeout = 20000", "busy_timeout = 100")),
    )
    path = folder / "new" / "mlflow.db"
    client = connect(f"sqlite:///{path}?timeout=0.1")
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Exception, match="locked"):
            client.create_experiment("late")
    assert [it for it in caplog.records if it.levelno >= logging.WARNING] == []

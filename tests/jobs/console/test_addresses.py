"""No part of a password is left in what is shown, whatever it is made of; a path comes back from its address."""

import random
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from jobs.console.addresses import (
    hidden_in,
    malformed,
    shown_address,
    sqlite_path,
    sqlite_uri,
    without_passwords,
)

SIGNS = "/@:?#&= %'\"[]{}<>\\|`~;,.!$*()+äж中ع"
DATA_SET = f"hf://datasets/me/my_rows.v2@{'0123456789abcdef' * 2}01234567"
SCHEMES = ("http", "https", "postgresql", "postgresql+psycopg2", "mysql+pymysql", "databricks")


def passwords(seed: int) -> list[str]:
    """Each begins and ends with what a search can find."""
    draw = random.Random(seed)
    return ["Kn0ck" + "".join(draw.choices(SIGNS, k=draw.randrange(6))) + "Kn0ck" for _ in range(300)]


def test_nothing_of_a_password_is_left_in_an_address(seed: int) -> None:
    for number, password in enumerate(passwords(seed)):
        scheme = SCHEMES[number % len(SCHEMES)]
        for address in (
            f"{scheme}://joe:{password}@host:5000/path",
            f"{scheme}://{password}@host",
            f"{scheme}://host/path?user=joe&password={password}",
            f"{scheme}://host/#{password}",
            f"{scheme}://joe:{password}@host/p?token={password}#{password}",
        ):
            assert "Kn0ck" not in shown_address(address), address
            told = hidden_in({"args": [f"tracking.uri={address}"], "uri": (address,), "n": 3})
            assert "Kn0ck" not in str(told) and told["n"] == 3, address


def test_a_sentence_loses_passwords_and_nothing_else(seed: int) -> None:
    legal = (it for it in passwords(seed) if not set(it) & set("?#@/ \"'"))
    for password in legal:
        address = f"http://joe:{password}@host:5000"
        assert without_passwords(f"at {address} failed for snapkv@0.5") == (
            "at http://…@host:5000 failed for snapkv@0.5"
        )
    assert without_passwords(f"no file {str(Path('http://joe:Kn0ck@h/x'))!r}") == "no file 'http:/…@h/x'"
    for sentence in (
        "http://host:5000 and snapkv@0.5",
        "see https://host/a/b, http://host:1/#/experiments/1/runs/2?workflowType=x",
        f"{DATA_SET} and {DATA_SET}/kv/test.parquet, of snapkv@0.5; {DATA_SET}: {DATA_SET}.",
        f"tasks=[{{name: file/rows, data: {DATA_SET}/kv}}, {{name: file/rows, data: '{DATA_SET}'}}]",
        "sqlite:////home/me@uni/mlflow.db?timeout=5 of joe@uni, keydiff@0.6+keepkv",
    ):
        assert without_passwords(sentence) == sentence


def test_a_data_set_keeps_its_name_and_its_commit() -> None:
    for address in (DATA_SET, f"{DATA_SET}/kv", f"{DATA_SET}/data/a.jsonl.gz"):
        told = {"tasks": [{"data": address}], "args": [f"tasks.0.data={address}"]}
        assert hidden_in(told) == told and shown_address(address) == address
    for address in (
        f"{DATA_SET}@host",
        f"{DATA_SET}:Kn0ck@host",
        "hf://user:Kn0ck@host",
        f"http://{DATA_SET}Kn0ck@h",
    ):
        assert "Kn0ck" not in str(hidden_in([address, f"no {address} there"])), address


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://joe:Kn/0ck@host/db",
        "http://joe:12/34@host",
        "http://joe:a?b@host",
        "http://joe:a#b@host",
        "http://joe:a@b@host",
        "http://joe:a b@host",
        "http://host:PORT",
        "http://host:65536",
        "http://[::1",
    ],
)
def test_what_a_library_would_cut_in_the_middle_of_a_password_is_refused_without_it(address: str) -> None:
    fault = malformed(address)
    assert fault is not None and "Kn" not in fault and "34" not in fault


@pytest.mark.parametrize(
    "address", ["http://joe:Kn%2F0ck@host:5000/x", "http://h", "sqlite:////a b@c/d#e?f", "http://[::1]:5000"]
)
def test_what_is_well_formed_is_not_refused(address: str) -> None:
    assert malformed(address) is None


def test_a_database_is_where_its_address_says(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    fixed = ["c%41b", "p%201", "a?b", "a#b", "x[v2]", "a@b:c", "it's", 'd"q', "+", "ä ж 中 ع", "%", "n" * 200]
    for name in fixed + ["".join(draw.choices(SIGNS.replace("/", "%"), k=8)) + "x" for _ in range(50)]:
        path = tmp_path / name / "mlflow.db"
        path.parent.mkdir(exist_ok=True)
        uri = sqlite_uri(path)
        assert sqlite_path(uri) == path and Path(str(make_url(uri).database)) == path
        # Opened as MLflow does, and found by its path.
        with create_engine(uri).connect() as connection:
            connection.exec_driver_sql("create table t (x)")
        assert sqlite3.connect(path).execute("select name from sqlite_master").fetchall() == [("t",)]

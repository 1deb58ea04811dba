"""What rows were read from is told as it was then, and nothing is computed where nobody asks."""

from __future__ import annotations

import hashlib
import json
import random
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.sources import noting, object_store
from evaluators.benchmarks.sources.noting import noted_sources, noting_object, noting_path
from evaluators.registry import load_items
from tests.evaluators.conftest import MakeTokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_file_is_told_by_its_bytes_and_the_rows_that_were_read(tmp_path: Path, seed: int) -> None:
    content = random.Random(seed).randbytes(3000)
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    with noted_sources() as found:
        assert list(noting_path("abc", file)) == ["a", "b", "c"]
        assert list(islice(noting_path("abc", file), 2)) == ["a", "b"]
        assert list(noting_path("", file)) == []
    expected = {"place": str(file), "sha256": sha256}
    assert [it.told() for it in found] == [{**expected, "num_rows": number} for number in (3, 2, 0)]


def test_a_file_that_changed_under_its_name_is_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    digests = []
    for content in (b"1", b"22", b"333"):
        file.write_bytes(content)
        with noted_sources() as found:
            list(noting_path("a", file))
        digests.append(found[0].sha256)
    assert digests == [hashlib.sha256(it).hexdigest() for it in (b"1", b"22", b"333")]


def test_a_file_of_the_hubs_cache_is_told_as_the_hub_has_it(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "datasets--me--my-rows.v2"
    for sha256, is_large in (("f" * 64, True), (hashlib.sha256(b"x").hexdigest(), False)):
        blob = folder / "blobs" / (sha256 if is_large else "e" * 40)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(b"x")
        link = folder / "snapshots" / COMMIT / "data" / f"{is_large}.zip"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
        with noted_sources() as found:
            list(noting_path("ab", link))
        assert found[0].told() == {
            "place": "hub",
            "repository": "me/my-rows.v2",
            "commit": COMMIT,
            "file": f"data/{is_large}.zip",
            "sha256": sha256,
            "num_rows": 2,
        }


def test_an_object_of_a_store_is_told_by_size_and_time() -> None:
    with noted_sources() as found:
        assert list(noting_object("ab", "s3://bucket/a.jsonl", "7 bytes of 2026-01-01")) == ["a", "b"]
    assert found[0].told() == {
        "place": "s3://bucket/a.jsonl",
        "version": "7 bytes of 2026-01-01",
        "num_rows": 2,
    }


def test_nothing_is_read_twice_where_nobody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noting, "_source_of", lambda path: pytest.fail("read for its digest"))
    assert list(noting_path("ab", tmp_path / "none")) == ["a", "b"]
    with noted_sources():
        pass
    assert list(noting_path("ab", tmp_path / "none")) == ["a", "b"]
    assert list(noting_object("ab", "s3://bucket/key", "")) == ["a", "b"]


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    with noted_sources(), pytest.raises(BenchmarkError, match=r"none.jsonl cannot be read"):
        list(noting_path("ab", tmp_path / "none.jsonl"))


@pytest.mark.parametrize("name", ["own.jsonl", "own.parquet"])
def test_rows_of_every_place_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_tokenizer: MakeTokenizer, name: str
) -> None:
    rows = [{"context": f"c {number}", "question": "q", "answers": ["ox"]} for number in range(3)]
    file = tmp_path / "bucket" / name
    file.parent.mkdir()
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(object_store, "store_and_path", lambda it: (store, it.removeprefix("s3://")))
    with noted_sources() as found:
        load_items(TaskSpec("file/rows", data=str(file), limit=1), make_tokenizer())
        load_items(TaskSpec("file/rows", data=f"s3://bucket/{name}"), make_tokenizer())
    local, stored = found
    assert local.num_rows == stored.num_rows == 3, "of one's own rows each is checked"
    assert local.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert stored.place == f"s3://bucket/{name}"
    assert stored.version.startswith(f"{file.stat().st_size} bytes of 20")

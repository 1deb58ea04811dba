"""One reader for rows of every place: what is there is read as it is, and what is not is one sentence."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.sources import object_store
from evaluators.benchmarks.sources.rows import HubRows, read_own_rows, read_rows
from evaluators.registry import load_items
from tests.evaluators.benchmarks.sources.conftest import NEVER, NEW, OLD, cut_off
from tests.evaluators.conftest import MakeTokenizer
from tests.servers.fake_hub import FakeHub

TASK = "longbench/qasper"
# Each is made something else of by a reader that guesses types.
ROWS: list[dict[str, Any]] = [
    {"id": "7", "text": "2024-01-01", "list": ["a", "b"], "turns": [{"input": "q", "answer": "1"}]},
    {"id": "8", "text": "x" * 3000, "list": [], "turns": []},
]
CARD = b"""---
configs:
- {config_name: kv, data_files: kv/test.parquet}
- {config_name: vt, data_files: vt/test.parquet}
---
"""


def table(rows: list[dict[str, Any]] = ROWS) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def lines(rows: list[dict[str, Any]] = ROWS) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, lines())
    return file.getvalue()


CONTENTS = {
    "rows.jsonl": lines(),
    "rows.jsonl.gz": gzip.compress(lines()),
    "rows.parquet": table(),
    "rows.json": json.dumps(ROWS).encode(),
    "rows.zip": zipped("inside/rows.jsonl"),
}


@pytest.fixture
def hub(hub: FakeHub) -> FakeHub:
    """With two commits of the same files."""
    hub.commits[OLD] = {"rows.parquet": table(ROWS[:1]), "rows.jsonl": lines(ROWS[:1])}
    hub.commits[NEW] = {
        "rows.parquet": table(),
        "rows.jsonl": lines(),
        "README.md": CARD,
        "kv/test.parquet": table(ROWS[:1]),
        "vt/test.parquet": table(),
    }
    return hub


def published(file: str = "rows.parquet", revision: str = NEW) -> HubRows:
    return HubRows("owner/name", revision, file, zip_member="inside/rows.jsonl")


def read(data: str | Path | None, file: str = "rows.parquet", **options: Any) -> list[dict[str, Any]]:
    spec = TaskSpec(TASK, data=None if data is None else str(data), **options)
    return [row for _, row in read_rows(spec, published(file), "id and text")]


@pytest.mark.parametrize("name", CONTENTS)
def test_rows_are_what_was_written_whatever_holds_them(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(CONTENTS[name])
    assert read(tmp_path / name, name) == ROWS
    assert read(tmp_path, name) == ROWS


def test_a_folder_with_a_card_is_read_by_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(CARD)
    for config in ("kv", "vt"):
        (tmp_path / config).mkdir()
        (tmp_path / config / "test.parquet").write_bytes(table(ROWS[: 1 + (config == "vt")]))
    for config, num_rows in (("kv", 1), ("vt", 2)):
        found = HubRows("owner/name", NEW, "elsewhere.parquet", config=config)
        spec = TaskSpec(TASK, data=str(tmp_path))
        assert [row for _, row in read_rows(spec, found, "text")] == ROWS[:num_rows]
    with pytest.raises(BenchmarkError, match=r"has no configuration 'kw'. Known: kv, vt"):
        list(read_rows(spec, HubRows("owner/name", NEW, "elsewhere.parquet", config="kw"), "text"))


def test_no_second_copy_of_a_table_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    (tmp_path / "rows.parquet").write_bytes(table())
    assert read(tmp_path / "rows.parquet") == ROWS
    assert not list(tmp_path.rglob("*.arrow"))


def test_of_the_hub_a_commit_is_read_and_read_again_without_a_look(hub: FakeHub) -> None:
    assert read(None) == ROWS
    assert read(None, "rows.jsonl", revision=OLD) == ROWS[:1]
    assert read(f"hf://datasets/owner/name@{OLD}") == ROWS[:1]
    num_asked = len(hub.asked)
    assert read(None) == ROWS and read(None, revision=NEW) == ROWS
    assert len(hub.asked) == num_asked


def test_a_file_that_changed_under_its_name_is_another_commits(hub: FakeHub) -> None:
    assert read(None, revision=OLD) == ROWS[:1]
    assert read(None, revision=NEW) == ROWS
    hub.commits[OLD]["rows.parquet"] = table()
    assert read(None, revision=OLD) == ROWS[:1], "a commit does not change"


def test_what_the_hub_has_not_is_told(hub: FakeHub) -> None:
    with pytest.raises(
        BenchmarkError, match=rf"rows.parquet of owner/name@{NEVER} cannot be had .*RevisionNotFound"
    ):
        read(None, revision=NEVER)
    with pytest.raises(BenchmarkError, match=r"owner/name@bbb.* has no file none.jsonl; look at its files"):
        read(f"hf://datasets/owner/name@{NEW}/none.jsonl")
    with pytest.raises(
        BenchmarkError,
        match=r"rows.parquet of owner/other@.*RepositoryNotFound.*check its name.*`data` to a folder",
    ):
        read(f"hf://datasets/owner/other@{NEW}")


def test_what_is_gated_names_the_token_that_opens_it(hub: FakeHub) -> None:
    hub.is_gated = True
    with pytest.raises(BenchmarkError, match=r"rows.parquet of owner/name@.*GatedRepo.*set HF_TOKEN"):
        read(None)


@pytest.mark.parametrize("status", [401, 500, 503])
def test_a_hub_that_refuses_is_told_at_once(hub: FakeHub, status: int) -> None:
    hub.fault = status
    for data in (None, f"hf://datasets/owner/name@{NEW}/kv"):
        with pytest.raises(BenchmarkError, match=r"owner/name@.* cannot be had .*HF_TOKEN"):
            read(data)
    assert len(hub.asked) <= 4, "not again and again"


def test_without_a_network_no_other_revisions_rows_are_taken(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(None, revision=OLD) == ROWS[:1]
    cut_off(monkeypatch)
    assert read(None, revision=OLD) == ROWS[:1]
    with pytest.raises(
        BenchmarkError, match=f"owner/name@{NEW} cannot be had from the hub .*connect to the internet"
    ):
        read(None, revision=NEW)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("hf://datasets/owner/name@main", "'main' is no commit; give all 40 digits"),
        ("hf://datasets/owner/name", "is no address of a data set; write hf://datasets/OWNER/NAME@COMMIT"),
        ("hf://owner/name@" + NEW, "is no address of a data set"),
        ("https://example.org/rows.jsonl", "https:// is read from nowhere; copy the file"),
        ("s3://key:secret@bucket/rows.jsonl", "set AWS_ACCESS_KEY_ID"),
        ("s3://key:half/secret@bucket/rows.jsonl", "set AWS_ACCESS_KEY_ID"),
        ("hf://user:secret@datasets/owner/name", "is no address of a data set"),
    ],
)
def test_an_address_that_is_none_is_told_with_its_shape(data: str, words: str) -> None:
    with pytest.raises(BenchmarkError, match=words) as caught:
        read(data)
    assert "secret" not in str(caught.value)
    with pytest.raises(BenchmarkError, match="'main' is no commit"):
        read(None, revision="main")


def test_own_rows_come_from_a_data_set_by_its_card(hub: FakeHub, make_tokenizer: MakeTokenizer) -> None:
    own = [{"context": f"c {number}", "question": "q", "answers": ["ox"]} for number in range(3)]
    hub.commits[NEW]["vt/test.parquet"] = table(own)
    spec = TaskSpec("file/rows", data=f"hf://datasets/owner/name@{NEW}/vt")
    items = load_items(spec, make_tokenizer())
    assert [it.context for it in items] == ["c 0", "c 1", "c 2"]
    assert items[0].item_id.startswith("file/rows/vt/")
    name, rows = read_own_rows(TaskSpec("file/rows", data=f"hf://datasets/owner/name@{NEW}/rows.jsonl"), "")
    assert name == "rows.jsonl" and [row for _, row in rows] == ROWS
    for inside, words in (("", "has the configurations kv, vt; name one"), ("/kw", "'kw'. Known: kv, vt")):
        with pytest.raises(BenchmarkError, match=words):
            load_items(
                TaskSpec("file/rows", data=f"hf://datasets/owner/name@{NEW}{inside}"), make_tokenizer()
            )


def test_of_json_nothing_is_made_but_what_it_says(tmp_path: Path) -> None:
    odd = [
        {"text": "2024-01-01"},
        {"text": "7"},
        {"text": 7},
        {"text": 10**30},
        {"other": None},
        {"text": [1, "1"]},
    ]
    for name, content in (
        ("a.jsonl", lines(odd)),
        ("a.json", lines(odd)),
        ("b.json", json.dumps(odd).encode()),
    ):
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name) == odd, name


@pytest.mark.parametrize("name", CONTENTS)
def test_objects_of_a_store_are_read_where_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / "bucket"
    folder.mkdir()
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(object_store, "store_and_path", lambda it: (store, it.removeprefix("s3://")))
    with pytest.raises(BenchmarkError, match=r"there is no object s3://bucket/rows.*; check the address"):
        read(f"s3://bucket/{name}", name)
    (folder / name).write_bytes(CONTENTS[name])
    assert read(f"s3://bucket/{name}", name) == ROWS
    assert read("s3://bucket", name) == ROWS
    if name == "rows.jsonl":  # never from a copy
        (folder / name).write_bytes(lines(ROWS[:1]))
        assert read(f"s3://bucket/{name}", name) == ROWS[:1]


def test_a_store_that_cannot_be_reached_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: str) -> None:
        raise OSError("When getting information for key: access denied")

    monkeypatch.setattr(object_store, "store_and_path", refuse)
    with pytest.raises(BenchmarkError, match=r"access denied.*AWS_ENDPOINT_URL"):
        read("s3://bucket/rows.jsonl")


def test_arrays_and_tables_of_anything_else_are_told(tmp_path: Path) -> None:
    for name, content, words in (
        ("a.json", b"7", r"line 1: expected an object with id and text; got b'7'"),
        ("b.json", b"[1]", r"row 1: expected an object with id and text; got 1"),
        ("s.json", rb'[{"text": "\ud800"}]', r"row 1: holds half a surrogate pair"),
        ("c.json", b"[", "is no JSON that can be read"),
        ("d.parquet", b"PAR1", "is not a readable table"),
        ("e.csv", b"", "is none of .jsonl"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BenchmarkError, match=words):
            read(tmp_path / name)

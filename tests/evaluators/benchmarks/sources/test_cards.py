"""A data set's card says which files are meant: those are read, as they are, and no others are downloaded."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.sources.noting import noted_sources
from evaluators.benchmarks.sources.rows import HubRows, read_own_rows, read_rows
from tests.evaluators.benchmarks.sources.conftest import NEW, cut_off
from tests.servers.fake_hub import FakeHub

CARD = b"""---
license: mit
configs:
- config_name: exact
  data_files:
  - {split: test, path: exact/test.jsonl}
  - {split: dev, path: [exact/dev.jsonl]}
- config_name: many
  data_files: many/part-*.parquet
- config_name: away
  data_files: ../../secret.jsonl
---
Text.
"""
ODD: list[dict[str, Any]] = [{"text": "2024-01-01"}, {"text": "7"}, {"text": 7}]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def table(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


FILES = {
    "README.md": CARD,
    "exact/test.jsonl": lines(ODD),
    "exact/dev.jsonl": lines(ODD[:1]),
    "many/part-1.parquet": table([{"text": "a"}]),
    "many/part-2.parquet": table([{"text": "b"}]),
}


def own(data: str | Path, split: str | None = None) -> list[dict[str, Any]]:
    return [row for _, row in read_own_rows(TaskSpec("file/rows", data=str(data), split=split), "text")[1]]


def of_hub(inside: str = "", split: str | None = None) -> list[dict[str, Any]]:
    return own(f"hf://datasets/owner/name@{NEW}{inside}", split)


def saved(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_what_is_chosen_is_read_as_it_is_and_nothing_else_is_downloaded(hub: FakeHub) -> None:
    hub.commits[NEW] = dict(FILES)
    assert of_hub("/exact", "test") == ODD and of_hub("/exact", "dev") == ODD[:1]
    assert not [it for it in hub.asked if "many" in it or "/tree/" in it]
    with noted_sources() as found:
        assert of_hub("/many") == [{"text": "a"}, {"text": "b"}]
    assert [(it.file, it.commit, it.num_rows) for it in found] == [
        ("many/part-1.parquet", NEW, 1),
        ("many/part-2.parquet", NEW, 1),
    ]


def test_without_a_network_a_set_is_read_whole_or_not_at_all(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commits[NEW] = dict(FILES)
    assert of_hub("/exact") == ODD and len(of_hub("/many")) == 2
    cut_off(monkeypatch)
    assert of_hub("/exact") == ODD and len(of_hub("/many")) == 2
    (part,) = Path(constants.HF_HUB_CACHE).glob("**/part-2.parquet")
    part.unlink()
    for inside in ("/many", "/exact/none.jsonl"):
        with pytest.raises(
            BenchmarkError, match=rf"owner/name@{NEW} cannot be had .*connect to the internet"
        ):
            of_hub(inside)


def test_a_published_benchmark_is_read_from_another_set_by_configuration_or_by_its_files_names(
    hub: FakeHub,
) -> None:
    hub.commits[NEW] = {**FILES, "qasper.jsonl": lines(ODD[1:])}
    published = HubRows("else/where", "0" * 40, "data.zip", zip_member="x", local_names=("qasper.jsonl",))
    for inside, rows in (("/exact", ODD), ("", ODD[1:]), ("/exact/dev.jsonl", ODD[:1])):
        spec = TaskSpec("longbench/qasper", data=f"hf://datasets/owner/name@{NEW}{inside}")
        assert [row for _, row in read_rows(spec, published, "text")] == rows


def test_a_folder_is_read_as_a_data_set_of_the_hub_is(tmp_path: Path) -> None:
    only = CARD.replace(b"- config_name: many", b"...").partition(b"...")[0] + b"---\n"
    folder = saved(tmp_path / "mine", {**FILES, "README.md": only})
    assert own(folder) == own(folder, "test") == ODD and own(folder, "dev") == ODD[:1]
    with pytest.raises(BenchmarkError, match=r"has no split 'deb'. Did you mean 'dev'"):
        own(folder, "deb")
    (folder / "exact" / "test.jsonl").unlink()
    with pytest.raises(BenchmarkError, match=r"has no file exact/test.jsonl, of which its card tells"):
        own(folder)


@pytest.mark.parametrize("card", [b"No more than text.", b"---\nlicense: mit\n---\n", None])
def test_where_a_card_tells_of_no_files_their_names_do(hub: FakeHub, card: bytes | None) -> None:
    hub.commits[NEW] = {"data/test.jsonl": lines(ODD), "data/train.jsonl": lines(ODD[:1])}
    if card is not None:
        hub.commits[NEW]["README.md"] = card
    assert of_hub() == ODD and of_hub("", "train") == ODD[:1]
    with pytest.raises(BenchmarkError, match="no configuration 'kv'"):
        of_hub("/kv")


def test_where_a_card_tells_of_no_files_none_is_left_out(hub: FakeHub) -> None:
    hub.commits[NEW] = {"data/test.jsonl": lines(ODD), "data/more.parquet": table(ODD[:1])}
    with pytest.raises(BenchmarkError, match=r".parquet and JSON files; name the one that is meant"):
        of_hub()


@pytest.mark.parametrize(
    ("card", "words"),
    [
        (CARD, "has the configurations exact, many, away; name one"),
        (b"---\nconfigs: 3\n---\n", "card of owner/name cannot be read"),
        (b"---\n: : [\n---\n", "card of owner/name cannot be read"),
        (b"---\nconfigs:\n- {config_name: a, data_files: [3]}\n---\n", "owner/name"),
        (b"---\nconfigs:\n- {config_name: a, data_files: none.jsonl}\n---\n", "has no file none.jsonl"),
        (b"---\nconfigs:\n- {config_name: a, data_files: 'x-*.jsonl'}\n---\n", r"has no file x-\*.jsonl"),
    ],
)
def test_cards_that_do_not_say_which_are_told(hub: FakeHub, card: bytes, words: str) -> None:
    hub.commits[NEW] = {**FILES, "README.md": card}
    with pytest.raises(BenchmarkError, match=words):
        of_hub()


def test_a_card_names_no_files_but_its_own(hub: FakeHub) -> None:
    hub.commits[NEW] = dict(FILES)
    with pytest.raises(BenchmarkError, match="which is none of its files"):
        of_hub("/away")

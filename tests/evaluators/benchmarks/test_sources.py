"""Files that are larger than they look: the error names the file, the place, the limit and the remedy."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.ruler.filler import load_haystack
from evaluators.benchmarks.sources import files, json_rows
from evaluators.registry import load_items
from tests.evaluators.conftest import MakeTokenizer

GOOD = {"context": "c d", "question": "q", "answers": ["ox"]}
LIMIT = 200


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_LINE_BYTES", LIMIT)
    monkeypatch.setattr(json_rows, "MOST_LINE_BYTES", LIMIT)
    monkeypatch.setattr(files, "MOST_UNPACKED_BYTES", 10 * LIMIT)


def lines_of(path: Path) -> list[bytes]:
    with files.open_lines(path, str(path), zip_member="rows") as lines:
        return list(lines)


def packed(folder: Path, suffix: str, content: bytes) -> Path:
    path = folder / f"rows{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("rows", content)
    else:
        path.write_bytes(gzip.compress(content) if suffix == ".gz" else content)
    return path


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize("suffix", ["", ".gz", ".zip"])
def test_a_line_that_is_too_long_is_named_and_one_that_just_fits_is_read(tmp_path: Path, suffix: str) -> None:
    fits = b"a\n\n" + b"x" * (LIMIT - 1) + b"\ny"
    assert b"".join(lines_of(packed(tmp_path, suffix, fits))) == fits
    with pytest.raises(BenchmarkError, match=r"rows.*, line 3: is longer than .*; give each row a line"):
        lines_of(packed(tmp_path, suffix, b"a\n\n" + b" " * (LIMIT + 1)))


@pytest.mark.usefixtures("low_limits")
def test_a_packed_file_that_holds_too_much_is_named_and_a_plain_one_is_read(tmp_path: Path) -> None:
    content = (b"x" * (LIMIT - 1) + b"\n") * 11
    assert len(lines_of(packed(tmp_path, "", content))) == 11
    for suffix in (".gz", ".zip"):
        with pytest.raises(BenchmarkError, match=r"unpacked \(at line 11\); unpack it"):
            lines_of(packed(tmp_path, suffix, content))


def test_no_more_of_a_packed_line_is_unpacked_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blank line of 256 MB in 250 kB: what is read is counted, not the time."""
    monkeypatch.setattr(files, "MOST_LINE_BYTES", 2**20)
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(256):
            file.write(b" " * 10**6)
    read: list[int] = []

    class Reading(gzip.GzipFile):
        def readline(self, size: int | None = -1) -> bytes:
            line = super().readline(size)
            read.append(len(line))
            return line

    monkeypatch.setattr(files.gzip, "open", lambda name, mode: Reading(name, mode))
    with pytest.raises(BenchmarkError, match="line 1: is longer than 1 MiB"):
        lines_of(path)
    assert read == [2**20 + 1]


@pytest.mark.parametrize("field", ["question", "answer_prefix", "answers", "all_classes", "task", "id"])
def test_only_a_context_may_be_longer_than_a_million_characters(
    tmp_path: Path, make_tokenizer: MakeTokenizer, field: str
) -> None:
    long: Any = "x" * 1_000_001
    row = GOOD | {field: [long] if field in ("answers", "all_classes") else long}
    (tmp_path / "own.jsonl").write_text(json.dumps(row))
    with pytest.raises(
        BenchmarkError, match=rf"line 1: {field}.* has 1,000,001 characters, and only a context"
    ):
        load_items(TaskSpec("file/rows", data=str(tmp_path / "own.jsonl")), make_tokenizer())


@pytest.mark.usefixtures("low_limits")
def test_a_cell_of_a_parquet_file_that_is_too_long_is_named(
    tmp_path: Path, make_tokenizer: MakeTokenizer
) -> None:
    rows = [GOOD, GOOD | {"context": "x" * (LIMIT + 1)}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "own.parquet")
    with pytest.raises(BenchmarkError, match="row 2: context has 201 characters"):
        load_items(TaskSpec("file/rows", data=str(tmp_path / "own.parquet")), make_tokenizer())


def test_rows_of_a_parquet_file_are_all_read_across_batches(
    tmp_path: Path, make_tokenizer: MakeTokenizer
) -> None:
    rows = [GOOD | {"id": str(number)} for number in range(3 * json_rows.ROWS_AT_ONCE + 1)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "own.parquet")
    items = load_items(TaskSpec("file/rows", data=str(tmp_path / "own.parquet")), make_tokenizer())
    assert [item.metadata["own_id"] for item in items] == [row["id"] for row in rows]


def test_brackets_without_end_are_an_error_with_the_line(
    tmp_path: Path, make_tokenizer: MakeTokenizer
) -> None:
    text = json.dumps(GOOD)[:-1] + ', "mine": ' + "[" * 200_000 + "]" * 200_000 + "}"
    (tmp_path / "own.jsonl").write_text(f"{json.dumps(GOOD)}\n{text}\n")
    with pytest.raises(BenchmarkError, match="line 2: its brackets are nested too deep"):
        load_items(TaskSpec("file/rows", data=str(tmp_path / "own.jsonl")), make_tokenizer())


def test_a_number_of_too_many_digits_is_an_error_with_the_line(
    tmp_path: Path, make_tokenizer: MakeTokenizer
) -> None:
    (tmp_path / "own.jsonl").write_text(json.dumps(GOOD)[:-1] + ', "mine": ' + "9" * 5_000 + "}")
    with pytest.raises(BenchmarkError, match="line 1: a number has too many digits"):
        load_items(TaskSpec("file/rows", data=str(tmp_path / "own.jsonl")), make_tokenizer())


@pytest.mark.usefixtures("low_limits")
def test_a_row_beyond_the_limit_is_checked_all_the_same(
    tmp_path: Path, make_tokenizer: MakeTokenizer
) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD) + "\n")
    with pytest.raises(BenchmarkError, match="line 2: this row, or its id, is there already"):
        load_items(TaskSpec("file/rows", data=str(path), limit=1), make_tokenizer())


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_a_haystack_that_is_too_large_is_named(tmp_path: Path, suffix: str) -> None:
    path, content = tmp_path / f"hay{suffix}", b"A sentence. " * 100
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    with pytest.raises(BenchmarkError, match=rf"hay{suffix} holds more than .*; take a smaller part"):
        load_haystack(str(path))

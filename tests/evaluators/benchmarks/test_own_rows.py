"""A user's own rows: the same items from every format, and each fault named by file, line and remedy."""

from __future__ import annotations

import codecs
import gzip
import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.item import BenchmarkItem
from evaluators.registry import load_items
from evaluators.scoring import score
from tests.evaluators.conftest import CASES, MakeTokenizer

OWN = CASES / "file" / "own.jsonl"
GOOD = {"context": "c d", "question": "q", "answers": ["ox"]}


def load(path: Path, make_tokenizer: MakeTokenizer, **options: Any) -> list[BenchmarkItem]:
    return load_items(TaskSpec("file/rows", data=str(path), **options), make_tokenizer())


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_format_gives_the_same_items(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    items = load(OWN, make_tokenizer)
    (tmp_path / "own.jsonl.gz").write_bytes(gzip.compress(OWN.read_bytes()))
    rows = [json.loads(line) for line in OWN.read_text().splitlines()]
    whole = [
        row | {"answers": [row["answers"]] if isinstance(row["answers"], str) else row["answers"]}
        for row in rows
    ]
    columns = {name: [row.get(name) for row in whole] for row in whole for name in row}
    pq.write_table(pa.table(columns), tmp_path / "own.parquet")
    assert load(tmp_path / "own.jsonl.gz", make_tokenizer) == items
    assert load(tmp_path / "own.parquet", make_tokenizer) == items
    windows = OWN.read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "own.jsonl").write_bytes(codecs.BOM_UTF8 + windows)
    assert load(tmp_path / "own.jsonl", make_tokenizer) == items


def test_what_a_row_leaves_out_is_the_default(make_tokenizer: MakeTokenizer) -> None:
    first, second, third = load(OWN, make_tokenizer)
    assert (first.item_id, first.answers) == ("file/rows/own/mill-1", ("Jan Hlava", "the owner"))
    assert (second.answers, second.answer_prefix, second.max_new_tokens) == (("June",), "In", 8)
    assert (third.metric, third.max_new_tokens, third.task, third.answer_prefix) == ("qa_f1", 64, "rows", "")
    assert third.prompt_text == f"{third.context}\n\nWhat do they reach?"


def test_ids_are_of_the_content_and_apart_by_task(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    other = GOOD | {"question": "q2"}
    ids = [item.item_id for item in load(write(tmp_path / "a.jsonl", GOOD, other), make_tokenizer)]
    turned = write(tmp_path / "a.jsonl", other, GOOD)
    assert [item.item_id for item in load(turned, make_tokenizer)] == ids[::-1]
    tasks = write(tmp_path / "b.jsonl", GOOD | {"id": 1, "task": "x"}, GOOD | {"id": 1, "task": "y"})
    items = load(tasks, make_tokenizer)
    assert [(item.task, item.item_id) for item in items] == [("x", "file/rows/x/1"), ("y", "file/rows/y/1")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"context": ', "not valid JSON at column"),
        ('{"context": "c", "question": "q"}', "'answers' is missing"),
        ('{"context": "c", "question": "q", "answer": ["a"]}', "Did you mean 'answers'?"),
        ('{"context": "", "question": "q", "answers": ["ox"]}', "context is empty"),
        ('{"context": "c", "question": "q", "answers": []}', "answers is an empty list"),
        ('{"context": "c", "question": "q", "answers": ["ox"], "metric": "rogue"}', "Did you mean 'rouge'?"),
        ('{"context": "c", "question": "q", "answers": ["ox"], "metric": "classification"}', "all_classes"),
        ('{"context": "c", "question": "q", "answers": ["ox"], "max_new_tokens": 0}', "whole number from 1"),
        ('{"context": "c", "question": "q", "answers": ["ox"], "task": "a/b"}', "without a slash"),
        ('{"context": "c d", "question": "q", "answers": ["ox"]}', "is there already"),
    ],
)
def test_a_broken_line_is_named_even_beyond_the_limit(
    tmp_path: Path, make_tokenizer: MakeTokenizer, line: str, message: str
) -> None:
    path = write(tmp_path / "mine.jsonl", GOOD)
    path.write_text(path.read_text() + "\n" + line + "\n")
    with pytest.raises(BenchmarkError) as caught:
        load(path, make_tokenizer, limit=1)
    assert f"{path}, line 3: " in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": ["ox", ""]}, "answers, entry 2 is empty (''); remove it"),
        ({"answers": ["   "]}, "answers, entry 1 is empty"),
        ({"answers": ["\u200b\n"], "metric": "string_match_part"}, "answers, entry 1 is empty"),
        ({"answers": ["A"]}, "gives no points for 'A'; set metric to multiple_choice or string_match_part"),
        ({"answers": ["ox", "The"]}, "answers, entry 2: the metric 'qa_f1' gives no points for 'The'"),
        ({"answers": ["%"]}, "set metric to string_match_part"),
        ({"answers": ["E"], "metric": "multiple_choice"}, "set metric to qa_f1"),
        ({"answers": [" ox "], "metric": "string_match_all"}, "remove the blanks around it"),
        ({"answers": ["seven"], "metric": "count"}, "gives no points for 'seven'"),
        ({"answers": ["7"], "metric": "retrieval"}, "gives no points for '7'"),
        ({"answers": ["12"], "metric": "exp_similarity"}, "gives no points for '12'"),
        ({"answers": ["# note"], "metric": "code_sim"}, "gives no points for '# note'"),
        ({"answers": ["..."], "metric": "rouge"}, "gives no points for '...'"),
        ({"answers": ["ox"], "metric": "classification", "all_classes": ["cow"]}, "add it there"),
        ({"metric": "classification", "all_classes": ["ox", ""]}, "all_classes, entry 2 is empty"),
        ({"metric": "classification", "all_classes": ["ox", "ox"]}, "all_classes has 'ox' twice"),
        ({"answers": ["ox", "ox", "cow"], "metric": "string_match_all"}, "answers has 'ox' twice"),
        ({"answers": [42]}, "must be a list of strings; got [42]"),
        (
            {"answers": ["ox", "x " * 9 + "x"], "metric": "string_match_part", "max_new_tokens": 4},
            "gives no points for 4 of them; raise max_new_tokens",
        ),
    ],
)
def test_an_answer_that_can_never_be_right_is_refused_with_its_place_and_a_remedy(
    tmp_path: Path, make_tokenizer: MakeTokenizer, change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "mine.jsonl", GOOD, GOOD | {"id": "x"} | change)
    with pytest.raises(BenchmarkError) as caught:
        load(path, make_tokenizer)
    assert f"{path}, line 2: " in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {"answers": ["ox", "ox", "cow"]},  # annotators agree; the best answer counts
        {
            "answers": ["ox " * 1500],
            "metric": "rouge",
        },  # too long for ROUGE's recursion, but not its beginning
        {"answers": ["A"], "metric": "multiple_choice"},
        {"answers": ["x " * 9 + "x"], "metric": "string_match_part"},
        {"answers": ["x " * 9 + "x"], "metric": "qa_f1", "max_new_tokens": 4},
        {"answers": ["The x"], "metric": "qa_f1", "max_new_tokens": 1},
    ],
)
def test_an_answer_that_can_be_right_is_taken(
    tmp_path: Path, make_tokenizer: MakeTokenizer, row: dict[str, Any]
) -> None:
    (item,) = load(write(tmp_path / "mine.jsonl", GOOD | row), make_tokenizer)
    assert list(item.answers) == row["answers"]


@pytest.mark.parametrize("normalizer", ["NFC", None])
def test_answers_are_spelled_as_the_models_tokenizer_spells_them(
    tmp_path: Path, make_tokenizer: MakeTokenizer, normalizer: str | None
) -> None:
    tokenizer = make_tokenizer(normalizer=normalizer)
    apart = unicodedata.normalize("NFD", "café")
    path = write(tmp_path / "mine.jsonl", GOOD | {"answers": [apart, "ox"]})
    (item,) = load_items(TaskSpec("file/rows", data=str(path)), tokenizer)
    said = tokenizer.decode(tokenizer(apart)["input_ids"])
    assert item.answers == (said, "ox")
    assert score("string_match_part", said, item.answers[:1]) == 1.0


def test_a_file_that_cannot_be_used_is_told(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    (tmp_path / "mine.csv").touch()
    (tmp_path / "no.parquet").write_bytes(b"PAR1")
    (tmp_path / "none.jsonl").touch()
    for name, message in {
        "mien.csv": "Did you mean 'mine.csv'",
        "mine.csv": "is none of",
        "no.parquet": "not a readable table",
        "none.jsonl": "has no rows",
    }.items():
        with pytest.raises(BenchmarkError, match=message):
            load(tmp_path / name, make_tokenizer)
    with pytest.raises(BenchmarkError, match="in `data`"):
        load_items(TaskSpec("file/rows"), make_tokenizer())

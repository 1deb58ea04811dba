"""The report: everything a reader needs stands in the text, at every width, from the files alone."""

import csv
import io
import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.analysis.ranking.order import in_order
from jobs.analysis.summary import summarize
from jobs.planning.work import RowKey
from jobs.report import main
from jobs.reporting.terminal import View, render
from jobs.results.schema import FAILED, TRUNCATED, Row
from jobs.results.store import ResultStore
from tests.fakes.rows import make_row

_EVERYTHING = View()
_NUMBERS = ("answer_nll", "kl_mean", "top1_agreement", "score", "kept_ratio", "slots", "kv_bytes")
LABELS = ("full", "no_context", "full_aa", "knorm@0.5", "streaming_llm@0.35")

Capture = pytest.CaptureFixture[str]


def rows_of(task: str, **values: Any) -> list[Row]:
    numbers = {"answer_nll": 1.25, "kl_mean": 0.5, "top1_agreement": 0.875}
    numbers |= {"kept_ratio": 0.5, "kv_bytes": 3 * 2**20}
    return [
        make_row(f"{task}/{index}/{label}", item_id=f"{task}/{index}", task=task, variant=label, policy=label)
        | numbers
        | {"cluster_id": f"c{index}", "score": float(index < 3)}
        | values
        for label in LABELS
        for index in range(4)
    ]


def text_of(rows: list[Row], width: int, view: View = _EVERYTHING) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(render(summarize(rows), width, view))
    return captured.get()


@pytest.mark.parametrize("width", [100, 150])
def test_every_number_is_in_the_table_and_no_line_is_too_long(width: int) -> None:
    text = text_of(rows_of("task"), width)
    for part in ("streaming_llm@0.35", "1.250", "0.500", "0.88", "3 of 4", "50.0%", "3.0 MiB", "A/A noise"):
        assert part in text
    assert max(map(len, text.splitlines())) <= width
    assert "planned 20 = 20 ok + 0 truncated + 0 failed" in text


def test_a_narrow_table_leaves_columns_out_and_cuts_no_number() -> None:
    text = text_of(rows_of("task"), 80)
    for part in ("streaming_llm@0.35", "1.250", "0.500", "3 of 4", "50.0%", "3.0 MiB"):
        assert part in text
    assert "top-1" not in text.splitlines()[1]
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("width", [40, 60])
def test_where_there_is_no_room_cells_fold_and_nothing_is_cut(width: int) -> None:
    text, whole = (text_of(rows_of("task"), it) for it in (width, 99))
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    # The line that says what is not shown names the width.
    shown, all_there = (
        Counter(re.sub(r"in\d+columns", "", "".join(it.replace("─", "").split()))) for it in (text, whole)
    )
    assert shown == all_there


def test_a_count_has_its_exact_interval() -> None:
    """Clopper-Pearson for 3 of 4: 19 % to 99 %."""
    assert "3 of 4 [19% to 99%]" in text_of(rows_of("task"), 150)


def test_values_that_are_all_equal_have_no_interval() -> None:
    text = text_of(rows_of("task"), 140)
    assert "1.250 [" not in text and "0.88 [" not in text and "1.250" in text
    assert "1.250-1.250" not in text_of(rows_of("task"), 100)


def test_an_interval_ends_where_its_quantity_does() -> None:
    rows = [row | {"top1_agreement": 0.5 if row["cluster_id"] == "c0" else 1.0} for row in rows_of("task")]
    low, high = 0.875 - 3.18 * 0.125, 1.0  # Student's t with 3 degrees of freedom would end at 1.27
    assert f"0.88 [{low:.2f} to {high:.2f}]" in text_of(rows, 150)


def test_few_clusters_are_called_too_few() -> None:
    assert "n = 4 clusters: too few to rank policies by" in text_of(rows_of("task"), 100)


def test_a_task_without_a_scale_carries_no_verdict() -> None:
    assert "no verdict" in text_of(rows_of("task"), 100)


def test_failures_and_degenerate_variants_are_told_with_their_reason() -> None:
    rows = rows_of("task")
    rows[12] |= {
        "status": FAILED,
        "failure_phase": "decode",
        "failure_type": "MyError",
        "failure_message": "[why]",
    }
    rows[16] |= {"is_degenerate": True, "degenerate_reason": "it all fits"}
    text = text_of(rows, 140)
    assert "failed: knorm@0.5, 1 x MyError in decode: [why]" in text
    assert re.search(r"knorm@0\.5 +3 of 4 +1\.250", text)
    assert "degenerate: streaming_llm@0.35, 1 of 4 rows: it all fits" in text


def test_prompts_that_were_cut_are_told_under_their_table() -> None:
    rows = rows_of("a")
    assert "cut:" not in text_of(rows, 100)
    cut = [row | {"status": TRUNCATED} if row["item_id"] in ("a/1", "a/2") else row for row in rows]
    text = " ".join(text_of([*cut, *rows_of("b")], 100).split())
    assert (
        text.count("cut: 2 of 4 prompts were too long and were cut; the answer may be in what is gone") == 1
    )


def test_rows_of_several_devices_are_told_under_the_table() -> None:
    named = [row | {"device": "cuda", "device_name": "NVIDIA H200"} for row in rows_of("t")]
    assert "several devices" not in text_of(named, 100)
    failed = make_row("failed", device=None, status=FAILED, failure_phase="load", failure_type="ModelError")
    assert "several devices" not in text_of([*named, failed], 100)
    text = text_of([*named[1:], named[0] | {"device_name": None}], 200)
    counts = f"{len(named) - 1} on cuda (NVIDIA H200), 1 on cuda (name unknown)"
    assert f"rows of several devices, which differ in seconds and last bits: {counts}" in text


def test_modes_never_share_a_table_and_tasks_get_an_overall_one() -> None:
    rows = (
        rows_of("a")
        + rows_of("b")
        + [row | {"identity": row["identity"] + "q", "query_mode": "query_agnostic"} for row in rows_of("a")]
    )
    text = text_of(rows, 140)
    assert text.count("benchmark/a") == 2 and text.count("benchmark/b") == 1
    assert text.count("all 2 tasks") == 1


def test_the_script_needs_only_the_files_and_nothing_heavy(tmp_path: Path, repo_root: Path) -> None:
    store = ResultStore(tmp_path)
    rows = rows_of("task", unit_id="u1")
    store.write_unit("u1", rows)
    store.write_plan(
        [RowKey(row["identity"], row["item_id"], row["variant"]) for row in rows] + [RowKey("x", "i", "full")]
    )
    check = (
        "import runpy, sys; sys.argv = ['report.py', sys.argv[1], '--html']\n"
        "try: runpy.run_path('jobs/report.py', run_name='__main__')\n"
        "finally: assert not {'torch', 'ray', 'mlflow', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check, str(tmp_path)],
        cwd=repo_root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, (tmp_path / "report.html").read_text(encoding="utf-8")):
        assert "planned 21 = 20 ok + 0 truncated + 0 failed + 1 missing" in text


def test_a_folder_without_results_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert "no results" in capsys.readouterr().err


def test_the_page_goes_where_it_is_asked_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ResultStore(tmp_path / "results").write_unit("u1", rows_of("task", unit_id="u1"))
    page = tmp_path / "new folder" / "page.html"
    assert main([str(tmp_path / "results"), "--html", str(page)]) == 0
    assert "answer NLL" in page.read_text(encoding="utf-8") and str(page) in capsys.readouterr().out
    assert main([str(tmp_path / "results"), "--html", str(tmp_path)]) == 2
    assert "name another file" in capsys.readouterr().err


def test_no_page_is_written_unasked(tmp_path: Path) -> None:
    ResultStore(tmp_path).write_unit("u1", rows_of("task", unit_id="u1"))
    assert main([str(tmp_path)]) == 0
    assert list(tmp_path.rglob("*.html")) == []


def test_a_task_whose_answers_are_hidden_says_so_once() -> None:
    rows = rows_of("task", score=None, score_reason="the answers are hidden")
    assert text_of(rows, 140).count("no score: the answers are hidden") == 1


def test_a_published_number_that_is_no_mean_of_items_is_shown_beside_it() -> None:
    """Parts 1, 1, 1 and 1, 0, 0.5 of two items: means 1, 0.5, 0.75, whose geometric mean is 72.11."""
    parts = [{"rouge1": 1, "rouge2": 1, "rougeL": 1}, {"rouge1": 1, "rouge2": 0, "rougeL": 0.5}]
    rows = [
        row | {"metric": "rouge_geometric_mean", "score_parts": json.dumps(parts[index % 2])}
        for index, row in enumerate(rows_of("task"))
    ]
    assert "full cache 72.11" in text_of(rows, 140)
    rows[0] |= {"score_parts": None}
    assert "full cache 72.11" not in text_of(rows, 140)


def test_variants_are_ranked_by_default_and_by_the_column_that_is_asked_for(seed: int) -> None:
    draw = random.Random(seed)
    nll, held = ({label: draw.random() for label in LABELS} for _ in range(2))
    rows = [
        row | {"answer_nll": nll[row["variant"]], "score": held[row["variant"]]} for row in rows_of("task")
    ]

    def order(**view: str) -> list[str]:
        lines = text_of(rows, 100, View(**view)).splitlines()  # type: ignore[arg-type]
        return [line.split()[0] for line in lines if line.startswith(("knorm@", "streaming_llm@"))]

    policies = LABELS[3:]
    assert order() == sorted(policies, key=lambda label: nll[label])
    assert order(sort="score") == sorted(policies, key=lambda label: -held[label])
    assert order(sort="configured") == list(policies)


@pytest.mark.parametrize("sort", ["nll", "kl", "top1", "score", "slots", "configured"])
def test_what_is_not_known_ranks_last_and_references_stay_first(sort: str) -> None:
    rows = [row | dict.fromkeys(_NUMBERS) for row in rows_of("task") if row["variant"] != "knorm@0.5"]
    (task,) = summarize(rows + [row for row in rows_of("task") if row["variant"] == "knorm@0.5"]).tasks
    labels = [it.label for it in in_order(task.variants, sort)]
    assert set(labels[:3]) == set(LABELS[:3])
    assert labels[3:] == (
        ["streaming_llm@0.35", "knorm@0.5"] if sort == "configured" else ["knorm@0.5", "streaming_llm@0.35"]
    )


def test_many_lines_are_cut_to_the_mean_over_tasks_and_the_way_to_all_is_told() -> None:
    few, many = ([row for number in range(count) for row in rows_of(f"task{number}")] for count in (2, 16))
    auto = View(is_brief=None)
    assert "task0" in text_of(few, 100, auto) and "--all" not in text_of(few, 100, auto)
    text = text_of(many, 100, auto)
    assert "all 16 tasks" in text and "benchmark/task0" not in text and "--all` shows each of them" in text
    assert "too few to rank policies by" in text and "planned 320 = 320 ok" in text
    assert "benchmark/task0" in text_of(many, 100) and "all 2 tasks" in text_of(few, 100, View(is_brief=True))


def test_one_task_is_shown_however_brief() -> None:
    assert "1.250" in text_of(rows_of("task"), 100, View(is_brief=True))


@pytest.mark.parametrize("width", [80, 100])
def test_a_column_that_is_left_out_is_named(width: int) -> None:
    text = text_of(rows_of("task"), width)
    assert ("not shown in 80 columns: n, top-1;" in text) == (width == 80)
    # Nothing is explained that is not there.
    assert ("KL and top-1:" in " ".join(text.split())) == (width == 100)


def test_the_headline_comes_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ResultStore(tmp_path).write_unit("u1", rows_of("task"))
    assert main([str(tmp_path)]) == 0
    last = " ".join(capsys.readouterr().out.partition("planned 20 = ")[2].split())
    assert "Too few to rank policies by (4 contexts; 50 are needed)." in last


def test_one_task_alone_has_a_table_and_a_page_of_its_own(tmp_path: Path, capsys: Capture) -> None:
    ResultStore(tmp_path).write_unit("u1", [*rows_of("one"), *rows_of("two")])
    assert main([str(tmp_path), "--task", "benchmark/two", "--html"]) == 0
    said = capsys.readouterr().out
    assert "planned 20 =" in said and "benchmark/two" in said and "benchmark/one" not in said
    assert [it.name for it in tmp_path.glob("*.html")] == ["report-benchmark-two.html"]
    assert main([str(tmp_path), "--task", "benchmark/too"]) == 2
    assert "Did you mean 'benchmark/two'?" in capsys.readouterr().err


def test_scripts_get_every_number_and_nothing_else(tmp_path: Path, capsys: Capture) -> None:
    rows = [*rows_of("one"), *rows_of("two", kl_mean=None)]
    ResultStore(tmp_path).write_unit("u1", rows)
    assert main([str(tmp_path), "--csv", "--html", "--sort", "configured"]) == 0
    captured = capsys.readouterr()
    lines = list(csv.DictReader(io.StringIO(captured.out)))
    assert "report.html" in captured.err
    assert [(it["task"], it["variant"]) for it in lines] == [
        (task, label)
        for task in ("benchmark/one", "benchmark/two", "")
        for label in ("full", "full_aa", "no_context", *LABELS[3:])
    ]
    assert {it["answer_nll"] for it in lines} == {"1.25"}
    assert [it["kl"] for it in lines[3:10:5]] == ["0.5", ""]  # not known is empty, not 0
    assert main([str(tmp_path), "--json", "--sort", "configured"]) == 0
    loaded = json.loads(capsys.readouterr().out)
    assert loaded["rows"]["planned"] == len(rows) and loaded["headline"]
    assert [
        {key: "" if it[key] is None else str(it[key]) for key in it} for it in loaded["variants"]
    ] == lines

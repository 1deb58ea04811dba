"""The command: from files alone, at 80 columns nothing cut, 0 whatever the answer, 2 with a sentence."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.choose import main
from jobs.results.schema import FAILED, TRUNCATED, Row
from jobs.results.store import ResultStore
from tests.fakes.rows import INT4, make_sweep_rows, with_forms

LONG = "expected_attention+criticalkv@0.35"


def stored(folder: Path, rows: list[Row]) -> str:
    for unit in {row["unit_id"] for row in rows}:
        ResultStore(folder).write_unit(unit, [row for row in rows if row["unit_id"] == unit])
    return str(folder)


def sweep(seed: int, num_items: int = 150, tasks: tuple[str, ...] = ("b/t",)) -> list[Row]:
    """snapkv loses nothing at 0.8 and everything at 0.3; int4 loses nothing."""
    policies = {"snapkv@0.8": 0.8, "snapkv@0.3": 0.3, "int4": 1.0, LONG: 0.35}
    rows = with_forms(make_sweep_rows(random.Random(seed), policies, tasks, num_items), {"int4": INT4})
    good = {"full": 1.0, "full_aa": 1.0, "snapkv@0.8": 1.0, "int4": 1.0}
    for row in rows:
        budget = row["variant"].partition("@")[2]
        row |= {"score": good.get(row["variant"], 0.0), "unit_id": "u1"}
        row |= {"budget_asked": json.dumps({"kept_ratio": float(budget)} if budget else None)}
    return rows


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_answer_stands_last_and_nothing_is_cut(
    tmp_path: Path, seed: int, width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stored(tmp_path / "r", sweep(seed))
    assert main([folder, "--width", str(width)]) == 0
    text = capsys.readouterr().out
    assert "cheapest certified: int4, 28.1% of the full cache's bytes" in " ".join(text.split()[-20:])
    assert "@0.3: 150" in text and "150 of 150" in text and "no context (tail alone)" in text
    assert "expected_attention+c" in text and "@0.35" in text and "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_too_few_contexts_say_how_many_are_needed(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([stored(tmp_path / "r", sweep(seed, 30)), "--width", "400"]) == 0
    text = capsys.readouterr().out
    assert "no answer: 30 contexts are too few. Even if none were lost, 80 are needed" in text
    assert "and 59 for one" in text and " yes " not in text


def test_nothing_certified_keeps_the_full_cache_and_failed_rows_are_told(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row for row in sweep(seed) if row["variant"] != "int4"]
    gone = [row for row in rows if row["variant"] == "snapkv@0.8"][:20]
    for row in gone:
        row |= {"status": FAILED, "failure_phase": "decode", "failure_type": "E", "score": None}
    assert main([stored(tmp_path / "r", rows), "--width", "100"]) == 0
    text = capsys.readouterr().out
    assert "nothing is certified: keep the full cache" in text and "20 not run" in text
    assert "counted as lost, not as no loss: snapkv@0.8: 20 contexts failed" in text


def test_contexts_that_were_cut_are_left_out_unless_kept(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = sweep(seed)
    for row in rows:
        row |= {"status": TRUNCATED} if row["item_id"].endswith("7") else {}
    folder = stored(tmp_path / "r", rows)
    assert main([folder, "--json"]) == 0
    (group,) = json.loads(capsys.readouterr().out)["certificates"]["groups"]
    assert (group["num_contexts"], group["contexts_left_out"]) == (135, {"a prompt was cut": 15})
    assert main([folder, "--json", "--keep-cut"]) == 0
    (group,) = json.loads(capsys.readouterr().out)["certificates"]["groups"]
    assert (group["num_contexts"], group["cheapest"]) == (150, "int4")


def test_what_fits_is_ranked_and_counted(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stored(tmp_path / "r", sweep(seed))
    asked = [folder, "--memory", "40MiB", "--tokens", "32000", "--requests", "2", "--width", "80"]
    assert main(asked) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "only 1" in text and "not measured" in text and "points lost" in text
    assert "at 32,000 none was measured" in text and "weights (results do not tell their bytes" in text
    assert "of what fits 40.0 MiB, 2 requests of 32,000 tokens, int4 loses least" in text
    assert main([*asked, "--loss", "0.1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"fits", "certificates"}
    labels = [it["variant"] for it in found["fits"]["groups"][0]["variants"] if it["fits"]]
    assert labels[0] == "int4" and "full" not in labels


def test_each_task_can_be_asked_for(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    folder = stored(tmp_path / "r", sweep(seed, 150, ("b/t", "b/u")))
    assert main([folder, "--by", "task", "--metric", "top1", "--loss", "0.99"]) == 0
    text = capsys.readouterr().out
    assert "\nb/t: " in text and "\nb/u: " in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--metric", "f1"], "there is no metric 'f1'"),
        (["--loss", "10"], "0.1 are 10 points"),
        (["--loss", "nan"], "is no bound on score"),
        (["--share", "5"], "share 5 does not lie between 0 and 1"),
        (["--confidence", "1"], "confidence 1 does not lie"),
        (["--policy", "snapvk"], "there is no variant 'snapvk'"),
        (["--memory", "24G", "--tokens", "10"], "'24G' is no amount of memory"),
        (["--memory", "24GiB"], "--memory needs --tokens"),
        (["--tokens", "10"], "needs --memory"),
        (["--memory", "1GiB", "--tokens", "10", "--weights", "2GiB"], "leaves nothing for a cache"),
    ],
)
def test_what_cannot_be_answered_is_told_in_a_sentence(
    tmp_path: Path, seed: int, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([stored(tmp_path / "r", sweep(seed, 3)), *arguments]) == 2
    assert said in error_of(capsys)


def test_folders_without_results_or_without_the_full_cache_are_told(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "no_such")]) == 2
    assert "there is no results folder" in error_of(capsys)
    assert main([str(tmp_path)]) == 2
    assert "there are no results" in error_of(capsys)
    folder = stored(tmp_path / "r", [row for row in sweep(seed, 3) if row["variant"] != "full"])
    assert main([folder]) == 2
    assert "no finished row of the full cache" in error_of(capsys)


def test_nothing_heavy_is_loaded(tmp_path: Path, seed: int) -> None:
    folder = stored(tmp_path / "r", sweep(seed, 3))
    program = (
        "import sys; from jobs.choose import main; "
        f"main([{folder!r}]); main([{folder!r}, '--memory', '1GiB', '--tokens', '100']); "
        "sys.exit(bool({'torch', 'ray', 'mlflow', 'matplotlib'} & set(sys.modules)))"
    )
    done: Any = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()

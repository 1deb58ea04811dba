"""The command: from files alone, nothing cut at 80 or 100 columns, 0 whatever it finds, 2 with a sentence."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from jobs.compare import main
from jobs.results.store import ResultStore
from tests.fakes.pairs import LOSSES, paired_rows
from tests.fakes.rows import INT4, PLAIN, FakeForm, with_forms


@pytest.fixture
def folders(tmp_path: Path, seed: int) -> tuple[str, str]:
    """A and B on two tasks; in B, kvmerger@0.5 has become worse and one row has failed."""
    after = paired_rows(seed, tasks=("a", "bb"), losses=LOSSES | {"kvmerger@0.5": 0.4})
    failed = next(row for row in after if row["variant"] == "snapkv@0.5")
    failed |= {"status": "failed", "failure_phase": "decode", "failure_type": "E", "dtype": None}
    ResultStore(tmp_path / "A").write_unit("u1", paired_rows(seed, tasks=("a", "bb")))
    ResultStore(tmp_path / "B").write_unit("u1", after)
    return str(tmp_path / "A"), str(tmp_path / "B")


@pytest.mark.parametrize("width", [80, 100, 140])
def test_everything_that_matters_is_printed_at_any_width(
    folders: tuple[str, str], width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*folders, "--width", str(width)]) == 0
    text = capsys.readouterr().out
    for part in (
        "kvmerger@0.5",
        "snapkv@0.5",
        "worse",
        "inconclusive",
        "margin: fail",
        "margin: open",
        "no spread",
    ):
        assert part in text
    assert "mean over 2 tasks" in text and "A/A noise of the NLL" in text and "…" not in text
    assert "score: 240 items x variants = 239 pairs + 1 failed in B" in text
    assert max(map(len, text.splitlines())) <= width
    assert ("1.0 MiB" in text) == (width >= 100)


def test_where_there_is_no_room_cells_fold_and_nothing_is_cut(
    folders: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for width in (50, 99):
        assert main([*folders, "--width", str(width)]) == 0
        text = capsys.readouterr().out
        assert "…" not in text and max(map(len, text.splitlines())) <= width
        # The line that says what is not shown names the width.
        shown.append(Counter(re.sub(r"in\d+columns", "", "".join(text.replace("─", "").split()))))
    assert shown[0] == shown[1]


def test_differences_that_are_all_equal_have_no_interval(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a folder against itself nor four items that lose everything are certain."""
    rows = [row | {"score": 1.0} for row in paired_rows(seed, 4)]
    ResultStore(tmp_path / "A").write_unit("u1", rows)
    ResultStore(tmp_path / "B").write_unit("u1", [row | {"score": 0.0} for row in rows])
    for other, mean in (("A", " 0.0"), ("B", "-100.0")):
        assert main([str(tmp_path / "A"), str(tmp_path / other), "--width", "100"]) == 0
        text = capsys.readouterr().out
        assert mean in text and "no spread " in text and f"{mean} to {mean}" not in text
        assert "margin: pass" not in text and "margin: fail" not in text


@pytest.mark.parametrize("names", [("kvmerger@0.5", "snapkv@0.5"), ("kvmerger", "SnapKVPress")])
def test_two_variants_of_one_folder(
    folders: tuple[str, str], names: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    policy, against = names
    assert main([folders[0], "--policy", policy, "--against", against, "--width", "100"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("A  snapkv@0.5\nB  kvmerger@0.5\n")
    assert "better" in text and "margin: pass" in text and " to -" in text


def stored(folder: Path, seed: int, forms: dict[str, FakeForm]) -> str:
    rows = with_forms(paired_rows(seed), forms)
    ResultStore(folder).write_unit("u1", rows)
    return str(folder)


@pytest.mark.parametrize("width", [80, 100])
def test_pairs_say_when_forms_and_bytes_differ(
    tmp_path: Path, seed: int, width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    a = stored(tmp_path / "A", seed, {})
    b = stored(tmp_path / "B", seed, {"snapkv@0.5": INT4, "kvmerger@0.5": PLAIN._replace(read_ratio=0.5)})
    assert main([a, b, "--width", str(width)]) == 0
    text = capsys.readouterr().out
    assert "not the same: snapkv@0.5, stored as: plain in A, int4 in B" in text and "bits of keys" not in text
    assert "bytes held differ: snapkv@0.5 50.0% in A, 14.1% in B\n" in text
    assert "bytes read at each step differ: kvmerger@0.5 50.0% in A, 25.0% in B\n" in text
    assert ("576 KiB" in text) == (width >= 100) and max(map(len, text.splitlines())) <= width
    assert main([b, "--policy", "snapkv@0.5", "--against", "kvmerger@0.5", "--width", str(width)]) == 0
    text = capsys.readouterr().out
    assert "not the same: stored as: plain in kvmerger@0.5, int4 in snapkv@0.5" in text
    assert "bytes held differ: snapkv@0.5 50.0% in A, 14.1% in B" in text


def test_a_folder_of_before_forms_is_compared_with_a_plain_one_without_a_word(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    old = [
        row | {"kv_bytes": round(row["kept_ratio"] * 2**22), "full_kv_bytes": 2**22}
        for row in paired_rows(seed)
    ]
    ResultStore(tmp_path / "A").write_unit("u1", old)
    new = stored(tmp_path / "B", seed, {})
    assert main([str(tmp_path / "A"), new, "--width", "100"]) == 0
    text = capsys.readouterr().out
    assert "not the same" not in text and "bytes held differ" not in text and "50.0%" in text


def test_policy_and_margin_narrow_it_down(
    folders: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*folders, "--policy", "kvmerger@0.5", "--margin", "9", "--width", "100"]) == 0
    text = capsys.readouterr().out
    assert "snapkv" not in text and "margin: pass" in text and "at most 9 points" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["A"], "two folders, or one folder with"),
        (["A", "--policy", "snapkv@0.5"], "two folders, or one folder with"),
        (["A", "B", "--against", "snapkv@0.5"], "--against names a variant of one folder"),
        (["A", "C"], "there is no results folder"),
        (["A", "empty"], "there are no results in"),
        (["A", "B", "--policy", "snap"], "there is no variant 'snap'"),
    ],
)
def test_bad_input_is_told_in_a_sentence(
    folders: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.startswith("error: ") and not captured.out


@pytest.mark.parametrize("margin", ["0", "-1", "nan", "two"])
def test_a_margin_that_is_none_is_refused(
    folders: tuple[str, str], margin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*folders, f"--margin={margin}"])
    assert caught.value.code == 2 and "points above 0" in capsys.readouterr().err


def test_it_works_alone_as_users_call_it(folders: tuple[str, str], repo_root: Path) -> None:
    command = [sys.executable, "jobs/compare.py", *folders]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "kvmerger@0.5" in done.stdout

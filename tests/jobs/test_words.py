"""Words as people type them on the command line: each does what it says, or is answered with the word that is meant."""

import importlib.metadata
from pathlib import Path

import pytest

from jobs import nightly, sweep
from tests.fakes.settings import write


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert sweep.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["vlidate", "my.yaml"], "no settings file 'vlidate' (did you mean 'validate'?)"),
        (["reprot", "results/demo"], "(did you mean 'report'?)"),
        (["demmo"], "(did you mean 'demo'?)"),
        (["check"], "(did you mean 'validate'?)"),
        (["demo.yaml", "validate"], "'validate' is a command; write it first: sweep.py validate …"),
        (["--limit", "2", "validate", "demo.yaml"], "'validate' is a command; write it first"),
        (
            ["nighty.yaml"],
            "there is no settings file 'nighty.yaml' (did you mean 'nightly.yaml'?); shipped: ",
        ),
        (["one.yaml", "--config", "two.yaml"], "two settings files, 'one.yaml' and 'two.yaml'; name one"),
    ],
)
def test_a_word_that_is_none_is_answered_in_a_sentence(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in refused(capsys, *words)


def test_a_second_settings_file_is_no_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        sweep.main(["demo.yaml", "nightly.yaml"])
    assert ended.value.code == 2
    assert "unrecognized arguments: nightly.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["help"], ["--help"], ["help", "run"]])
def test_help_lists_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        sweep.main(words)
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(f"\n  {name} " in out for name, command in sweep.COMMANDS.items() if command.about)


@pytest.mark.parametrize("name", [name for name, command in sweep.COMMANDS.items() if command.about])
def test_every_command_has_help_under_the_programs_name(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([name, "--help"], ["help", name]):
        with pytest.raises(SystemExit) as ended:
            sweep.main(words)
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: sweep.py {name} ")


def test_the_version_is_told_with_those_that_results_depend_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("kvmerger ")
    assert f"torch {importlib.metadata.version('torch')}" in out and "python 3." in out


def test_sweep_and_nightly_take_the_same_words_for_settings(tmp_path: Path) -> None:
    words = [
        "my.yaml",
        "--set",
        "seed=1",
        "--limit",
        "2",
        "--output_dir",
        "out",
        "--executor",
        "inline",
        "--dry-run",
    ]
    of_sweep, of_nightly = (vars(it.build_parser().parse_args(words)) for it in (sweep, nightly))
    common = of_sweep.keys() & of_nightly.keys()
    assert {"config", "overrides", "limit", "output_dir", "executor", "dry_run"} <= common
    assert {key: of_sweep[key] for key in common} == {key: of_nightly[key] for key in common}


@pytest.mark.parametrize("flag", [[], ["--config"]])
def test_a_nightly_takes_its_settings_with_and_without_the_flag(
    flag: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    assert nightly.main([*flag, str(path)]) == 2
    assert f"{path}: `gate` is missing" in capsys.readouterr().err

"""A command line means one command, and a word that means none is answered with the nearest that does."""

from collections.abc import Sequence

import pytest

from jobs.console.commands import (
    Command,
    CommandError,
    listed,
    refuse_misplaced,
    refuse_no_command,
    understood,
)


def _nothing(arguments: Sequence[str]) -> int:
    return 0


COMMANDS = {
    "run": Command("[CONFIG]", "", _nothing),
    "validate": Command("[CONFIG]", "the plan", _nothing),
    "ls": Command("[WHAT]", "names", _nothing),
    "report": Command("RESULTS_DIR", "the table", _nothing),
    "choose": Command("RESULTS_DIR --memory BYTES --tokens N", "what fits", _nothing),
}


@pytest.mark.parametrize(
    ("words", "command", "rest"),
    [
        ([], "run", []),
        (["my.yaml", "--limit", "2"], "run", ["my.yaml", "--limit", "2"]),
        (["--limit", "2"], "run", ["--limit", "2"]),
        (["validate", "my.yaml"], "validate", ["my.yaml"]),
        (["list", "tasks"], "ls", ["tasks"]),
        (["help"], "run", ["--help"]),
        (["help", "report"], "report", ["--help"]),
        (["help", "nonsense"], "run", ["--help"]),
    ],
)
def test_a_command_line_means_one_command(words: list[str], command: str, rest: list[str]) -> None:
    assert understood(words, COMMANDS, "run") == (command, rest)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("vlidate", "did you mean 'validate'"),
        ("check", "did you mean 'validate'"),
        ("show", "did you mean 'report'"),
        ("nightyl", "did you mean 'nightly'"),
        ("zzz", "shipped settings: demo, nightly"),
    ],
)
def test_a_word_that_is_no_command_is_answered_with_the_nearest(word: str, hint: str) -> None:
    with pytest.raises(CommandError) as caught:
        refuse_no_command(word, COMMANDS, ["demo", "nightly"])
    assert repr(word) in str(caught.value) and hint in str(caught.value)


@pytest.mark.parametrize("word", ["my.yaml", "folder/my", "./my"])
def test_what_looks_like_a_path_is_left_to_who_reads_files(word: str) -> None:
    refuse_no_command(word, COMMANDS, ["demo"])


def test_a_command_behind_something_else_is_told_where_it_belongs() -> None:
    with pytest.raises(CommandError, match="write it first"):
        refuse_misplaced(["my.yaml", "validate"], COMMANDS)
    refuse_misplaced(["my.yaml", "more"], COMMANDS)


def test_every_command_that_says_what_it_does_has_its_line() -> None:
    lines = listed(COMMANDS).splitlines()
    assert [line.split()[0] for line in lines if not line.startswith("   ")] == [
        "validate",
        "ls",
        "report",
        "choose",
    ]
    # All descriptions begin in one column, under a usage that is too long too.
    assert (
        len({line.index(about) for about in ("the plan", "what fits") for line in lines if about in line})
        == 1
    )

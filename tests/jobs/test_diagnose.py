"""A diagnosis runs on a model and settings as they are, and its words say what its table shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.console.printing import text_of
from jobs.diagnose import main, rendered, sentences
from kvmerger.prefill.massive_layers import LargeToken, LayerMagnitudes
from tests.fakes.model_folders import save_model_folder

IDS = [7, 8, 9, 10]


class Words:
    """A tokenizer whose tokens are words with their numbers."""

    def decode(self, ids: list[int], **_: object) -> str:
        return f"word{ids[0]}"


def layer(*tokens: tuple[int, float], median: float = 0.5) -> LayerMagnitudes:
    """A stream of which these tokens have so many medians, all in channel 3."""
    return LayerMagnitudes(
        median, tuple(LargeToken(token, 3, times * median, times) for token, times in tokens)
    )


def test_words_tell_which_tokens_where_and_who_writes_them() -> None:
    layers = [
        layer((2, 15.0)),
        *[layer((0, 9e3), (2, 20.0))] * 2,
        layer((2, 900.0)),
        layer((2, 2e3), (0, 1100.0)),
    ]
    told = list(sentences(layers, IDS, Words()))
    assert told == [
        "massive: token 0 'word7' in layers 1 to 2, 4, at most 9,000 medians, channel 3",
        "massive: token 2 'word9' in layers 4, at most 2,000 medians, channel 3",
        "onset: layer 0 writes the first of them; layers are counted from 0, and each line shows the stream that its layer "
        "starts from",
    ]
    table = text_of(next(rendered(layers, IDS, Words())), 100)
    lines = [line.split() for line in table.splitlines() if line.strip()[:1].isdigit()]
    assert lines[1] == ["1", "0.5", "4,500", "9,000", "3", "0", "'word7'", "20", "1"]
    assert [line[-1] for line in lines] == ["0", "1", "1", "0", "2"]


def test_none_is_told_with_the_number_and_embeddings_are_nobodys_layer() -> None:
    assert list(sentences([layer((0, 15.0)), layer((1, 321.4))], IDS, Words())) == [
        "no token is massive: the largest magnitude of all layers is 321 medians"
    ]
    *_, onset = sentences([layer((0, 1500.0))], IDS, Words())
    assert "in the embeddings already" in onset


def test_it_runs_on_a_model_of_ones_own_and_on_distinct_contexts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_model_folder(tmp_path / "model")
    rows = [
        {
            "context": f"the magic number is {421 + 42 * (index // 2)}.",
            "question": f"which {index}?",
            "answers": ["4"],
        }
        for index in range(6)
    ]
    file = tmp_path / "my.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = [
        "massive",
        "--set",
        f"model.name={folder}",
        "--set",
        f"tasks=[{{name: file/rows, data: {file}}}]",
    ]
    folders = sorted(tmp_path.iterdir())
    assert main([*given, "--contexts", "2", "--set", "policies=[no_such_policy@0.5]", "--width", "100"]) == 0
    out = capsys.readouterr().out
    assert out.count("tokens of context") == 2 == out.count("no token is massive")
    assert sorted(tmp_path.iterdir()) == folders, "nothing is written"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "tasks=[no/such]"], "no/such"),
        (["--set", "model.name=/no/such/folder"], "/no/such/folder"),
        (["no_such_file.yaml"], "no_such_file.yaml"),
    ],
)
def test_what_it_cannot_look_at_is_a_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["massive", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err

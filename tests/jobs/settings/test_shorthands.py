"""A word does what the section does that it stands for, in the file and behind `--set`."""

from pathlib import Path

import pytest

from jobs.settings.schema import load_settings
from jobs.settings.shorthands import written_out
from tests.fakes.settings import MINIMAL, write


@pytest.mark.parametrize(
    ("word", "section"),
    [
        ("model=Qwen/Qwen2.5-7B", "model={name: Qwen/Qwen2.5-7B}"),
        ("actors=2", "actors={count: 2}"),
        ("tracking='off'", "tracking={enabled: false}"),
        ("tracking=http://mlflow:5000", "tracking={uri: 'http://mlflow:5000'}"),
        ("tracking=sqlite:///x.db", "tracking={uri: 'sqlite:///x.db'}"),
        ("policies=snapkv@0.5, fp8", "policies=[{name: snapkv, budget: 0.5}, fp8]"),
        ("policies=full", "policies=[full]"),
    ],
)
def test_a_word_is_the_section_it_stands_for(tmp_path: Path, word: str, section: str) -> None:
    written, meant = (load_settings(write(tmp_path), [override]) for override in (word, section))
    # What is stored is what was written: a name with its budget, or both apart.
    assert written.variants == meant.variants
    assert written.model_copy(update={"policies": meant.policies}) == meant


def test_a_word_in_the_file_can_be_added_to_on_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, f"{MINIMAL}\nmodel: Qwen/Qwen2.5-7B\nactors: 2\n")
    settings = load_settings(path, ["model.dtype=float16", "actors.num_cpus=1"])
    assert (settings.model.name, settings.model.dtype) == ("Qwen/Qwen2.5-7B", "float16")
    assert (settings.actors.count, settings.actors.num_cpus) == (2, 1)


def test_what_is_no_word_stays_as_it_is() -> None:
    raw = {"model": {"name": "demo"}, "actors": True, "tracking": None, "policies": ["full"], "seed": "x"}
    assert written_out(raw) == raw

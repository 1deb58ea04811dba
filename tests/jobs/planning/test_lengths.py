"""A length beyond what a prompt may have is refused at once, with the remedy; one that just fits is not."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluators import registry
from evaluators.benchmark import TaskSpec
from evaluators.prompting import num_text_tokens
from jobs.planning.lengths import refuse_lengths
from jobs.planning.rows import GeneratedPromptError
from jobs.sweep import main
from tests.fakes.engine import make_settings
from tests.fakes.plans import WordTokenizer
from tests.fakes.sweeps import save_data, save_settings, save_tiny_model

TASK, LENGTH = "ruler/niah_single_1", 400


def settings_with(length: int | None, max_prompt_tokens: int | None = None) -> Any:
    tasks = ["longbench/qasper", {"name": TASK, "length": length}]
    return make_settings(tasks=tasks, model={"name": "tiny", "max_prompt_tokens": max_prompt_tokens})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[TaskSpec]:
    """What was loaded."""
    specs, load = [], registry.load_items

    def noted(spec: TaskSpec, tokenizer: Any) -> Any:
        specs.append(spec)
        return load(spec, tokenizer)

    monkeypatch.setattr(registry, "load_items", noted)
    return specs


def test_a_length_beyond_the_models_is_refused_before_anything_is_generated(asked: list[TaskSpec]) -> None:
    for length in (10**9, 1025):
        with pytest.raises(
            GeneratedPromptError, match=rf"^tasks\.1 \({TASK}\).*`length` {length:,} .* 1024 or"
        ):
            refuse_lengths(settings_with(length), WordTokenizer(), 1024)
    for fine in (1024, None):
        refuse_lengths(settings_with(fine), WordTokenizer(), 1024)
    assert not asked


def test_a_length_beyond_max_prompt_tokens_is_refused_by_its_first_item(asked: list[TaskSpec]) -> None:
    tokenizer = WordTokenizer()
    (item,) = registry.load_items(TaskSpec(TASK, length=LENGTH, limit=1), tokenizer)
    asked.clear()
    room = num_text_tokens(item, tokenizer)
    assert room < LENGTH  # answer and template are a part of the length, and no part of the text
    refuse_lengths(settings_with(LENGTH, room), tokenizer, 1024)
    with pytest.raises(GeneratedPromptError, match=rf"one has {room} tokens .* is {room - 1}; raise it"):
        refuse_lengths(settings_with(LENGTH, room - 1), tokenizer, 1024)
    assert [spec.limit for spec in asked] == [1, 1]
    asked.clear()
    refuse_lengths(settings_with(LENGTH, LENGTH), tokenizer, 1024)
    assert not asked


def test_a_sweep_over_a_billion_tokens_ends_with_2_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = save_settings(tmp_path, save_tiny_model(tmp_path / "model"), save_data(tmp_path / "data", 1))
    changed = yaml.safe_load(config.read_text()) | {"tasks": [{"name": TASK, "length": 10**9}]}
    config.write_text(yaml.safe_dump(changed))
    assert main([str(config)]) == 2
    assert "set the task's `length` to 2048 or less" in " ".join(capsys.readouterr().err.split())

"""Prompts that leave a second pass no positions are found before any weights are loaded."""

from pathlib import Path

import pytest

from jobs.planning.preparation import prepare
from jobs.planning.repeat_room import RepeatRoom
from jobs.settings.schema import load_settings
from jobs.sweep import main
from kvmerger.models.repeat_words import repeat_words
from kvmerger.prefill.repeat import PART_TOKENS, parts_of
from tests.fakes.plans import WordTokenizer
from tests.fakes.sweeps import save_data, save_settings, save_tiny_model


def test_the_longest_context_that_is_named_is_the_longest_that_can_be_repeated() -> None:
    tokenizer = WordTokenizer()
    words = repeat_words(tokenizer)

    def taken(num_tokens: int) -> int:
        return num_tokens + max(len(part.ids) for part in parts_of(range(num_tokens), words, PART_TOKENS))

    for max_positions in (60, 3000, 4300):
        room, longest = RepeatRoom(tokenizer, max_positions), max_positions
        while taken(longest) > max_positions:
            longest -= 1
        assert room.lacking(longest) is None
        told = room.lacking(longest + 1)
        assert told is not None and f"the context of {longest + 1:,} tokens" in told
        assert (
            f"leaves a context {longest:,}; lower model.max_prompt_tokens, or a task's length, by 1 " in told
        )
    assert RepeatRoom(tokenizer, 10).lacking(1) is not None, "where even one token is too long"


def test_a_tokenizer_that_cannot_say_the_words_is_told() -> None:
    class Mute(WordTokenizer):
        def __call__(self, text: str, **options: object) -> dict:
            raise KeyError("no such word")

    told = RepeatRoom(Mute(), 4096).lacking(10)
    assert told == "its second pass cannot be asked for with this tokenizer: KeyError: 'no such word'"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


POLICIES = "policies=[kvzip@0.5, knorm@0.5, kvzip@0.5+int4, snapkv@0.5+attention_matching, grkv@0.5]"


def test_rows_that_need_a_second_pass_are_impossible_where_it_has_no_room(
    tmp_path: Path, model: Path
) -> None:
    # The model has 2,048 positions, and a word takes about four of its tokens.
    config = save_settings(tmp_path, model, save_data(tmp_path / "data", 3, num_words=300))
    prepared = prepare(load_settings(config, [POLICIES]), (), lambda: "cpu")
    reasons = {it.label: (it.num_impossible, it.impossible_reason) for it in prepared.plan.variants}
    for label, (num_impossible, reason) in reasons.items():
        is_repeating = label not in ("full", "no_context", "full_aa", "knorm@0.5")
        # Item 0 has a context of one word, and the template around it.
        assert num_impossible == (2 if is_repeating else 0), (label, reason)
        assert not is_repeating or "its second pass repeats the context of" in str(reason), label


def test_where_no_prompt_leaves_room_validate_ends_with_the_variants_and_the_remedy(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = save_settings(tmp_path, model, save_data(tmp_path / "data", 3, num_words=300))
    data = tmp_path / "data" / "qasper.jsonl"
    data.write_text("\n".join(data.read_text().splitlines()[1:]))
    assert main(["validate", str(config), "--set", POLICIES]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: no item can run with 'kvzip@0.5'") and "Traceback" not in err
    assert err.count("lower model.max_prompt_tokens") == 4 and "knorm" not in err

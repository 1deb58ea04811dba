"""The self-check shows the prompt that the model gets: its cut, its ends and what was lost."""

import io
import zlib
from dataclasses import replace
from typing import ClassVar

from rich.console import Console
from tokenizers import AddedToken

from evaluators import long_text
from evaluators.item import FollowUp
from evaluators.prompting import QueryMode
from jobs.planning import prompt_check
from jobs.planning.prompt_check import PromptCheck, check_prompts, told_of_shared_contexts
from jobs.reporting.dry_run import render_prompts
from tests.fakes.plans import CONTEXT, WordTokenizer, item, plan_of, settings_of


def checks_of(*items, tokenizer=None, **settings) -> tuple[PromptCheck, ...]:
    tokenizer = tokenizer or WordTokenizer()
    plan = plan_of(settings_of(**settings), items, tokenizer=tokenizer)
    return check_prompts(plan, tokenizer)


def shown(checks: tuple[PromptCheck, ...], end_tokens: tuple[str, ...] = ("<end>",)) -> str:
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as captured:
        console.print(render_prompts(checks, end_tokens))
    return captured.get()


def test_both_sides_of_the_cut_are_shown() -> None:
    (check,) = checks_of(item(1, answer_prefix=" it is"), item(2, answer_prefix=" it is"))
    assert check.compressed_end.endswith(CONTEXT)
    assert check.tail == " what is number 1 it is"
    assert (check.num_items, check.num_truncated, check.first_gold) == (2, 0, "word1")


def test_truncation_is_counted_with_the_length_before_it() -> None:
    model = {"name": "demo", "max_prompt_tokens": 20}
    (check,) = checks_of(item(1), item(2, context="x y"), model=model, query_mode="query_aware")
    assert check.num_truncated == 1
    assert check.longest_tokens <= 20 < check.longest_untruncated_tokens
    assert f"the longest had {check.longest_untruncated_tokens} tokens" in shown((check,))


def test_tasks_are_checked_apart_and_lost_prompts_are_told() -> None:
    empty = item(3, task="other", before_context="", context="", after_context="")
    checks = checks_of(item(1), item(2, task="other"), empty)
    assert [(it.task, it.num_without_prompt) for it in checks] == [("bench/task", 0), ("bench/other", 1)]
    assert "1 of 2 items have no sound prompt" in shown(checks)


def test_who_put_bos_there_is_said() -> None:
    class WithBos(WordTokenizer):
        bos_token_id = 7

        def __call__(self, text, **options):
            raw = super().__call__(text, **options)
            if options.get("add_special_tokens", True):
                raw["input_ids"].insert(0, 7)
            self._words[7] = "<s>"
            return raw

    (added,) = checks_of(item(1), tokenizer=WithBos())
    assert added.bos == "1, put in front by the tokenizer"
    (none,) = checks_of(item(1))
    assert none.bos == "the tokenizer has none"


def test_control_tokens_in_the_text_and_gold_answers_without_nll_are_told() -> None:
    class WithMark(WordTokenizer):
        added_tokens_decoder: ClassVar[dict[int, AddedToken]] = {
            zlib.crc32(b"<end>"): AddedToken("<end>", special=True),
            zlib.crc32(b"<think>"): AddedToken("<think>", special=False),
        }

        def __call__(self, text, **options):
            if options.get("split_special_tokens"):  # the mark in letters
                text = text.replace("<end>", "<\0end>")
            return super().__call__(text, **options)

    gold = " ".join(["long"] * 30)
    items = [item(1, context="one <end> two <think> three"), item(2), item(3, answers=(gold,))]
    checks = checks_of(*items, tokenizer=WithMark())
    text = " ".join(shown(checks).split())
    assert "1 of 3 items spell out control tokens (<end>) in their own text" in text
    assert (
        "1 of 3 items spell out control tokens (<think>) in their own text that the model's tokenizer does not mark"
        in text
    )
    assert "1 of 3 items have no answer NLL: the first gold answer has 60 tokens" in text
    assert checks_of(item(2), tokenizer=WithMark())[0].warnings == ()


def test_a_model_without_end_tokens_is_told() -> None:
    assert "no end token is known" in shown(checks_of(item(1)), ())


def test_what_was_cut_before_it_was_tokenised_is_told_in_check_and_row(monkeypatch) -> None:
    monkeypatch.setattr(long_text, "MOST_CHARS", 10_000)
    monkeypatch.setattr(prompt_check, "MOST_CHARS", 10_000)
    words = "word " * 40_000
    model = {"name": "demo", "max_prompt_tokens": 20}
    tokenizer = WordTokenizer()
    plan = plan_of(settings_of(model=model), [item(1), item(2, context=words)], tokenizer=tokenizer)
    (check,) = check_prompts(plan, tokenizer)
    (warning,) = (it for it in check.warnings if "characters" in it)
    assert warning.startswith("1 of 2 items have more than 10,000 characters") and "estimated" in warning
    # Estimated by characters, to a few per cent of what was never counted.
    assert abs(check.longest_untruncated_tokens / 80_000 - 1) < 0.05
    cut = next(row.planned for row in plan.rows if row.item.item_id.endswith("2"))
    assert cut is not None and len(cut.item.context) < len(words) / 2
    assert cut.item.metadata[long_text.CHARS_BEFORE_CUT] == long_text.num_chars(item(2, context=words))
    assert all(long_text.CHARS_BEFORE_CUT not in row.item.metadata for row in plan.rows)


def test_contexts_that_are_asked_again_are_told_with_how_often_they_are_compressed() -> None:
    first, again, other = item(1), item(2), item(3, cluster_id="d", context=f"{CONTEXT} more")

    def told(*items, mode=QueryMode.AGNOSTIC) -> str | None:
        return told_of_shared_contexts(plan_of(settings_of(query_mode=mode), items), mode)

    assert told(first, other) is None
    assert told(first, again, other) == "3 questions on 2 contexts, each compressed once"
    aware = told(first, again, other, mode=QueryMode.AWARE)
    assert aware is not None and "each question has a compression of its own" in aware
    later = replace(again, follow_ups=(FollowUp("and then?", 8),))
    own = told(first, later)
    assert own is not None and own.endswith("own answers to earlier questions stay in the cache")

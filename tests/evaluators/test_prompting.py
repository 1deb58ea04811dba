"""Prompts keep their promises with every kind of tokenizer: BOS, template, split, truncation and gold answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.prompting import (
    PromptError,
    QueryMode,
    num_prompt_tokens,
    self_check,
    tokenize_item,
)
from tests.evaluators.conftest import CHAT_TEMPLATE, ITEM, NO_LIMIT, PROSE, MakeTokenizer, ids_of


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("brings_bos", [False, True])
def test_bos_is_there_once_if_tokenizer_or_template_wants_it(
    make_tokenizer: MakeTokenizer, adds_bos: bool, brings_bos: bool
) -> None:
    template = "{{ bos_token }}" * brings_bos + CHAT_TEMPLATE
    tokenizer = make_tokenizer(adds_bos=adds_bos, chat_template=template)
    ids = ids_of(tokenize_item(ITEM, tokenizer, QueryMode.AWARE, NO_LIMIT))
    assert ids.count(tokenizer.bos_token_id) == int(adds_bos or brings_bos)
    assert (ids[0] == tokenizer.bos_token_id) == (adds_bos or brings_bos)


def test_a_template_with_two_bos_is_refused(make_tokenizer: MakeTokenizer) -> None:
    template = "{{ bos_token }}{{ bos_token }}" + CHAT_TEMPLATE
    with pytest.raises(PromptError, match="occurs 2 times"):
        tokenize_item(ITEM, make_tokenizer(adds_bos=True, chat_template=template), QueryMode.AWARE, NO_LIMIT)


def test_a_template_that_uses_bos_as_its_turn_mark_is_fine_where_the_tokenizer_adds_none(
    make_tokenizer: MakeTokenizer,
) -> None:
    template = "<s>user\n{{ messages[0]['content'] }}</s>\n<s>assistant\n"  # as in ChatML models like SmolLM2
    tokenizer = make_tokenizer(adds_bos=False, chat_template=template)
    ids = ids_of(tokenize_item(ITEM, tokenizer, QueryMode.AWARE, NO_LIMIT))
    assert ids.count(tokenizer.bos_token_id) == 2


def test_aware_tail_is_what_follows_the_users_text(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(chat_template=CHAT_TEMPLATE)
    item = replace(ITEM, answer_prefix=" What can change is")
    prompt = tokenize_item(item, tokenizer, QueryMode.AWARE, NO_LIMIT)
    assert tokenizer.decode(prompt.tail_ids) == "</s>\n<|assistant|>\n What can change is"


def test_aware_tail_is_the_last_token_when_nothing_follows(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(chat_template=CHAT_TEMPLATE)
    item = replace(ITEM, use_chat_template=False)
    prompt = tokenize_item(item, tokenizer, QueryMode.AWARE, NO_LIMIT)
    assert len(prompt.tail_ids) == 1
    assert tokenizer.decode(ids_of(prompt)) == item.prompt_text


def test_agnostic_tail_starts_with_the_question(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(chat_template=CHAT_TEMPLATE)
    prompt = tokenize_item(ITEM, tokenizer, QueryMode.AGNOSTIC, NO_LIMIT)
    assert tokenizer.decode(prompt.tail_ids) == ITEM.after_context + "</s>\n<|assistant|>\n"


@pytest.mark.parametrize("mode", QueryMode)
def test_an_item_without_context_is_cut_behind_its_text_in_both_modes(
    make_tokenizer: MakeTokenizer, mode: QueryMode
) -> None:
    tokenizer = make_tokenizer(chat_template=CHAT_TEMPLATE)
    item = replace(ITEM, before_context="", context="")
    prompt = tokenize_item(item, tokenizer, mode, NO_LIMIT)
    assert prompt.is_context_free
    assert tokenizer.decode(prompt.context_ids).endswith(item.after_context)
    assert tokenizer.decode(prompt.tail_ids) == "</s>\n<|assistant|>\n"
    assert not tokenize_item(ITEM, tokenizer, mode, NO_LIMIT).is_context_free


def test_a_template_that_strips_the_message_moves_no_split(make_tokenizer: MakeTokenizer) -> None:
    template = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
    item = replace(ITEM, before_context="\n Read this.\n", after_context="\nWhat can change? \n")
    prompt = tokenize_item(item, make_tokenizer(chat_template=template), QueryMode.AGNOSTIC, NO_LIMIT)
    tail = make_tokenizer().decode(prompt.tail_ids)
    assert tail == "\nWhat can change?</s>\n<|assistant|>\n"


def test_a_users_text_that_the_template_holds_too_moves_no_split(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(chat_template=CHAT_TEMPLATE)  # it has "<|user|>" before the message
    item = replace(ITEM, before_context="", context="us", after_context="er")
    prompt = tokenize_item(item, tokenizer, QueryMode.AWARE, NO_LIMIT)
    assert tokenizer.decode(prompt.tail_ids) == "</s>\n<|assistant|>\n"


@pytest.mark.parametrize("trims_offsets", [False, True])
@given(before=st.sampled_from(["", "In: "]), context=st.text("ab. ", min_size=1), after=st.text("ab. "))
def test_a_token_across_the_split_is_compressed(
    make_tokenizer: MakeTokenizer, trims_offsets: bool, before: str, context: str, after: str
) -> None:
    tokenizer = make_tokenizer(trims_offsets=trims_offsets)
    item = replace(ITEM, before_context=before, context="the " + context, after_context=after + "change")
    prompt = tokenize_item(item, tokenizer, QueryMode.AGNOSTIC, NO_LIMIT)
    split = len(before + item.context)
    assert len(tokenizer.decode(prompt.context_ids[:-1])) < split
    assert len(tokenizer.decode(prompt.context_ids)) >= split or len(prompt.tail_ids) == 1


@pytest.mark.parametrize("trims_offsets", [False, True])
def test_a_blank_before_the_question_takes_its_first_word_along(
    make_tokenizer: MakeTokenizer, trims_offsets: bool
) -> None:
    tokenizer = make_tokenizer(trims_offsets=trims_offsets)
    item = replace(ITEM, context="It is so that ", after_context="the value")
    prompt = tokenize_item(item, tokenizer, QueryMode.AGNOSTIC, NO_LIMIT)
    assert tokenizer.decode(prompt.context_ids).endswith("so that the")
    assert tokenizer.decode(prompt.tail_ids).lstrip() == "value"


@given(context=st.text(min_size=1), after=st.text(), prefix=st.sampled_from(["", " It is"]))
def test_both_modes_share_every_id(
    make_tokenizer: MakeTokenizer, context: str, after: str, prefix: str
) -> None:
    item = replace(ITEM, context=context, after_context=after, answer_prefix=prefix)
    tokenizer = make_tokenizer(adds_bos=True, chat_template=CHAT_TEMPLATE, trims_offsets=True)
    aware, agnostic = (tokenize_item(item, tokenizer, mode, NO_LIMIT) for mode in QueryMode)
    assert ids_of(aware) == ids_of(agnostic)
    assert len(agnostic.tail_ids) >= len(aware.tail_ids) >= 1
    assert agnostic.gold_ids == aware.gold_ids


@pytest.mark.parametrize("max_prompt_tokens", [60, 61, 100])
@pytest.mark.parametrize("mode", QueryMode)
def test_truncation_keeps_both_ends_and_the_question(
    make_tokenizer: MakeTokenizer, mode: QueryMode, max_prompt_tokens: int
) -> None:
    tokenizer = make_tokenizer(adds_bos=True, chat_template=CHAT_TEMPLATE)
    item = replace(ITEM, context=PROSE * 20)
    prompt = tokenize_item(item, tokenizer, mode, max_prompt_tokens)
    text = tokenizer.decode(ids_of(prompt))
    assert prompt.is_truncated
    assert prompt.num_original_tokens == num_prompt_tokens(item, tokenizer)
    assert text.startswith("<s><|user|>\nRead this.\nThe value")
    assert text.endswith(ITEM.after_context + "</s>\n<|assistant|>\n")
    num_template_tokens = num_prompt_tokens(replace(item, context="x"), tokenizer)
    assert max_prompt_tokens // 2 < len(ids_of(prompt)) <= max_prompt_tokens + num_template_tokens


def test_truncation_keeps_exactly_the_first_and_last_half(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    item = replace(ITEM, context=PROSE * 20)
    ids = tokenizer(item.prompt_text)["input_ids"]
    prompt = tokenize_item(item, tokenizer, QueryMode.AWARE, 81)
    assert tokenizer.decode(ids_of(prompt)) == tokenizer.decode(ids[:40]) + tokenizer.decode(ids[-40:])


def test_a_prompt_of_exactly_the_limit_is_not_truncated(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(adds_bos=True)
    limit = len(tokenizer(ITEM.prompt_text)["input_ids"])
    assert not tokenize_item(ITEM, tokenizer, QueryMode.AWARE, limit).is_truncated
    assert tokenize_item(ITEM, tokenizer, QueryMode.AWARE, limit - 1).is_truncated


def test_a_question_longer_than_half_the_limit_is_refused_where_it_must_stay_whole(
    make_tokenizer: MakeTokenizer,
) -> None:
    item = replace(ITEM, context=PROSE * 20, after_context="\n" + PROSE * 2)
    with pytest.raises(PromptError, match="raise max_prompt_tokens"):
        tokenize_item(item, make_tokenizer(), QueryMode.AGNOSTIC, 20)
    assert tokenize_item(item, make_tokenizer(), QueryMode.AWARE, 20).is_truncated


@pytest.mark.parametrize(
    ("prefix", "chat_template", "gold"),
    [
        ("", None, " The value"),
        (" It is", None, " The value"),
        (" It is ", None, "The value"),
        ("", CHAT_TEMPLATE, "The value"),
        ("", CHAT_TEMPLATE.replace("<|assistant|>\n", "<|assistant|>"), "The value"),
        (" It is", CHAT_TEMPLATE, " The value"),
    ],
    ids=["plain", "prefix", "prefix with blank", "header", "header without newline", "header and prefix"],
)
def test_gold_gets_a_blank_unless_the_prompt_ends_in_one_or_in_the_header(
    make_tokenizer: MakeTokenizer, prefix: str, chat_template: str | None, gold: str
) -> None:
    tokenizer = make_tokenizer(adds_bos=True, chat_template=chat_template)
    item = replace(ITEM, answer_prefix=prefix)
    assert tokenizer.decode(tokenize_item(item, tokenizer, QueryMode.AWARE, NO_LIMIT).gold_ids) == gold


def test_gold_is_encoded_alone_when_it_would_change_the_prompts_last_token(
    make_tokenizer: MakeTokenizer,
) -> None:
    tokenizer = make_tokenizer()
    item = replace(ITEM, answer_prefix=" It is ", answers=("the value",))  # "the" would swallow the blank
    prompt = tokenize_item(item, tokenizer, QueryMode.AWARE, NO_LIMIT)
    joint = tokenizer(item.prompt_text + item.answer_prefix + item.answers[0])["input_ids"]
    assert tuple(joint[: len(ids_of(prompt))]) != ids_of(prompt)
    assert list(prompt.gold_ids) == tokenizer(item.answers[0])["input_ids"]


def test_gold_never_holds_eos_and_is_empty_without_an_answer(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    with_eos = tokenize_item(replace(ITEM, answers=("yes</s>",)), tokenizer, QueryMode.AWARE, NO_LIMIT)
    assert tokenizer.decode(with_eos.gold_ids) == " yes"
    assert tokenize_item(replace(ITEM, answers=()), tokenizer, QueryMode.AWARE, NO_LIMIT).gold_ids == ()


def test_templates_are_told_a_fixed_date_and_no_thinking(make_tokenizer: MakeTokenizer) -> None:
    template = "{{ date_string }} {{ enable_thinking }} " + CHAT_TEMPLATE
    tokenizer = make_tokenizer(chat_template=template)
    prompt = tokenize_item(ITEM, tokenizer, QueryMode.AWARE, NO_LIMIT)
    assert tokenizer.decode(prompt.context_ids).startswith("26 Jul 2024 False <|user|>")


@pytest.mark.parametrize(
    ("change", "limit", "message"),
    [
        ({"before_context": "", "context": " \n", "after_context": ""}, NO_LIMIT, "prompt is empty"),
        ({"before_context": " ", "context": "", "after_context": "w"}, NO_LIMIT, "0 are to be compressed"),
        ({}, 1, "max_prompt_tokens is 1"),
    ],
    ids=["empty prompt", "empty context", "no room"],
)
def test_what_cannot_be_a_sound_prompt_is_refused(
    make_tokenizer: MakeTokenizer, change: dict[str, str], limit: int, message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        tokenize_item(replace(ITEM, **change), make_tokenizer(), QueryMode.AGNOSTIC, limit)


@pytest.mark.parametrize(
    ("prefix", "answer"),
    [("类别：", "经济"), ("答えは", "東京"), ("คำตอบคือ", "กรุงเทพ"), ("It is (", "B")],  # noqa: RUF001 - full-width
)
def test_gold_gets_no_blank_where_its_language_has_none(
    make_tokenizer: MakeTokenizer, prefix: str, answer: str
) -> None:
    tokenizer = make_tokenizer()
    item = replace(ITEM, answer_prefix=prefix, answers=(answer,))
    assert tokenizer.decode(tokenize_item(item, tokenizer, QueryMode.AWARE, NO_LIMIT).gold_ids) == answer


@pytest.mark.parametrize("answer", ["", " \n", "</s>", "</s></s>"])
def test_a_gold_answer_without_text_is_none_and_says_so(make_tokenizer: MakeTokenizer, answer: str) -> None:
    prompt = tokenize_item(replace(ITEM, answers=(answer,)), make_tokenizer(), QueryMode.AWARE, NO_LIMIT)
    assert (prompt.gold_ids, prompt.no_gold_reason) == ((), "the first gold answer is empty")


def test_self_check_misses_no_lost_answer_prefix(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(chat_template=CHAT_TEMPLATE)
    prompt = tokenize_item(ITEM, tokenizer, QueryMode.AWARE, NO_LIMIT)
    with pytest.raises(PromptError, match="not in the answer prefix"):
        self_check(prompt, replace(ITEM, answer_prefix=" It is"), tokenizer)


@pytest.mark.parametrize("mode", QueryMode)
def test_an_item_that_stops_at_a_newline_brings_its_token(
    make_tokenizer: MakeTokenizer, mode: QueryMode
) -> None:
    tokenizer = make_tokenizer(adds_bos=True)
    prompt = tokenize_item(replace(ITEM, stop_at_newline=True), tokenizer, mode, NO_LIMIT)
    assert [tokenizer.decode([token]) for token in prompt.stop_ids] == ["\n"]
    assert replace(prompt, stop_ids=()) == tokenize_item(ITEM, tokenizer, mode, NO_LIMIT)

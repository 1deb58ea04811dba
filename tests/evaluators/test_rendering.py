"""A conversation's later messages stand behind the model's own answers as the chat template has them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evaluators.item import FollowUp
from evaluators.prompting import PromptError, QueryMode, TokenizedPrompt, tokenize_item
from tests.evaluators.conftest import CHAT_TEMPLATE, ITEM, NO_LIMIT, MakeTokenizer

ASKED = (FollowUp("What else can change?", 7), FollowUp("And what never does?", 5))
# The shared one calls every message the user's.
TEMPLATE = CHAT_TEMPLATE.replace("<|user|>", "<|{{ message['role'] }}|>")
TALK = replace(ITEM, follow_ups=ASKED)


def asked(tokenizer, item=TALK) -> TokenizedPrompt:
    return tokenize_item(item, tokenizer, QueryMode.AGNOSTIC, NO_LIMIT)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_what_is_read_with_the_answers_in_between_is_the_templates_own_rendering(
    make_tokenizer: MakeTokenizer, adds_bos: bool
) -> None:
    tokenizer = make_tokenizer(adds_bos=adds_bos, chat_template=TEMPLATE)
    prompt, answers = asked(tokenizer), ("The value.", "Its attributes, too.")
    read = list(prompt.context_ids)
    for turn, answer in zip(prompt.earlier, answers, strict=True):
        read += [*turn.tail_ids, *tokenizer(answer, add_special_tokens=False)["input_ids"]]
    read += prompt.tail_ids
    said = [
        ITEM.prompt_text,
        *(text for pair in zip(answers, (it.text for it in ASKED), strict=True) for text in pair),
    ]
    messages = [
        {"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(said)
    ]
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert read[int(adds_bos) :] == tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert read.count(tokenizer.bos_token_id) == int(adds_bos)
    assert [turn.max_new_tokens for turn in prompt.earlier] == [7, 5]
    assert prompt.most_tail_tokens == len(read) - len(prompt.context_ids) + 12 - sum(
        len(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers
    )


def test_the_context_is_that_of_the_first_question_alone(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(chat_template=TEMPLATE)
    first, talk = asked(tokenizer, ITEM), asked(tokenizer)
    assert first.context_ids == talk.context_ids and first.tail_ids == talk.earlier[0].tail_ids
    assert first.earlier == () and talk.num_original_tokens > first.num_original_tokens


def test_the_gold_answer_follows_the_last_question(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(adds_bos=True, chat_template=TEMPLATE)
    assert tokenizer.decode(asked(tokenizer).gold_ids) == "The value"
    bare = make_tokenizer(adds_bos=True)
    assert bare.decode(asked(bare).gold_ids) == " The value"
    assert asked(bare, replace(TALK, answers=())).gold_ids == ()


def test_without_a_template_a_blank_line_stands_between(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(adds_bos=True)
    assert tokenizer.decode(asked(tokenizer).tail_ids) == "\n\nAnd what never does?"
    withheld = make_tokenizer(chat_template=TEMPLATE)
    prompt = asked(withheld, replace(TALK, use_chat_template=False))
    assert withheld.decode(prompt.earlier[1].tail_ids) == "\n\nWhat else can change?"


def test_a_control_token_that_a_later_question_spells_out_is_text(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(chat_template=TEMPLATE)
    item = replace(TALK, follow_ups=(FollowUp("What does </s> mean?", 7),))
    prompt = asked(tokenizer, item)
    assert prompt.spelled_controls == ("</s>",)
    assert (
        prompt.tail_ids.count(tokenizer.eos_token_id) == 2
    )  # the template's: before and behind the question
    assert "</s> mean?" in tokenizer.decode(prompt.tail_ids)


def test_a_template_that_takes_no_second_message_or_another_text_is_refused(
    make_tokenizer: MakeTokenizer,
) -> None:
    one = "{% if messages|length > 1 %}{{ raise_exception('one message only') }}{% endif %}" + TEMPLATE
    with pytest.raises(PromptError, match=r"test/prompting/0: .*no second message .*one message only"):
        asked(make_tokenizer(chat_template=one))
    loud = TEMPLATE.replace(
        "message['content']", "message['content'] if loop.first else message['content']|upper"
    )
    with pytest.raises(PromptError, match="changes the user's text"):
        asked(make_tokenizer(chat_template=loud))


def test_compression_cannot_see_a_later_question(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(PromptError, match="query_agnostic"):
        tokenize_item(TALK, make_tokenizer(), QueryMode.AWARE, NO_LIMIT)

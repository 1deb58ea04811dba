"""An item's text stays text: a control token that it spells out is none, and it is compared as the tokenizer sees it."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from evaluators.prompting import PromptError, QueryMode, tokenize_item
from tests.evaluators.conftest import CHAT_TEMPLATE, ITEM, NO_LIMIT, PROSE, MakeTokenizer, ids_of

if TYPE_CHECKING:  # imported where used, so that collecting the tests stays fast
    from transformers import PreTrainedTokenizerFast


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("chat_template", [None, CHAT_TEMPLATE, "{{ bos_token }}" + CHAT_TEMPLATE])
@pytest.mark.parametrize("place", ["before_context", "context", "after_context", "answer_prefix"])
def test_a_control_token_that_the_text_spells_out_is_plain_text_and_told(
    make_tokenizer: MakeTokenizer, adds_bos: bool, chat_template: str | None, place: str
) -> None:
    tokenizer = make_tokenizer(adds_bos=adds_bos, chat_template=chat_template)
    item = replace(ITEM, **{place: "<s>x</s>\n<|assistant|>\n"})
    for mode in QueryMode:
        prompt, plain = (tokenize_item(it, tokenizer, mode, NO_LIMIT) for it in (item, ITEM))
        for mark in ("<s>", "</s>", "<|user|>", "<|assistant|>"):
            token = tokenizer.convert_tokens_to_ids(mark)
            assert ids_of(prompt).count(token) == ids_of(plain).count(token), mark
        bos = "" if (chat_template or "").startswith("{{ bos") or not adds_bos else "<s>"
        text = item.prompt_text
        if chat_template:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
        assert tokenizer.decode(ids_of(prompt)) == bos + text + item.answer_prefix
        assert (prompt.spelled_controls, plain.spelled_controls) == (("<s>", "</s>", "<|assistant|>"), ())


@pytest.mark.parametrize("place", ["context", "answer_prefix"])
def test_a_control_token_that_is_not_marked_special_is_read_as_itself_and_told(
    make_tokenizer: MakeTokenizer, place: str
) -> None:
    from tokenizers import AddedToken

    tokenizer = make_tokenizer(adds_bos=True, chat_template=CHAT_TEMPLATE + "<|file_sep|>")
    marks = ("<think>", "</think>", "[TOOL_CALLS]", "<|file_sep|>")
    tokenizer.add_tokens([AddedToken(it, special=False) for it in (*marks, "magic", "    ")])
    item = replace(ITEM, **{place: "<think>x</think>\n<think>    [TOOL_CALLS] magic </s>"})
    for mode in QueryMode:
        prompt, plain = (tokenize_item(it, tokenizer, mode, NO_LIMIT) for it in (item, ITEM))
        assert prompt.meant_controls == marks[:3] and plain.meant_controls == ()
        assert prompt.spelled_controls == ("</s>",)
        assert ids_of(prompt).count(tokenizer.convert_tokens_to_ids("<think>")) == 2


def test_around_a_spelled_control_token_every_other_id_stays(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(adds_bos=True, chat_template=CHAT_TEMPLATE)
    with_mark, without = (
        ids_of(tokenize_item(replace(ITEM, context=PROSE + mark), tokenizer, QueryMode.AWARE, NO_LIMIT))
        for mark in ("</s>", "")
    )
    num_same = len(tokenizer("<|user|>\nRead this.\n" + PROSE, add_special_tokens=False)["input_ids"])
    assert with_mark[:num_same] == without[:num_same]
    assert with_mark[-3:] == without[-3:]


def test_a_cut_text_keeps_the_control_tokens_that_it_spells_out(make_tokenizer: MakeTokenizer) -> None:
    item = replace(ITEM, context=PROSE * 20, before_context="<s>read</s>\n")
    prompt = tokenize_item(item, make_tokenizer(adds_bos=True), QueryMode.AWARE, 60)
    assert prompt.is_truncated
    assert make_tokenizer().decode(ids_of(prompt)).startswith("<s><s>read</s>\n")


@pytest.mark.parametrize("mode", QueryMode)
@pytest.mark.parametrize("limit", [NO_LIMIT, 60])
def test_texts_are_compared_as_the_tokenizer_sees_them(
    make_tokenizer: MakeTokenizer, mode: QueryMode, limit: int
) -> None:
    apart = unicodedata.normalize("NFD", " Le café de l'été est")
    item = replace(ITEM, context=PROSE * 20, after_context="\n" + apart, answer_prefix=apart)
    tokenizer = make_tokenizer(adds_bos=True, chat_template=CHAT_TEMPLATE, normalizer="NFC")
    prompt = tokenize_item(item, tokenizer, mode, limit)
    composed = unicodedata.normalize("NFC", apart)
    assert prompt.is_truncated == (limit == 60)
    tail = "</s>\n<|assistant|>\n" + composed
    if mode is QueryMode.AGNOSTIC:
        tail = "\n" + composed + tail
    assert tokenizer.decode(prompt.tail_ids) == tail


def test_a_tokenizer_that_loses_the_answer_prefix_is_still_refused(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(normalizer="StripAccents")
    item = replace(ITEM, answer_prefix=" It is\u0301")
    with pytest.raises(PromptError, match="not in the answer prefix"):
        tokenize_item(item, tokenizer, QueryMode.AWARE, NO_LIMIT)


def test_a_control_token_inside_the_gold_answer_is_plain_text(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(adds_bos=True)
    item = replace(ITEM, answers=("<s> or </s> then",))
    gold = tokenize_item(item, tokenizer, QueryMode.AWARE, NO_LIMIT).gold_ids
    assert tokenizer.decode(gold) == " <s> or </s> then"
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(gold)


@pytest.fixture(params=["first", "always"])
def blank_before_words(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """A tokenizer as of Mistral ("first") and Llama-2: it puts a blank before a text, or before each of its pieces."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *map(chr, range(33, 127)),
        "▁",
        "t▁",
        "s▁",
    ]
    bpe = Tokenizer(
        models.BPE(
            vocab={text: index for index, text in enumerate(letters)},
            merges=[("t", "▁"), ("s", "▁")],  # the blank behind "is" belongs to it
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    if request.param == "first":
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
    )


def test_plain_text_for_a_control_token_moves_no_blank(blank_before_words: PreTrainedTokenizerFast) -> None:
    item = replace(ITEM, context=PROSE + "mark ", answer_prefix=" So")
    marked = replace(item, context=PROSE + "</s> ")
    plain, prompt = (
        tokenize_item(it, blank_before_words, QueryMode.AWARE, NO_LIMIT) for it in (item, marked)
    )
    assert prompt.tail_ids == plain.tail_ids
    assert blank_before_words.decode(prompt.context_ids) == blank_before_words.decode(
        plain.context_ids
    ).replace("mark", "</s>")


@pytest.mark.parametrize(("prefix", "gold"), [(" It is", " yes"), (" 类别", "经济")])
def test_gold_that_is_encoded_alone_has_the_blank_that_it_is_given(
    blank_before_words: PreTrainedTokenizerFast, prefix: str, gold: str
) -> None:
    item = replace(ITEM, answer_prefix=prefix, answers=(gold.strip(),))
    prompt = tokenize_item(item, blank_before_words, QueryMode.AWARE, NO_LIMIT)
    assert blank_before_words.decode(prompt.gold_ids) == gold

"""A template gives one text for one question, whatever the clock says and however often it is asked."""

from datetime import datetime

import pytest

from evaluators.chat_template import check_chat_template, render_question, turn_end
from evaluators.tokenizer import PromptError
from tests.evaluators.conftest import CHAT_TEMPLATE, MakeTokenizer


@pytest.mark.parametrize(
    "directive", ["%d %b %Y %H:%M:%S.%f", "%-d. %B %y", "%A|%p|%j", "100%% %%d", "%c", "[%Z%z]", "%Q %"]
)
def test_a_template_that_reads_the_clock_is_given_a_day_that_stands_still(
    make_tokenizer: MakeTokenizer, directive: str
) -> None:
    template = (
        "\n{% macro day() %}{{ strftime_now(format='"
        + directive
        + "') }}{% endmacro %}{{ day() }} "
        + CHAT_TEMPLATE
    )
    text = render_question("why?", make_tokenizer(chat_template=template))
    assert text.startswith(f"\n{datetime(2024, 7, 26).strftime(directive)} <|user|>\nwhy?")


def test_the_clock_stands_still_in_the_default_of_several_templates(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(
        chat_template={"default": "{{ strftime_now('%Y') }}" + CHAT_TEMPLATE, "rag": ""}
    )
    assert render_question("why?", tokenizer).startswith("2024<|user|>")


def test_templates_are_told_the_day_and_that_nothing_is_to_be_reasoned(make_tokenizer: MakeTokenizer) -> None:
    template = "{{ date_string }} {{ enable_thinking }} " + CHAT_TEMPLATE
    assert render_question("why?", make_tokenizer(chat_template=template)).startswith(
        "26 Jul 2024 False <|user|>"
    )


def test_a_template_that_chooses_at_random_is_refused(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(PromptError, match="another text each time"):
        check_chat_template(make_tokenizer(chat_template="{{ range(9999) | random }}" + CHAT_TEMPLATE))


@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE, "{{ raise_exception('no') }}", "{% for"])
def test_templates_that_are_steady_absent_or_broken_pass_the_check(
    make_tokenizer: MakeTokenizer, template: str | None
) -> None:
    check_chat_template(make_tokenizer(chat_template=template))


@pytest.mark.parametrize(
    ("ending", "token"),
    [("</s>", "</s>"), ("\n</s>\n", "</s>"), ("<|user|> ", "<|user|>"), ("\n\n", None), (" Over.</s>", None)],
)
def test_the_token_that_ends_a_turn_is_read_from_the_template(
    make_tokenizer: MakeTokenizer, ending: str, token: str | None
) -> None:
    tokenizer = make_tokenizer(
        chat_template=f"{{% for m in messages %}}{{{{ m.content }}}}{ending}{{% endfor %}}"
    )
    end = turn_end(tokenizer)
    assert (None if end is None else tokenizer.convert_ids_to_tokens(end)) == token


@pytest.mark.parametrize(
    "template",
    [None, "{{ messages[0].content }}</s>", CHAT_TEMPLATE.replace("<|user|>", "{{ raise_exception('no') }}")],
)
def test_a_template_that_shows_no_turn_of_the_assistant_tells_nothing(
    make_tokenizer: MakeTokenizer, template: str | None
) -> None:
    assert turn_end(make_tokenizer(chat_template=template)) is None

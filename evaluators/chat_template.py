"""What a model's chat template makes of messages: the same text on every day, and the token that ends a turn of it."""

from __future__ import annotations

import functools
import string
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from evaluators.tokenizer import PromptError, Tokenizer, decode

# Llama 3.1's template prints this date when nobody gives one. One that printed today's (Llama 3.2, Mistral Small 3)
# would give every prompt another text each day: no row would be found again, and no two nights could be paired.
_NOW = datetime(2024, 7, 26, tzinfo=UTC)
# Templates without these names ignore them. Answers of 16 to 128 tokens hold no reasoning, and Qwen3 reasons unless told
# otherwise.
_VALUES = {"enable_thinking": False, "date_string": _NOW.strftime("%d %b %Y")}
_CLOCK = "strftime_now"
_FLAGS = "-_0^#"  # glibc takes one between the sign and the letter: "%-d" is a day without its zero
# A macro, because transformers lets no function of ours into a template. "%%" is a sign of its own, so what stands between
# two of them is read apart. The empty expression keeps jinja from swallowing a line break at the template's start.
_STOPPED_CLOCK = (
    "{% macro strftime_now(format) %}{% for text in format.split('%%') %}{{ '' if loop.first else '%' }}"
    "{{ text.split('%')[0] }}{% for part in text.split('%')[1:] %}{% set end = 2 if part[:1] in FLAGS else 1 %}"
    "{{ TABLE.get(part[:end], '%' + part[:end]) }}{{ part[end:] }}{% endfor %}{% endfor %}{% endmacro %}{{ '' }}"
)
# Renderings that are compared. A template that chooses between two texts at random gives the same one eight times in 1 of
# 128 cases; that is seen at the next start.
_NUM_RENDERINGS = 8
_USER, _ASSISTANT = "What colour is grass?", "Grass is green."


def render_question(user_text: str, tokenizer: Tokenizer) -> str:
    """The text of a conversation whose only message is the user's, up to where the assistant's answer begins."""
    return _rendered([{"role": "user", "content": user_text}], tokenizer, add_generation_prompt=True)


def render_next_question(user_text: str, tokenizer: Tokenizer) -> str:
    """What the template puts between an answer of the assistant's and the next one, the user's next message among it."""
    messages = [
        {"role": "user", "content": _USER},
        {"role": "assistant", "content": _ASSISTANT},
        {"role": "user", "content": user_text},
    ]
    text = _rendered(messages, tokenizer, add_generation_prompt=True)
    # The first one: the user may say the same.
    return text.partition(_ASSISTANT)[2]


def check_chat_template(tokenizer: Tokenizer) -> None:
    """Raise PromptError where the template gives the same question another text each time; nothing without a template."""
    if not tokenizer.chat_template:
        return
    try:
        texts = {render_question(_USER, tokenizer) for _ in range(_NUM_RENDERINGS)}
    # What a template raises is told with the items whose prompts it costs.
    except Exception:  # noqa: BLE001
        return
    if len(texts) > 1:
        raise PromptError(
            "the chat template gives the same question another text each time, so no row would be found again; "
            "take the random choice out of the template (chat_template.jinja or tokenizer_config.json)."
        )


def turn_end(tokenizer: Tokenizer) -> int | None:
    """The token by which the chat template ends the assistant's turn; None where that is none of its control tokens.

    A template that renders no turn of the assistant tells nothing either.
    """
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ASSISTANT}]
    try:
        text = _rendered(messages, tokenizer, add_generation_prompt=False)
    # A template may refuse such a conversation with any exception; only the question's rendering has to succeed.
    except Exception:  # noqa: BLE001
        return None
    _, answer, ending = text.rpartition(_ASSISTANT)
    ids = tokenizer(ending.lstrip(), add_special_tokens=False, verbose=False)["input_ids"] if answer else []
    # A control token is what a decoder leaves out; a plain word or a line break ends no turn.
    is_control = bool(ids) and not decode(ids[:1], tokenizer)
    return ids[0] if is_control else None


def _rendered(messages: list[dict[str, str]], tokenizer: Tokenizer, *, add_generation_prompt: bool) -> str:
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": add_generation_prompt, **_VALUES}
    template = tokenizer.chat_template
    if isinstance(template, Mapping):  # several by name, of which transformers renders this one
        template = template.get("default")
    if isinstance(template, str) and _CLOCK in template:
        options["chat_template"] = _stopped_clock() + template
    return str(tokenizer.apply_chat_template(messages, **options))


@functools.cache
def _stopped_clock() -> str:
    """A macro in front of a template, in place of transformers' function of that name, which reads the machine's clock."""
    # In UTC, where "%s" is the same number everywhere; "%z" and "%Z" are empty as they are in transformers' naive time.
    directives = [flag + letter for flag in ("", *_FLAGS) for letter in string.ascii_letters]
    shown = {it: "" if it[-1] in "zZ" else _NOW.strftime(f"%{it}") for it in directives}
    table = {it: text for it, text in shown.items() if text != f"%{it}"}
    return _STOPPED_CLOCK.replace("FLAGS", repr(_FLAGS)).replace("TABLE", repr(table))

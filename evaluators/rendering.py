"""The input as text: the user's text in the model's chat template, or as it is where there is none."""

from __future__ import annotations

from dataclasses import dataclass

from evaluators.chat_template import render_next_question, render_question
from evaluators.item import BenchmarkItem
from evaluators.tokenizer import PromptError, Tokenizer, as_seen

_BREAK = "\n\n"
"""Between an answer and the next question where no chat template says."""


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """The input as text, with the characters where the user's text starts and ends and where `after_context` starts.

    `question_start` is None when truncation cut into `after_context`. `ends_in_header` says that the answer
    follows the chat template's assistant header directly.
    """

    text: str
    question_start: int | None
    user_start: int
    user_end: int
    prefix_start: int
    ends_in_header: bool

    @property
    def data(self) -> tuple[range, range]:
        """The characters that come from the item: the user's text, and the answer prefix."""
        return range(self.user_start, self.user_end), range(self.prefix_start, len(self.text))


def render_prompt(item: BenchmarkItem, user_text: str, tokenizer: Tokenizer) -> RenderedPrompt:
    """Put the user's text into the chat template (unless withheld or absent) and add the answer prefix.

    Raises PromptError when the text is empty or the template does not reproduce it.
    """
    if not user_text.strip():
        raise PromptError(f"{item.item_id}: the prompt is empty; give the item a context or a question.")
    is_chat = item.use_chat_template and bool(tokenizer.chat_template)
    text = render_question(user_text, tokenizer) if is_chat else user_text
    shown = user_text if user_text in text else user_text.strip()  # Llama-3 templates strip the message
    start = text.rfind(shown)  # the last one: a template's own words may hold a short text as well
    if start < 0:
        raise PromptError(f"{item.item_id}: the chat template changes the user's text; use another template.")
    # The question's place is measured from the end: a cut in the middle moves whatever stands behind it.
    after = item.after_context if shown == user_text else item.after_context.rstrip()
    if not shown.endswith(after):
        after = as_seen(after, tokenizer)  # a cut text is decoded from tokens
    user_end = start + len(shown)
    return RenderedPrompt(
        text=text + item.answer_prefix,
        question_start=user_end - len(after) if shown.endswith(after) else None,
        user_start=start,
        user_end=user_end,
        prefix_start=len(text),
        ends_in_header=is_chat and not item.answer_prefix,
    )


def render_follow_up(item: BenchmarkItem, user_text: str, tokenizer: Tokenizer) -> RenderedPrompt:
    """What stands between the model's own answer and its next one: the end of its turn, and the user's next message.

    Raises PromptError where the chat template takes no second message of the user, or changes what the user says.
    """
    if not (item.use_chat_template and tokenizer.chat_template):
        return _follow_up(_BREAK + user_text, len(_BREAK), user_text, is_chat=False)
    try:
        text = render_next_question(user_text, tokenizer)
    # A template may refuse such a conversation with any exception.
    except Exception as error:
        raise PromptError(
            f"{item.item_id}: the chat template takes no second message of the user ({error}); use another template, or a "
            "task whose questions stand alone."
        ) from error
    start = text.rfind(user_text)
    if start < 0:
        raise PromptError(f"{item.item_id}: the chat template changes the user's text; use another template.")
    return _follow_up(text, start, user_text, is_chat=True)


def _follow_up(text: str, start: int, user_text: str, *, is_chat: bool) -> RenderedPrompt:
    return RenderedPrompt(text, start, start, start + len(user_text), len(text), ends_in_header=is_chat)

"""One benchmark question as text: all that asking and scoring it depends on, whatever its source."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

_DIGEST_CHARS = 16  # 64 bits: two of a million contexts collide with probability 3e-8


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A later message of the user's, behind an answer of the model's own of at most `answer_tokens` tokens."""

    text: str
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class BenchmarkItem:
    """A question, its context, and how the answer is scored.

    The user's text is `prompt_text`; `after_context` holds the question and is withheld from compression in
    query-agnostic mode. `answer_prefix` ("" when there is none) follows the chat template's assistant header:
    the model is given it and continues it. Items on the same context share `cluster_id`; `item_id` is stable
    over runs. An item without any context (`is_context_free`) has nothing to compress: policies keep all of its prompt, and
    what acts while answering bounds what is held. `stop_at_newline` ends the answer at a newline token that is not its first
    token. A prompt that is too long is cut in its middle, as LongBench does; with a `truncation_separator` before
    `after_context`, which stays whole, and that text stands for what is missing. One that `is_generated` is never cut, since
    what is asked for may stand anywhere in it. `unscored_reason` is told where `answers` is ().

    With `follow_ups` the question of `after_context` is the first of a conversation, and the last of them is the one that
    `answers` and `max_new_tokens` are of: the model has answered all others itself, and its answers stay in the cache.
    """

    item_id: str
    benchmark: str
    task: str
    cluster_id: str
    before_context: str
    context: str
    after_context: str
    answer_prefix: str
    answers: tuple[str, ...]
    max_new_tokens: int
    use_chat_template: bool
    metric: str
    all_classes: tuple[str, ...] = ()
    stop_at_newline: bool = False
    truncation_separator: str | None = None
    is_generated: bool = False
    unscored_reason: str = "the item has no gold answer"
    follow_ups: tuple[FollowUp, ...] = ()
    metadata: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def is_context_free(self) -> bool:
        """Whether all of its text is in `after_context`, so that there is nothing to compress before it is answered."""
        return not self.before_context and not self.context

    @property
    def prompt_text(self) -> str:
        """The whole of the user's text, before any truncation or chat template."""
        return self.before_context + self.context + self.after_context


def text_digest(text: str) -> str:
    """Short sha256 of a text, in hex; the same on every machine and Python version."""
    # Recorded data holds lone surrogates; "surrogatepass" keeps their digest defined.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_CHARS]

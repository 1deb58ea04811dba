"""What goes into the engine and what comes out: plain values without tensors, which can be sent between processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from kvmerger.limits import LONG_ANSWER_TOKENS

PLAIN_FORM = "plain"
"""Keys and values in the model's dtype, as the prefill made them."""
MOST_WHOLE_TRACE = 512
"""Points of a memory trace; an answer of thousands of tokens would make it most of its row."""
TAIL_FORM = PLAIN_FORM
"""What a question's tail and the answer are stored as behind a prefix of any form."""


class InvalidPromptError(ValueError):
    """A prompt the engine cannot run."""


class EarlierTurn(NamedTuple):
    """A question of the same conversation that each row has answered before, in at most so many tokens."""

    tail_ids: tuple[int, ...]
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Question:
    """What follows the compressed part on every row.

    Attributes:
        tail_ids: at least one token, fed through extend: otherwise the first answer token would come from the full cache.
        gold_ids: the first gold answer as it continues the prompt, without an end token; empty when there is none.
        max_new_tokens: greedy tokens at most, the end token included.
        stop_ids: end tokens of this question besides the model's. With any, the answer's first token is the best that
            ends nothing, as transformers' ``min_length`` of one new token has it.
        earlier: what was asked before, first things first. Each row reads it, with the answers that it gave itself, before
            ``tail_ids``.
    """

    tail_ids: tuple[int, ...]
    gold_ids: tuple[int, ...]
    max_new_tokens: int
    stop_ids: tuple[int, ...] = ()
    earlier: tuple[EarlierTurn, ...] = ()

    @property
    def most_tail_tokens(self) -> int:
        """Tokens of the longest tail that a row may read: the question's, and what may stand before it."""
        return len(self.tail_ids) + sum(len(turn.tail_ids) + turn.max_new_tokens for turn in self.earlier)

    @property
    def tokens(self) -> Iterator[int]:
        """All that it names."""
        earlier = (turn.tail_ids for turn in self.earlier)
        return itertools.chain(self.tail_ids, self.gold_ids, self.stop_ids, *earlier)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A compressed part and the questions asked on it: one prefill for all of them.

    Where it ``is_context_free`` nothing of ``context_ids`` is compressed: every variant keeps all of it, and its budget is
    what a row may hold while it answers, prompt and answer together.
    """

    context_ids: tuple[int, ...]
    questions: tuple[Question, ...]
    is_context_free: bool = False

    @property
    def most_tail_tokens(self) -> int:
        """Tokens of the longest tail and the longest answer, asked for or given: what any row needs room for."""
        longest_tail = max(question.most_tail_tokens for question in self.questions)
        return longest_tail + max(max(it.max_new_tokens, len(it.gold_ids)) for it in self.questions)

    @property
    def is_conversation(self) -> bool:
        """Whether any question follows on others, whose answers have to be there first."""
        return any(question.earlier for question in self.questions)

    @property
    def has_long_answers(self) -> bool:
        """Whether a row's tail may get so long that rows that bound theirs should not reserve as much."""
        return any(question.max_new_tokens > LONG_ANSWER_TOKENS for question in self.questions)

    def check(self, max_positions: int, vocab_size: int) -> None:
        """Raise `InvalidPromptError` for an empty part, unknown tokens, or more positions than the model has."""
        if not self.context_ids:
            raise InvalidPromptError(
                "the compressed part of the prompt is empty; it needs at least one token"
            )
        if not self.questions:
            raise InvalidPromptError("the prompt has no question; it needs at least one tail")
        for index, question in enumerate(self.questions):
            if question.earlier and self.is_context_free:
                raise InvalidPromptError(
                    f"question {index} follows on others, which a prompt of which nothing is compressed cannot have"
                )
            if not all((question.tail_ids, *(turn.tail_ids for turn in question.earlier))):
                raise InvalidPromptError(
                    f"question {index} has an empty tail; at least one token must go through extend"
                )
            if question.max_new_tokens < 1:
                raise InvalidPromptError(
                    f"question {index} asks for {question.max_new_tokens} new tokens; at least 1 is needed"
                )
            # Gold answers are forced on the model, and may be longer than what it is allowed to say.
            longest = max(question.max_new_tokens, len(question.gold_ids))
            num_positions = len(self.context_ids) + question.most_tail_tokens + longest
            if num_positions > max_positions:
                raise InvalidPromptError(
                    f"question {index} needs {num_positions} positions (compressed part {len(self.context_ids)}, tail "
                    f"{question.most_tail_tokens}, answer {longest}), the model has {max_positions}; truncate the prompt"
                )
        for ids in (self.context_ids, *(question.tokens for question in self.questions)):
            unknown = [token for token in ids if not 0 <= token < vocab_size]
            if unknown:
                raise InvalidPromptError(
                    f"token {unknown[0]} is outside the model's vocabulary of {vocab_size}: wrong tokenizer?"
                )


class MemoryPoint(NamedTuple):
    """One moment. ``live_bytes`` are in use; ``reserved_bytes`` include room reserved for tokens still to come.

    For a row under a decode rule they also include the prefix and tail it keeps, to be put back to where its answer began.
    """

    step: int
    phase: str
    live_bytes: int
    reserved_bytes: int


def corners(points: Sequence[MemoryPoint]) -> tuple[MemoryPoint, ...]:
    """The points as they are; of more than `MOST_WHOLE_TRACE` those that are not on the line between their neighbours."""
    if len(points) <= MOST_WHOLE_TRACE:
        return tuple(points)
    kept = [
        point
        for before, point, after in zip(points, points[1:], points[2:], strict=False)
        if _rise(before, point) != _rise(point, after)
    ]
    return (points[0], *kept, points[-1])


def _rise(before: MemoryPoint, after: MemoryPoint) -> tuple[int, int]:
    return after.live_bytes - before.live_bytes, after.reserved_bytes - before.reserved_bytes


@dataclass(frozen=True, slots=True)
class Generation:
    """One variant's answer to one question, and everything measured about it.

    Attributes:
        token_ids: greedy answer, the end token included when there was one.
        stop_reason: ``eos`` at an end token of the model's, ``stop`` at one of the question's own (a newline), ``length``
            where neither came in as many tokens as were allowed.
        kl_mean: mean over `num_fidelity_tokens` of KL(p_full ‖ p_variant), nats, along the full row's own answer.
        top1_agreement: share of those tokens (0–1) on which both rank the same token first.
        answer_nll: mean per token of the first gold answer, nats; None without one.
        slots_LH: slots kept per layer and KV head, the tail not counted.
        asked_slots: slots the budget allowed over all layers and heads; None where there is no budget.
        kv_bytes, full_kv_bytes: distinct storages of this variant's prefix, and of the full one, positions included.
        tail_bytes: K/V of the tail at its longest; under a decode rule, all that is held beyond the prefix.
        peak_bytes: the device's peak while this variant ran alone; None unless isolated on CUDA.
        seconds: by phase; names ending in ``_shared_s`` are the whole batch's, the same in every row of it. One after the
            other: ``prefill``, ``repeat`` (the context once more, where a policy reads that), ``plan`` (which variants answer
            together), each variant's own ``compress_s``, ``batch`` (its tables and memory), ``tails``, ``decode``,
            ``fidelity``, ``results`` (these rows). Within ``decode``: ``record_graph`` and ``decode_rules``. Where several
            prompts decoded together, ``decode`` is each one's equal part of those steps (``num_prompts_together`` in
            `counters`).
        trace: this variant's own memory from prefill to its last token.
        form: what the prefix is stored as, with the parameters that are not the form's own defaults.
        bits_k, bits_v: mean bits of a stored number of keys and values, scales not counted.
        position_bytes, full_position_bytes: the part of `kv_bytes` and `full_kv_bytes` that is positions.
        read_bytes, full_read_bytes: what attention reads of the prefix at each answering step; both 0 where not counted.
    """

    label: str
    question_index: int
    token_ids: tuple[int, ...]
    stop_reason: Literal["eos", "stop", "length"]
    kl_mean: float
    top1_agreement: float
    num_fidelity_tokens: int
    answer_nll: float | None
    slots_LH: tuple[tuple[int, ...], ...]
    asked_slots: int | None
    kv_bytes: int
    full_kv_bytes: int
    tail_bytes: int
    peak_bytes: int | None
    degenerate_reason: str | None
    counters: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    trace: tuple[MemoryPoint, ...] = ()
    form: str = PLAIN_FORM
    bits_k: float = 16.0
    bits_v: float = 16.0
    position_bytes: int = 0
    full_position_bytes: int = 0
    read_bytes: int = 0
    full_read_bytes: int = 0

    @property
    def is_degenerate(self) -> bool:
        """Whether the policy did nothing, so that the row says nothing about it."""
        return self.degenerate_reason is not None


@dataclass(frozen=True, slots=True)
class VariantFailure:
    """A variant that could not answer; the other variants of the prompt are not affected."""

    label: str
    question_index: int
    phase: str
    error_type: str
    message: str
    traceback: str

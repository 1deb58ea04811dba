"""A fixed set of rows answering together: greedy decoding, then the same tokens forced on all of them.

A row's numbers depend on the prompt, its bucket and its index, never on its neighbours: the batch keeps as many rows as its
bucket says, filled up with dummies, and its matrices are as wide as the prompt's longest question needs.

Shapes: R rows (the bucket), T tokens, E hidden size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.cache.ragged_layer import Room
from kvmerger.decoding.acting_rows import DecodingRows, RuleFailure
from kvmerger.decoding.decode_loop import Answer, Progress, answers_of, catch_up, decode_eagerly
from kvmerger.decoding.decode_rule import AnswerRule
from kvmerger.decoding.extend import Extended, extend, pad_tokens
from kvmerger.decoding.periodic_row import PeriodicRow
from kvmerger.decoding.ragged_cache import Prefix, RaggedCache
from kvmerger.decoding.step_graphs import StepGraphs
from kvmerger.device import now_s
from kvmerger.generation import MemoryPoint, Prompt, Question, corners
from kvmerger.models.loading import LoadedModel


@dataclass(frozen=True, slots=True)
class Row:
    """One question under one variant.

    rule: what its policy does while it answers, None for nothing. before_ids: what it reads before the question's tail.
    """

    label: str
    question_index: int
    prefix: Prefix
    rule: AnswerRule | None = None
    before_ids: tuple[int, ...] = ()

    def most_tail_tokens(self, question: Question) -> int:
        """The longest its tail gets: the question's, the answer's and the gold answer's."""
        num_tail = len(self.before_ids) + len(question.tail_ids)
        num_new = max(question.max_new_tokens, len(question.gold_ids))
        if self.rule is None:
            return num_tail + num_new
        # A place more: where a step is recorded, a row that reads nothing has its token written behind its tail.
        return self.rule.most_tail_tokens(num_tail, num_new) + 1


def _tail_capacity(prompt: Prompt, rows: Iterable[Row]) -> int:
    """Tokens that every tail of a batch has room for."""
    # Of short answers by the prompt alone: what a row reports as reserved does not depend on who is beside it.
    if not prompt.has_long_answers:
        return prompt.most_tail_tokens
    return max(row.most_tail_tokens(prompt.questions[row.question_index]) for row in rows)


class Batch:
    """Rows on one prompt, their caches, and the hidden state each answer starts from."""

    def __init__(
        self,
        model: LoadedModel,
        prompt: Prompt,
        row_by_index: Mapping[int, Row],
        bucket: int,
        graphs: StepGraphs | None = None,
        room: Room | None = None,
    ) -> None:
        """Place each row at its index; the other indices below ``bucket`` are dummies.

        With ``graphs`` the batch answers by recorded steps, and lives in their memory: it ends where the next one begins.
        With ``room`` its tails live there (`Together` then decodes for it).
        """
        start_s = now_s(model.device)
        self.rows = dict(row_by_index)
        self.num_prompts = 1
        """Whose rows decoded in the same steps; `decode_s` and `record_s` are this one's equal part."""
        self.decode_s = 0.0
        self.rules_s: float | None = None
        """Of `decode_s`, what decode rules took; None where no row has one, or a graph did not let it be timed."""
        self.record_s = 0.0
        """Of `decode_s`, what it took to record steps; 0 where they had been recorded for an earlier batch."""
        self.counters_by_row: dict[int, dict[str, float]] = {}
        """What decode rules did to the rows that have one, in the answers of their own."""
        self._model = model
        self._prompt = prompt
        self._graphs = graphs
        capacity = _tail_capacity(prompt, self.rows.values())
        prefixes = [self.rows[index].prefix if index in self.rows else None for index in range(bucket)]
        template = next(iter(self.rows.values())).prefix
        if room is None and graphs is not None:
            # The same addresses as the last batch of this shape had: they are what recorded steps hold.
            room = graphs.room_for(bucket, capacity, template)
        self.cache = RaggedCache(prefixes, [len(prompt.context_ids)] * bucket, capacity, room)
        self._tail_length_R = tuple(
            len(self._tail_ids(index)) if index in self.rows else 0 for index in range(bucket)
        )
        rules = {index: row.rule for index, row in self.rows.items() if row.rule is not None}
        self._decoding = DecodingRows(rules, model.device, model.rotary)
        self._own_trace: dict[int, list[MemoryPoint]] = {}
        self.build_s = now_s(model.device) - start_s
        """Until tails could be read: tables and memory."""
        self._tail_hidden_RE = self._read_tails()
        self.tails_s = now_s(model.device) - start_s - self.build_s
        """What reading them took."""

    @property
    def failures(self) -> Mapping[int, RuleFailure]:
        """Rows, by index, whose decode rules raised; nothing else of them means anything."""
        return self._decoding.failures

    def num_nan_of(self, index: int) -> Tensor:
        """Tokens at which a decode rule had no opinion on the row, whose numbers mean nothing then: on the device."""
        return self._decoding[index].num_nan

    @property
    def acting(self) -> list[int]:
        """Rows, by index, whose decode rules have not failed."""
        return [index for index in self.rows if index in self._decoding and index not in self.failures]

    def has_acted(self, index: int) -> bool:
        """Whether a decode rule ever changed this row's slots."""
        return index in self._decoding and self._decoding[index].has_acted

    @torch.inference_mode()
    def decode(self) -> dict[int, Answer]:
        """Greedy answers by row index. Rewinds every row to the end of its tail first; leaves what it decoded in place."""
        start_s, rules_start_s = now_s(self._model.device), self._decoding.seconds
        # First: a rule that raises while its row is put back adds to the failures, which have no trace.
        self.rewind()
        self._own_trace = {
            index: [] for index in self.rows if index in self._decoding and index not in self.failures
        }
        progress = Progress(self.cache.num_rows, self.max_new_by_row, self.ends_by_row)
        self.note(progress.left.keys())
        progress.take(self.first_tokens())
        is_timed = not self._go_on_with_graphs(progress)
        decode_eagerly(progress, self)
        self.decode_s = now_s(self._model.device) - start_s
        self.rules_s = self._decoding.seconds - rules_start_s if self._own_trace and is_timed else None
        self.counters_by_row = {index: self._decoding[index].counters for index in self._own_trace}
        for index in self._own_trace:
            if isinstance(row := self._decoding[index], PeriodicRow):
                self._own_trace[index] = row.memory_points(len(progress.tokens[index]))
        return answers_of(progress)

    def note(self, answering: Collection[int]) -> None:
        """Note what rows with decode rules hold, of those that still answer."""
        for index, points in self._own_trace.items():
            row = self._decoding[index]
            # A periodic row knows what it held, and when, once the answer has ended.
            if index in answering and not isinstance(row, PeriodicRow):
                points.append(MemoryPoint(len(points) + 1, "decode", row.live_bytes, row.reserved_bytes))

    def step(self, feed_R: Sequence[Sequence[int]]) -> list[int]:
        """Feed at most one token to each row; every row's most likely next one."""
        return self._model.logits(self._step(feed_R)).argmax(dim=-1).tolist()

    def force(self, token_ids_by_row: Mapping[int, Sequence[int]], longest: int) -> dict[int, Tensor]:
        """Hidden states (T, E) that predict each of a row's given tokens, after its tail. Rows with none are left out.

        Rewinds every row to the end of its tail first, so the order of calls does not matter. ``longest`` is the most
        tokens any row of this prompt is given: it sets the matrices' width.
        """
        self.rewind()
        # The state before a token is what predicts it, so a row's last one is never read.
        feed = {index: ids[:-1] for index, ids in token_ids_by_row.items() if ids}
        # A rule acts between two tokens: its row reads them one by one, the others all in one matrix.
        at_once = {index: ids for index, ids in feed.items() if index not in self._decoding}
        hidden_RTE = self._tail_hidden_RE[:, None]
        if longest > 1 and at_once:
            read_RTE = self._extend(self._by_row(at_once), longest - 1).hidden_RTE
            hidden_RTE = torch.cat([hidden_RTE, read_RTE], dim=1)
        step_by_step = self._force_in_steps(
            {index: ids for index, ids in feed.items() if index not in at_once}
        )
        return {
            index: hidden_RTE[index, : len(ids) + 1] if index in at_once else step_by_step[index]
            for index, ids in feed.items()
        }

    def trace_of(
        self, index: int, num_new_tokens: int, context_bytes: int, prefix_bytes: int
    ) -> tuple[MemoryPoint, ...]:
        """A row's own memory: the uncompressed context, then its prefix, then one more tail token per step.

        Under a decode rule it is what was held at each step of the row's own answer.
        """
        points = [MemoryPoint(0, "prefill", context_bytes, context_bytes)]
        if index in self._own_trace:
            return corners([*points, *self._own_trace[index]])
        reserved_bytes = prefix_bytes + self.cache.tail_bytes_of(self.cache.tail_capacity)
        for step in range(num_new_tokens):
            # The last token is never fed back, so a row of n new tokens ends with n - 1 of them in its tail.
            tail_bytes = self.cache.tail_bytes_of(self._tail_length_R[index] + step)
            points.append(MemoryPoint(step + 1, "decode", prefix_bytes + tail_bytes, reserved_bytes))
        return corners(points)

    @property
    def max_new_by_row(self) -> dict[int, int]:
        """Tokens that each row says at most, by index."""
        return {index: self._question(index).max_new_tokens for index in self.rows}

    @property
    def ends_by_row(self) -> dict[int, frozenset[int]]:
        """Tokens that end each row's answer, by index."""
        return {index: self._model.eos_ids | set(self._question(index).stop_ids) for index in self.rows}

    @torch.inference_mode()
    def first_tokens(self) -> list[int]:
        """Each row's first token; where the question has stop tokens of its own, none that would end the answer."""
        # Nothing but these rows' own logits is changed: `logits` gives a tensor that nobody else has.
        logits_RV = self._model.logits(self._tail_hidden_RE)
        for index in self.rows:
            if stop_ids := self._question(index).stop_ids:
                logits_RV[index, sorted(self._model.eos_ids | set(stop_ids))] = -torch.inf
        return logits_RV.argmax(dim=-1).tolist()

    def _question(self, index: int) -> Question:
        return self._prompt.questions[self.rows[index].question_index]

    def _tail_ids(self, index: int) -> tuple[int, ...]:
        return self.rows[index].before_ids + self._question(index).tail_ids

    def _read_tails(self) -> Tensor:
        """Feed every row's tail; the hidden state of its last token, (R, E)."""
        feed_R = self._by_row({index: self._tail_ids(index) for index in self.rows})
        # The prompt's questions, whoever asks which of them: a row's bits depend on the width.
        widths = [*(len(question.tail_ids) for question in self._prompt.questions), *map(len, feed_R)]
        read = self._extend(feed_R, max(widths))
        self._decoding.take_over(self.cache, read)
        hidden_RTE = read.hidden_RTE
        last_R = torch.tensor(
            [max(length - 1, 0) for length in self._tail_length_R], device=hidden_RTE.device
        )
        return hidden_RTE[torch.arange(self.cache.num_rows, device=hidden_RTE.device), last_R]

    def rewind(self) -> None:
        """Put every row back to the end of its tail."""
        # Rows with rules may have lent slots, which the cache refuses to rewind; `restart` restores them.
        self.cache.rewind(
            [None if index in self._decoding else length for index, length in enumerate(self._tail_length_R)]
        )
        self._decoding.restart()

    def _force_in_steps(self, ids_by_row: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
        """Hidden states (T, E) before each of the rows' tokens and behind the last, rules acting in between."""
        hidden = {index: [self._tail_hidden_RE[index]] for index in ids_by_row}
        for step in range(max(map(len, ids_by_row.values()), default=0)):
            fed = {index: ids[step : step + 1] for index, ids in ids_by_row.items() if step < len(ids)}
            hidden_RE = self._step(self._by_row(fed))
            for index in fed:
                hidden[index].append(hidden_RE[index])
        return {index: torch.stack(states) for index, states in hidden.items()}

    def _step(self, feed_R: Sequence[Sequence[int]]) -> Tensor:
        """Feed at most one token to each row and let the decode rules act; the rows' hidden states (R, E)."""
        extended = self._extend(feed_R, 1)
        self._decoding.settle(feed_R, extended)
        return extended.hidden_RTE[:, 0]

    def _by_row(self, ids_by_row: Mapping[int, Sequence[int]]) -> list[Sequence[int]]:
        return [ids_by_row.get(index, ()) for index in range(self.cache.num_rows)]

    def _go_on_with_graphs(self, progress: Progress) -> bool:
        """Answer with recorded steps, as far as there are any; whether it was."""
        if self._graphs is None:
            return False
        # Until all rules that act in every step have slots of their own, shapes change from step to step.
        decode_eagerly(progress, self, until=lambda so_far: self._decoding.have_own_slots(so_far.left))
        was_recorded, recorded_before_s = False, self._graphs.record_s
        # Stretch by stretch: between two of them rows are cut down whose rules do so once in a while.
        while progress.left and not self.failures:
            acting = self._decoding.acting(progress.left)
            next_TR = self._graphs.run(self.cache, acting, progress, acting.steps_until_cut)
            if next_TR is None:
                break
            was_recorded = True
            num_read_R = catch_up(progress, self, next_TR)
            self.cache.count_read(num_read_R)
            self._decoding.count_settled(num_read_R)
        self.record_s = self._graphs.record_s - recorded_before_s
        return was_recorded

    def _extend(self, feed_R: Sequence[Sequence[int]], num_tokens: int) -> Extended:
        # A row whose rule has failed is not fed any more.
        feed_R = [() if index in self.failures else ids for index, ids in enumerate(feed_R)]
        tokens_RT = pad_tokens(feed_R, num_tokens, self._model.device)
        return extend(
            self._model,
            self.cache,
            tokens_RT,
            [len(ids) for ids in feed_R],
            self._decoding.asking(feed_R),
            self._decoding.asking_queries(feed_R),
        )

"""Batches of several prompts that decode as one: a step reads the weights once for the rows of all of them.

Only decoding is joined. Each batch reads its tails and is forced along answers by itself, in the shapes it has alone, and
KL stays within it. So of a row's numbers only its greedy tokens after the first depend on the joint batch: on how many rows
that has and on where in it the row's own batch begins, never on what the others hold. Forced along the same tokens, a row
has the bits it has alone.

Shapes: R rows of all batches, dummies included.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from kvmerger.cache.ragged_layer import Room, new_room
from kvmerger.decoding.acting_rows import ActingRows
from kvmerger.decoding.batch import Batch, Row
from kvmerger.decoding.decode_loop import Answer, Progress, answers_of, catch_up, decode_eagerly
from kvmerger.decoding.extend import extend, pad_tokens
from kvmerger.decoding.ragged_cache import RaggedCache
from kvmerger.decoding.step_graphs import LEAST_TAIL_TOKENS, StepGraphs, rounded_up
from kvmerger.device import now_s
from kvmerger.generation import Prompt
from kvmerger.models.loading import LoadedModel

OfARow = TypeVar("OfARow")


@dataclass(frozen=True, slots=True)
class Party:
    """One prompt's rows by index, none of them with a decode rule, the bucket of their own batch, and where that begins."""

    prompt: Prompt
    rows: Mapping[int, Row]
    bucket: int
    start: int


class Together:
    """Batches of several prompts, each a stretch of the rows of one decoding batch; the other rows are dummies."""

    def __init__(
        self, model: LoadedModel, parties: Sequence[Party], num_rows: int, graphs: StepGraphs | None = None
    ) -> None:
        """Make each party's batch and read its tails.

        With ``graphs`` all batches live in their memory: they end where the next one begins.
        """
        start_s = now_s(model.device)
        self._model = model
        self._num_rows = num_rows
        self._graphs = graphs
        self._starts = [party.start for party in parties]
        template = next(iter(parties[0].rows.values())).prefix
        capacity = max(party.prompt.most_tail_tokens for party in parties)
        new = new_room if graphs is None else graphs.room_for
        self._room: Room = new(num_rows, capacity, template)
        room_s = now_s(model.device) - start_s
        self.batches = [Batch(model, it.prompt, it.rows, it.bucket, room=self._part(it)) for it in parties]
        for batch in self.batches:
            batch.build_s += room_s / len(parties)

    @torch.inference_mode()
    def decode(self) -> list[dict[int, Answer]]:
        """Each batch's greedy answers by its own row indices; a batch's `decode_s` becomes its equal part of the time."""
        start_s = now_s(self._model.device)
        recorded_before_s = self._graphs.record_s if self._graphs else 0.0
        self._cache = self._joined()
        progress = Progress(
            self._num_rows,
            self._by_row([batch.max_new_by_row for batch in self.batches]),
            self._by_row([batch.ends_by_row for batch in self.batches]),
        )
        # Dummies have none and say nothing, so any number will do for them.
        first = self._by_row([dict(enumerate(batch.first_tokens())) for batch in self.batches])
        progress.take([first.get(row, 0) for row in range(self._num_rows)])
        self._go_on_with_graphs(progress)
        decode_eagerly(progress, self)
        record_s = self._graphs.record_s - recorded_before_s if self._graphs else 0.0
        decode_s = now_s(self._model.device) - start_s
        for batch in self.batches:
            batch.decode_s = decode_s / len(self.batches)
            batch.record_s = record_s / len(self.batches)
            batch.num_prompts = len(self.batches)
        answers = answers_of(progress)
        return [
            {index: answers[start + index] for index in batch.rows}
            for batch, start in zip(self.batches, self._starts, strict=True)
        ]

    def note(self, answering: Collection[int]) -> None:
        """Nothing: no row has a rule whose memory would have to be noted."""

    def step(self, feed_R: Sequence[Sequence[int]]) -> list[int]:
        """Feed at most one token to each row; every row's most likely next one."""
        tokens_R1 = pad_tokens(feed_R, 1, self._model.device)
        extended = extend(self._model, self._cache, tokens_R1, [len(ids) for ids in feed_R])
        return self._model.logits(extended.hidden_RTE[:, 0]).argmax(dim=-1).tolist()

    def _go_on_with_graphs(self, progress: Progress) -> None:
        if self._graphs is None or not progress.left:
            return
        # No party has a row with a rule: their slots would belong to one of the caches and not to the joined one.
        next_TR = self._graphs.run(self._cache, ActingRows({}), progress)
        if next_TR is not None:
            self._cache.count_read(catch_up(progress, self, next_TR))

    def _part(self, party: Party) -> Room:
        """Tails as long as they would be alone: what a row reports as reserved does not depend on the others."""
        capacity = party.prompt.most_tail_tokens
        if self._graphs is not None:
            capacity = rounded_up(capacity, LEAST_TAIL_TOKENS)
        return self._room.part(slice(party.start, party.start + party.bucket), capacity)

    def _joined(self) -> RaggedCache:
        for batch in self.batches:
            batch.rewind()
        caches = {start: batch.cache for start, batch in zip(self._starts, self.batches, strict=True)}
        return RaggedCache.joined(caches, self._num_rows, self._room)

    def _by_row(self, by_index: Sequence[Mapping[int, OfARow]]) -> dict[int, OfARow]:
        """By row of the joint batch what each batch has by its own indices."""
        return {
            start + index: it
            for own, start in zip(by_index, self._starts, strict=True)
            for index, it in own.items()
        }

"""Periodic compression, written down slowly: after every token count, at a cut sort each head's list of slots by score."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.slow.decoding import Slot, SlowDecoder
from tests.slow.ranking.triattention import scores, standardised

Ranking = Callable[[list[Slot], list[Any], float], list[float]]
"""(a head's slots in the order of the text, the newest queries of its group, scaling) → a score for each."""


class PeriodicDecoder(SlowDecoder):
    """A `SlowDecoder` that cuts all heads of a layer to ``target`` slots whenever ``every`` tokens stand behind them."""

    def __init__(self, plain: Any, context_ids: tuple[int, ...], kept_LH: list[list[list[int]]]) -> None:
        self.queries: list[list[list[Tensor]]] = []
        super().__init__(plain, context_ids, kept_LH)
        self.queries.clear()
        self.num_behind = 0
        self.num_cuts = 0

    def _attend(self, q: list[Tensor], heads: list[list[Slot]], scaling: float) -> list[Tensor]:
        self.queries.append([q])
        self.scaling = scaling
        return SlowDecoder._attend(q, heads, scaling)

    def queries_of(self, layer: int, query_head: int) -> list[Tensor]:
        """All queries of one head, oldest first."""
        num_layers = len(self.model.layers)
        return [step[0][query_head] for step in self.queries[layer::num_layers]]

    def cut_if_due(self, every: int, target: int, ranking: Ranking, held: int | None = None) -> None:
        """Call it after the tail, and after each token of the answer."""
        first = len(self.cache[0][0])
        if first < target + every:
            return
        self.num_cuts += 1
        for layer, heads in enumerate(self.cache):
            group = len(self.queries[0][0]) // len(heads)
            for head, slots in enumerate(heads):
                queries = [self.queries_of(layer, head * group + member) for member in range(group)]
                scores = ranking(slots, list(zip(*queries, strict=True)), self.scaling)
                best = sorted(range(len(slots)), key=lambda index: (-scores[index], index))[:target]
                heads[head] = [slots[index] for index in sorted(best)]


def unlike_the_mean(slots: list[Slot], queries: list[Any], scaling: float) -> list[float]:
    """KeyDiff."""
    units = [slot.k_D / slot.k_D.norm() for slot in slots]
    mean = sum(units) / len(units)
    return [-float(unit @ mean / mean.norm()) for unit in units]


def first_and_last(sinks: int) -> Ranking:
    """StreamingLLM."""

    def ranking(slots: list[Slot], queries: list[Any], scaling: float) -> list[float]:
        return [math.inf if index < sinks else float(index) for index in range(len(slots))]

    return ranking


def last_attention(window: int, kernel: int) -> Ranking:
    """SnapKV: the newest tokens stay, and what they attend to most, smoothed."""

    def ranking(slots: list[Slot], queries: list[Any], scaling: float) -> list[float]:
        before = len(slots) - window
        sums = [0.0] * before
        group = len(queries[0])
        for index, of_group in enumerate(queries[-window:]):
            visible = slots[: before + index + 1]
            for q_D in of_group:
                probs = torch.stack([q_D @ slot.k_D * scaling for slot in visible]).softmax(dim=0)
                for place in range(before):
                    sums[place] += float(probs[place]) / window / group
        half = kernel // 2
        smooth = [sum(sums[max(0, place - half) : place + half + 1]) / kernel for place in range(before)]
        return [*smooth, *[math.inf] * window]

    return ranking


def expected_ahead(window: int, frequencies: list[float]) -> Ranking:
    """TriAttention: the newest queries turned back by their positions, the keys by theirs."""

    def before_rope(x_D: Tensor, position: int) -> list[complex]:
        half = len(x_D) // 2
        return [
            complex(float(x_D[pair]), float(x_D[pair + half])) * cmath.exp(-1j * position * frequencies[pair])
            for pair in range(half)
        ]

    def ranking(slots: list[Slot], queries: list[Any], scaling: float) -> list[float]:
        places, newest = [slot.position for slot in slots], queries[-window:]
        keys = [before_rope(slot.k_D, slot.position) for slot in slots]
        of_group = []
        for head in range(len(newest[0])):
            first = places[-1] - len(newest) + 1
            turned = [before_rope(query[head], first + index) for index, query in enumerate(newest)]
            distances = [2**power for power in range(17)]
            of_group.append(standardised(scores(turned, keys, frequencies, places, places[-1], distances)))
        return [max(of_slot) for of_slot in zip(*of_group, strict=True)]

    return ranking

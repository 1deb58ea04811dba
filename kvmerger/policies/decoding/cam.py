"""CaM: when a slot leaves, its value may be spread over the slots of the tokens that follow it.

Shapes: L layers, H KV heads, X columns, M heirs, as in `decode_rule`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvmerger.decoding.decode_rule import DecodeRule, DecodeStep, Heirs
from kvmerger.policies.base import PolicyError
from kvmerger.policies.decoding.base import ScoredDecodingPolicy
from kvmerger.policies.decoding.h2o_decode import LowestScoreLeaves
from kvmerger.policies.decoding.streaming_llm_decode import OldestLeaves
from kvmerger.policies.parameters import require_choice, require_count
from kvmerger.policies.registry import register_wrapper

# Keeps 0 / 0 from becoming NaN where nobody ever attended to a window; far below any softmax that counts.
_LEAST_SCORE = 1e-30
_MASK = 0xFFFFFFFF
# Odd multipliers and shifts of a 32-bit finaliser with low bias (Chris Wellons, "Prospecting for Hash Functions", 2018).
_ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B))
_LAST_SHIFT = 16
# fp32 holds 24 bits exactly, so no draw is rounded up to 1.
_DRAWN_BITS = 24


@dataclass(frozen=True)
class ValuesAreHandedOn(DecodeRule):
    """``chooser`` decides which slot leaves; a draw decides whether its value goes to the next ``num_heirs`` tokens."""

    reads_attention: ClassVar[bool] = True

    chooser: DecodeRule
    num_heirs: int
    seed: int

    def worth(self, step: DecodeStep) -> Tensor:
        """What `chooser` gives."""
        return self.chooser.worth(step)

    def heirs(self, step: DecodeStep, leaving_LH: Tensor) -> Heirs:
        """The next tokens that stay, 1 / ``num_heirs`` of the value each, when the draw says so."""
        assert step.score_LHX is not None, "the policy leaves scores"
        leaving_LH1 = leaving_LH[:, :, None]
        # "Next" is by position: columns are in no order.
        is_behind_LHX = step.is_held_LHX & (step.position_LHX > step.position_LHX.gather(2, leaving_LH1))
        last = torch.iinfo(step.position_LHX.dtype).max
        next_LHM = step.position_LHX.masked_fill(~is_behind_LHX, last).topk(
            self.num_heirs, dim=2, largest=False
        )
        is_heir_LHM = next_LHM.values < last
        # Where no heir is, the number means nothing, and may be no finite one.
        score_LHM = torch.where(is_heir_LHM, step.score_LHX.gather(2, next_LHM.indices), 0.0)
        mean_LH = score_LHM.sum(dim=2) / is_heir_LHM.sum(dim=2).clamp_min(1)
        leaving_score_LH = step.score_LHX.gather(2, leaving_LH1).squeeze(2)
        chance_LH = (leaving_score_LH / mean_LH.clamp_min(_LEAST_SCORE)).clamp(0, 1)
        # Not torch's generator: CUDA's gives other numbers than the CPU's, and each row would have to keep its state.
        is_drawn_LH = uniform(self.seed, chance_LH.shape, step.num_read) < chance_LH
        weight_LHM = (is_heir_LHM & is_drawn_LH[:, :, None]).float() / self.num_heirs
        return Heirs(next_LHM.indices, weight_LHM)


@register_wrapper("cam")
@dataclass(frozen=True)
class CaM(ScoredDecodingPolicy):
    """At each token of the answer one slot leaves, and its value may be spread over the next tokens; its key is dropped.

    Based on "CaM: Cache Merging for Memory-efficient LLMs Inference" (ICML 2024): v_j ← v_j + M·v_i / m for the next m
    kept tokens j, M drawn with probability clamp(A_i / mean of A over those m, 0, 1), A being the attention received so
    far, averaged over the query heads of a group. Differs from it in that draws are per KV head, and that the prompt is
    compressed once, at its end, by what stands in front, without handing values on (that diverges):
    ``streaming_llm+cam``. Draws depend on the prompt, the sweep's seed, ``seed``, layer, head and step alone.

    Attributes:
        evict: who leaves: ``streaming_llm`` (the oldest behind the sinks) or ``h2o`` (the lowest score that is not recent).
        num_heirs: m. Where fewer tokens stand behind the one that leaves, those get their m-th each.
        sinks, recent: of the respective rule; the other one is not read.
        seed: other values are independent repeats within one sweep.
    """

    evict: Literal["streaming_llm", "h2o"] = "streaming_llm"
    num_heirs: int = 32
    sinks: int = 4
    recent: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown rules and what is no number of tokens."""
        super().__post_init__()
        require_choice("cam", "evict", self.evict, ("streaming_llm", "h2o"))
        for name, at_least in (("num_heirs", 1), ("sinks", 0), ("recent", 1)):
            require_count("cam", name, getattr(self, name), at_least)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise PolicyError(f"cam: seed must be a whole number, got {self.seed!r}")

    @property
    def num_needed(self) -> int:
        """``num_heirs`` beside the sinks, or the recent tokens where there are more of them."""
        return (
            self.num_heirs + self.sinks if self.evict == "streaming_llm" else max(self.num_heirs, self.recent)
        )

    @property
    def needed_for(self) -> str:
        """The parameters that add up to `num_needed`."""
        protected = f"sinks={self.sinks}" if self.evict == "streaming_llm" else f"recent={self.recent}"
        return f"num_heirs={self.num_heirs} beside {protected}"

    def decode_rule(self, prompt_seed: int) -> DecodeRule:
        """`ValuesAreHandedOn` with the rule that ``evict`` names."""
        chooser: DecodeRule = (
            OldestLeaves(self.sinks) if self.evict == "streaming_llm" else LowestScoreLeaves(self.recent)
        )
        # As in `random`: seeds of neighbouring repeats never meet, whatever the prompt's 32 bits are.
        return ValuesAreHandedOn(chooser, self.num_heirs, (prompt_seed << 16) + self.seed, room=self.room)


def uniform(seed: int, shape: Sequence[int], count: Tensor) -> Tensor:
    """Numbers in [0, 1), fp32 of ``shape`` on the device of ``count`` (int64, no dimension).

    Each depends on ``seed``, its place in ``shape`` and ``count`` alone.
    """
    bits = _mixed(torch.zeros_like(count), seed & _MASK)
    bits = _mixed(bits, (seed >> 32) & _MASK)
    bits = _mixed(bits, count & _MASK)
    for size in shape:
        bits = _mixed(bits[..., None], torch.arange(size, device=count.device))
    return (bits >> (32 - _DRAWN_BITS)).float() / 2**_DRAWN_BITS


def _mixed(bits: Tensor, more: Tensor | int) -> Tensor:
    # Products of two 32-bit numbers overflow int64; their low 32 bits, all that is kept, are right nevertheless.
    bits = (bits * _ROUNDS[0][1] + more + 1) & _MASK
    for shift, multiplier in _ROUNDS:
        bits = ((bits ^ (bits >> shift)) * multiplier) & _MASK
    return bits ^ (bits >> _LAST_SHIFT)

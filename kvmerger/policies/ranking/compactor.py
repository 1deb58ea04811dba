"""Compactor: keep tokens whose keys stand out from all others, and those that their neighbourhood attends to.

Shapes: Q query heads, H KV heads, G = Q/H, N tokens, M ranked ones (neither first nor last), D head size, K numbers of a
sketched key, C chunks, W tokens of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kvmerger.budget import Budget, BudgetError, BudgetSpec
from kvmerger.device import upload
from kvmerger.policies.base import CacheShape
from kvmerger.policies.parameters import require_count, require_share
from kvmerger.policies.registry import register
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.before_rope import keys_before_rope
from kvmerger.prefill.evidence import Evidence, LayerStates, Need, register_evidence

# Bounds the fp32 scores of chunks alive at a time (64 MiB).
_MOST_SCORES = 2**24
# Added to the diagonal before it is inverted, as in kvpress.
_RIDGE = 1e-2
_POOLED_TOKENS = 3
_LEAST_DEVIATION = 1e-6


@register_evidence("key_leverage", reads_queries=False, reads_hidden_states=True)
def _key_leverage(states: LayerStates, num_first: int, num_last: int, sketch_dimension: int) -> Tensor:
    """Leverage of every ranked token's key before RoPE, standardised over the layer: fp32 (H, M)."""
    k_HMD = _ranked(keys_before_rope(states), num_first, num_last).float()
    x_HMK = k_HMD - k_HMD.mean(dim=1, keepdim=True)
    if sketch_dimension < x_HMK.shape[2]:
        drawn_HDK = sketch(states.seed, k_HMD.shape[0], k_HMD.shape[2], sketch_dimension)
        x_HMK = x_HMK @ upload(drawn_HDK, x_HMK.device)
    # fp64, where the ridge is above all rounding: no factorisation fails, and nobody waits for the device to hear so.
    x_HMK = x_HMK.double()
    gram_HKK = x_HMK.mT @ x_HMK
    gram_HKK.diagonal(dim1=1, dim2=2).add_(_RIDGE)
    # xᵀG⁻¹x = ‖T⁻¹x‖² where G = TTᵀ.
    factor_HKK = torch.linalg.cholesky_ex(gram_HKK).L
    solved_HKM = torch.linalg.solve_triangular(factor_HKK, x_HMK.mT, upper=False)
    return _standardised(solved_HKM.square().sum(dim=1).float())


def sketch(seed: int, num_heads: int, head_dim: int, sketch_dimension: int) -> Tensor:
    """Normal numbers of variance 1/K that depend on ``seed`` alone, fp32 (H, D, K) on the CPU."""
    # On the CPU in any case: CUDA's generator gives other numbers for the same seed.
    generator = torch.Generator().manual_seed(seed)
    drawn_HDK = torch.randn(num_heads, head_dim, sketch_dimension, generator=generator)
    return drawn_HDK / math.sqrt(sketch_dimension)


@register_evidence("chunk_attention", reads_queries=True)
def _chunk_attention(states: LayerStates, num_first: int, num_last: int, chunk_size: int) -> Tensor:
    """What each ranked token gets of its chunk's attention times its value's norm, standardised: fp32 (H, M)."""
    num_heads = states.k_HND.shape[0]
    q_QMD, k_HMD, v_HMD = (
        _ranked(x, num_first, num_last) for x in (states.q_QND, states.k_HND, states.v_HND)
    )
    num_ranked = k_HMD.shape[1]
    paid_HM = k_HMD.new_zeros(num_heads, num_ranked, dtype=torch.float32)
    num_whole = num_ranked // chunk_size
    at_once = max(1, _MOST_SCORES // (q_QMD.shape[0] * chunk_size**2))
    whole = [
        (first * chunk_size, min(first + at_once, num_whole) * chunk_size, chunk_size)
        for first in range(0, num_whole, at_once)
    ]
    # What is left over is a chunk of its own length: there is no padding that could pay or get attention.
    left_over = num_ranked - num_whole * chunk_size
    rest = [(num_ranked - left_over, num_ranked, left_over)] if left_over else []
    for start, stop, size in [*whole, *rest]:
        q_HGCWD = q_QMD[:, start:stop].float().unflatten(1, (-1, size)).unflatten(0, (num_heads, -1))
        k_H1CWD = k_HMD[:, start:stop].float().unflatten(1, (-1, size))[:, None]
        # Neither causal nor scaled by 1/√D, as in kvpress.
        probs_HGCWW = (q_HGCWD @ k_H1CWD.mT).softmax(dim=4)
        paid_HM[:, start:stop] = probs_HGCWW.sum(dim=3).mean(dim=1).flatten(1)
    weighted_HM = paid_HM * v_HMD.float().norm(dim=2)
    # Zeros at both ends count in the pool.
    pooled_HM = F.avg_pool1d(weighted_HM, _POOLED_TOKENS, stride=1, padding=_POOLED_TOKENS // 2)
    return _standardised(pooled_HM)


def _ranked(x_XND: Tensor, num_first: int, num_last: int) -> Tensor:
    # Of a prompt that is all protected nothing is left, where a slice from the far side would leave something.
    return x_XND[:, num_first : max(num_first, x_XND.shape[1] - num_last)]


def _standardised(x_HM: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over all heads of the layer together."""
    if x_HM.numel() < 2:
        return torch.zeros_like(x_HM)
    return (x_HM - x_HM.mean()) / x_HM.std().clamp_min(_LEAST_DEVIATION)


@register("compactor")
@dataclass(frozen=True)
class Compactor(ScoringPolicy):
    """Keep first and last tokens, and of the others outliers among the keys and what their own chunk attends to.

    Based on "Compactor: Calibrated Query-Agnostic KV Cache Compression with Approximate Leverage Scores" (arXiv
    2507.08143), in the form of kvpress's ``compactor``. Leverage is that of keys before RoPE, centred and sketched to
    ``sketch_dimension`` numbers by a Gaussian matrix; attention is each chunk's to itself, in both directions, summed over
    queries, times ‖v‖, averaged over three neighbours. Both are standardised over all heads of the layer; the score is
    ``blending`` times the first plus the second. The sketch is drawn from prompt and layer, so that it is the same wherever
    the item runs; it is left out for heads that are no larger than it.

    kvpress pads the last chunk with tokens that pay and get attention; here it is shorter.

    Attributes:
        sink_size_start: first tokens, always kept.
        sink_size_end: last tokens, always kept.
        chunk_size: tokens of a chunk.
        sketch_dimension: numbers that a key is sketched to.
        blending: weight of leverage, 0–1; None takes the fraction that the budget removes.
    """

    sink_size_start: int = 8
    sink_size_end: int = 4
    chunk_size: int = 256
    sketch_dimension: int = 48
    blending: float | None = None

    compresses_stacks = True

    def __post_init__(self) -> None:
        """Refuse values outside their domain."""
        for name, least in (
            ("sink_size_start", 0),
            ("sink_size_end", 0),
            ("chunk_size", 1),
            ("sketch_dimension", 1),
        ):
            require_count("compactor", name, vars(self)[name], at_least=least)
        if self.blending is not None:
            require_share("compactor", "blending", self.blending)

    @property
    def num_protected(self) -> int:
        """First and last tokens."""
        return self.sink_size_start + self.sink_size_end

    def needs(self) -> frozenset[Need]:
        """Leverage, which reads hidden states, and the chunks' attention."""
        return frozenset({self._leverage, self._attention})

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """There must be tokens between the first and the last, and room for both."""
        if shape.num_tokens <= self.num_protected:
            raise BudgetError(
                f"compactor: the compressed part has {shape.num_tokens} tokens, no more than sink_size_start="
                f"{self.sink_size_start} and sink_size_end={self.sink_size_end}; lower them or leave out such short prompts"
            )
        super().check(shape, budget)

    def stack_key(self, evidence: Evidence, budget: Budget) -> Hashable:
        """What was asked for, where the blend depends on it."""
        return budget.asked_ratio if self.blending is None else None

    def scores(self, evidence: Evidence) -> Tensor:
        """Scores at ``blending``, or at half the slots where that follows the budget: fp32 (H, N)."""
        return self._scores(evidence, 0.5 if self.blending is None else self.blending)

    def scores_at(self, evidence: Evidence, budget: Budget) -> Tensor:
        """Leverage and attention, blended, and ``inf`` for the first and last tokens: fp32 (H, N)."""
        return self._scores(evidence, 1 - budget.asked_ratio if self.blending is None else self.blending)

    def _scores(self, evidence: Evidence, blending: float) -> Tensor:
        scores_HM = blending * evidence.get(self._leverage) + evidence.get(self._attention)
        return F.pad(scores_HM, (self.sink_size_start, self.sink_size_end), value=float("inf"))

    @property
    def _leverage(self) -> Need:
        return Need("key_leverage", (self.sink_size_start, self.sink_size_end, self.sketch_dimension))

    @property
    def _attention(self) -> Need:
        return Need("chunk_attention", (self.sink_size_start, self.sink_size_end, self.chunk_size))

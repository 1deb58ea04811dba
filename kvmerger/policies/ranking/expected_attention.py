"""Expected attention: future queries are taken to be distributed like the prompt's; keep what they would attend to.

Shapes: N tokens, M tokens behind the sinks, Q query heads, H KV heads, G = Q/H, D head size, F future positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kvmerger.budget import BudgetError, BudgetSpec
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.parameters import require_count, require_flag
from kvmerger.policies.registry import register
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.before_rope import queries_before_rope
from kvmerger.prefill.evidence import Evidence, LayerStates, Need, register_evidence


class _MeanRotation(NamedTuple):
    """RoPE averaged over positions, a linear map: cosines and sines (D,), fp32."""

    cos_D: Tensor
    sin_D: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to vectors (…, D)."""
        # The convention of Llama and its kin: halves of a head are paired, not neighbouring channels.
        first, second = x.chunk(2, dim=-1)
        return x * self.cos_D + torch.cat([-second, first], dim=-1) * self.sin_D


@register_evidence("expected_attention", reads_queries=False, reads_hidden_states=True)
def _expected_attention(
    states: LayerStates, num_future: int, n_sink: int, use_covariance: bool, use_vnorm: bool, epsilon: float
) -> Tensor:
    """Expected attention to every token behind the sinks, averaged over the group: fp32 (H, M)."""
    k_HMD = states.k_HND[:, n_sink:].float()
    num_heads, num_tokens = k_HMD.shape[0], states.k_HND.shape[1]
    q_QMD = queries_before_rope(states, n_sink).float()
    rotation = _mean_rotation(states, num_tokens, num_future)
    mean_Q1D = q_QMD.mean(dim=1, keepdim=True)
    mean_HGD = rotation(mean_Q1D).view(num_heads, -1, k_HMD.shape[2])
    logit_HGM = states.scaling * (mean_HGD @ k_HMD.transpose(1, 2))
    if use_covariance:
        centred_QMD = q_QMD - mean_Q1D
        cov_QDD = centred_QMD.transpose(1, 2) @ centred_QMD / centred_QMD.shape[1]
        # R Σ Rᵀ. The map turns the last dimension; Σ is symmetric, so between the two turns a transpose suffices.
        cov_HGDD = rotation(rotation(cov_QDD).transpose(1, 2)).unflatten(0, (num_heads, -1))
        # kᵀΣk as a product and a row sum: (M, D) numbers are held, never (M, M).
        k_H1MD = k_HMD[:, None]
        logit_HGM = logit_HGM + states.scaling**2 / 2 * ((k_H1MD @ cov_HGDD) * k_H1MD).sum(dim=3)
    expected_HM = logit_HGM.softmax(dim=2).mean(dim=1)
    return (
        (expected_HM + epsilon) * states.v_HND[:, n_sink:].float().norm(dim=-1) if use_vnorm else expected_HM
    )


def _mean_rotation(states: LayerStates, start: int, num_future: int) -> _MeanRotation:
    """RoPE as the model scales it, averaged over ``num_future`` positions from ``start`` on."""
    assert states.rotary is not None, "a model's layers have it"
    position_1F = torch.arange(start, start + num_future, device=states.k_HND.device)[None]
    # The dtype of the first argument is that of the result; bf16 would lose the angles.
    cos_1FD, sin_1FD = states.rotary(states.k_HND.new_empty(0, dtype=torch.float32), position_1F)
    return _MeanRotation(cos_1FD[0].mean(dim=0), sin_1FD[0].mean(dim=0))


@register("expected_attention")
@dataclass(frozen=True)
class ExpectedAttention(ScoringPolicy):
    """Keep the first tokens and those that future queries are expected to attend to, weighted by their values' norms.

    Based on "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution"
    (arXiv 2510.00636): queries before RoPE are taken as Gaussian, N(μ, Σ) over the prompt without its first tokens, rotated
    by the average rotation R over the next positions. A key scores exp(kᵀRμ/√d + kᵀRΣRᵀk/(2d)), normalised over the
    prompt, averaged over the query heads of a group, times ||v||. Qwen3's query norm is applied before the statistics.
    kvpress's key of this name is ``{name: expected_attention+adakv, epsilon: 0.01}`` here.

    Attributes:
        n_future_positions: how many positions after the prompt the rotation is averaged over.
        n_sink: first tokens: always kept, and left out of the statistics.
        use_covariance: False drops the second term.
        use_vnorm: False drops ||v||.
        epsilon: added to the expected attention before it is multiplied by ||v||.
    """

    n_future_positions: int = 512
    n_sink: int = 4
    use_covariance: bool = True
    use_vnorm: bool = True
    epsilon: float = 0.0

    compresses_stacks = True

    def __post_init__(self) -> None:
        """Refuse values outside their domain."""
        require_count("expected_attention", "n_future_positions", self.n_future_positions, at_least=1)
        require_count("expected_attention", "n_sink", self.n_sink, at_least=0)
        require_flag("expected_attention", "use_covariance", self.use_covariance)
        require_flag("expected_attention", "use_vnorm", self.use_vnorm)
        if (
            isinstance(self.epsilon, bool)
            or not isinstance(self.epsilon, int | float)
            or not self.epsilon >= 0
        ):
            raise PolicyError(f"expected_attention: epsilon must be a number from 0 on, got {self.epsilon!r}")

    @property
    def num_protected(self) -> int:
        """The sinks."""
        return self.n_sink

    def needs(self) -> frozenset[Need]:
        """Expected attention with this policy's settings; reads hidden states."""
        return frozenset({self._need})

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """There must be tokens behind the sinks, and room for the sinks."""
        if shape.num_tokens <= self.n_sink:
            raise BudgetError(
                f"expected_attention: the compressed part has {shape.num_tokens} tokens, no more than n_sink="
                f"{self.n_sink}; lower n_sink or leave out such short prompts"
            )
        super().check(shape, budget)

    def scores(self, evidence: Evidence) -> Tensor:
        """Expected attention times ||v||; ``inf`` for sinks: fp32 (H, N)."""
        return F.pad(evidence.get(self._need), (self.n_sink, 0), value=float("inf"))

    @property
    def _need(self) -> Need:
        settings = (
            self.n_future_positions,
            self.n_sink,
            self.use_covariance,
            self.use_vnorm,
            float(self.epsilon),
        )
        return Need("expected_attention", settings)

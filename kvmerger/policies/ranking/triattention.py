"""TriAttention: how the queries to come would look at each key if they were the newest ones' mean, turned on.

Shapes: N tokens, W tokens of the window, Q query heads, H KV heads, F = D/2 pairs of channels that RoPE turns together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.policies.parameters import require_count, require_flag
from kvmerger.policies.registry import register
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.before_rope import frequencies
from kvmerger.prefill.evidence import Evidence, LayerStates, Need, register_evidence

# How far ahead queries are looked for: 1, 2, 4 and so on to 65,536 tokens.
_DISTANCES = tuple(2**power for power in range(17))


def trigonometric_scores(window_tokens: int) -> Need:
    """What queries ahead are expected to find in every key, from the last ``window_tokens`` queries: fp32 (Q, N)."""
    return Need("trigonometric_scores", (window_tokens,))


@register_evidence("trigonometric_scores", reads_queries=True, is_of_window=True)
def _trigonometric_scores(states: LayerStates, window_tokens: int) -> Tensor:
    """Mean logit over distances ahead, times √D, and what the queries' spread adds: fp32 (Q, N)."""
    q_QWF = _pairs(states.q_QND[:, -window_tokens:])
    k_HNF = _pairs(states.k_HND)
    device = k_HNF.device
    radians_F = frequencies(states).double().to(device)
    # Keys and queries are turned by their own positions already: only what lies between a query and the last one counts,
    # and no position need be known. In fp64: at 65,536 tokens fp32 has lost three digits of the angle.
    to_last_W = torch.arange(q_QWF.shape[1] - 1, -1, -1, device=device, dtype=torch.float64)
    mean_QF = (q_QWF * _turn(to_last_W[:, None] * radians_F)).mean(dim=1)
    spread_QF = q_QWF.abs().mean(dim=1) - mean_QF.abs()
    ahead_X = torch.tensor(_DISTANCES, dtype=torch.float64, device=device)
    # A sum over distances of cosines of one frequency is one cosine: the keys are read once and not seventeen times.
    ahead_QF = mean_QF * _turn(ahead_X[:, None] * radians_F).mean(dim=0)
    num_heads = len(k_HNF)
    ahead_HGF, spread_HGF = (x_QF.unflatten(0, (num_heads, -1)) for x_QF in (ahead_QF, spread_QF))
    logit_HGN = (ahead_HGF @ k_HNF.conj().transpose(1, 2)).real
    return (logit_HGN + spread_HGF @ k_HNF.abs().transpose(1, 2)).flatten(0, 1)


@register("triattention")
@dataclass(frozen=True)
class TriAttention(ScoringPolicy):
    """Keep the keys that queries at many distances ahead are expected to look at, whatever they will ask.

    Based on "TriAttention" (arXiv 2604.04921) and its authors' code at c3744ee: before RoPE a head's queries lie close around
    their mean q̄, so that the logit of a query δ tokens ahead is Σ_f |q̄_f||k_f| cos(ω_f(t − p + δ) + arg q̄_f k̄_f) over the
    pairs of channels f; its mean over δ = 1, 2, 4, … 65,536, and Σ_f (E|q_f| − |q̄_f|)|k_f| for the queries' spread, make a
    key's score. Neither attention nor values are read. Of a group's heads the highest score counts, after each head's scores
    were standardised, as in TensorRT-LLM (``normalise: false``: as the authors' code does unless told otherwise). Meant for
    long answers: ``triattention+periodic`` with ``every: 128``.

    Differs in three things. The mean and E|q_f| are those of the newest ``window_size`` queries themselves, turned back;
    the authors take them from up to 32,768 tokens of other text, once per model. Each head keeps its own tokens (their
    ``per_layer_perhead``), never one set for all heads. And the prompt is compressed too, where theirs stays whole.

    Attributes:
        window_size: newest tokens whose queries are averaged; of a shorter prompt all. Nothing of it is protected.
        normalise: whether each query head's scores are standardised before the group's maximum.
    """

    window_size: int = 128
    normalise: bool = True

    def __post_init__(self) -> None:
        """Refuse values outside their domain."""
        require_count("triattention", "window_size", self.window_size)
        require_flag("triattention", "normalise", self.normalise)

    def needs(self) -> frozenset[Need]:
        """What the newest queries' mean finds in every key."""
        return frozenset({trigonometric_scores(self.window_size)})

    def scores(self, evidence: Evidence) -> Tensor:
        """The highest of the group: fp32 (H, N)."""
        score_QN = evidence.get(trigonometric_scores(self.window_size))
        if self.normalise:
            centred_QN = score_QN - score_QN.mean(dim=1, keepdim=True)
            # Of keys that are all alike no score says anything.
            score_QN = centred_QN / centred_QN.std(dim=1, correction=0, keepdim=True).clamp_min(1e-6)
        return score_QN.unflatten(0, (evidence.num_heads, -1)).amax(dim=1)


def _pairs(x_XND: Tensor) -> Tensor:
    """Vectors as complex numbers, one for each pair of channels that RoPE turns: complex64 (X, N, F)."""
    # The convention of Llama and its kin: halves of a head are paired, not neighbouring channels.
    first, second = x_XND.float().chunk(2, dim=-1)
    return torch.complex(first, second)


def _turn(radians: Tensor) -> Tensor:
    """Numbers of length 1 that turn by ``radians`` (fp64): complex64."""
    return torch.polar(torch.ones_like(radians), radians).to(torch.complex64)

"""KeepKV's merging: a merged slot counts once for each of its tokens, so that they keep their share of the attention.

Shapes: N tokens, Q query heads, H KV heads, D head size, W window, M members of all groups, S groups (slots).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kvmerger.budget import BudgetError, BudgetSpec
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.merging.merge import Groups, groups_of, merge_groups, slot_log_mass
from kvmerger.merging.runs import run_maxima, run_sums
from kvmerger.merging.targets import most_similar_kept
from kvmerger.policies.base import CacheShape
from kvmerger.policies.parameters import require_choices, require_cosine, require_count
from kvmerger.policies.reducers.base import Reducer
from kvmerger.policies.registry import name_of, register_wrapper
from kvmerger.prefill.evidence import Evidence, LayerStates, Need, register_evidence


@register_wrapper("keepkv")
@dataclass(frozen=True)
class KeepKV(Reducer):
    """Merge dropped tokens into the most similar kept one above a cosine, and count the slot's logit once per token.

    Based on KeepKV (arXiv 2504.09936): a slot of p tokens gets log p on its logit, and its value is the average by the
    scores s = exp(q·k) that the last queries gave its tokens. ``keys=moved`` also averages keys and scales them by
    ln(mean s) ÷ (score-weighted mean of ln s), so that a query that finds each token as the last ones did finds the slot
    as their sum. Differs in that all is done once, after prefill: the scores are means over a window instead of running
    averages. Keys stay by default: an independent port lost 7 to 10 points by moving them.

    Attributes:
        min_cosine: dropped tokens no more similar than this are evicted, in (-1, 1].
        keys: ``fixed``, or ``moved``; the factor is left out where one of its logarithms is not positive.
        score_window: how many last queries score the tokens.
    """

    min_cosine: float = 0.8
    keys: Literal["fixed", "moved"] = "fixed"
    score_window: int = 64

    def __post_init__(self) -> None:
        """Refuse a policy that does not say which tokens stay, and values outside their domain."""
        super().__post_init__()
        require_cosine(name_of(self), "min_cosine", self.min_cosine)
        require_choices(name_of(self), vars(self), {"keys": ("fixed", "moved")})
        require_count(name_of(self), "score_window", self.score_window)

    @property
    def adds_log_mass(self) -> bool:
        """Every slot has that of the tokens it stands for."""
        return True

    def needs(self) -> frozenset[Need]:
        """What the wrapped policy reads, and the scores of the last queries."""
        return super().needs() | {_log_mean_scores_need(self.score_window)}

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """Raise `BudgetError` for a prompt no longer than the window, and where the wrapped policy does."""
        if shape.num_tokens <= self.score_window:
            raise BudgetError(
                f"keepkv: the compressed part has {shape.num_tokens} tokens, no more than score_window="
                f"{self.score_window}; lower score_window or leave out such short prompts"
            )
        super().check(shape, budget)

    def merge(self, layer: LayerCache, evidence: Evidence, is_kept_HN: Tensor) -> LayerCache:
        """Merge tokens more similar than ``min_cosine``, evict the rest."""
        found = most_similar_kept(layer.k_HND, is_kept_HN, len(evidence.layers))
        groups = groups_of(found.only(found.cosine_HN > self.min_cosine).target_HN)
        log_score_F = evidence.get(_log_mean_scores_need(self.score_window)).flatten()
        weight_M, factor_S = _vote(log_score_F[groups.member_M], groups)
        return merge_groups(
            layer,
            groups,
            key_weight_M=weight_M * factor_S[groups.runs.run_F] if self.keys == "moved" else None,
            value_weight_M=weight_M,
            log_mass_S=slot_log_mass("count", groups, log_score_F, None),
        )


def _vote(log_score_M: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """Weights by score, fp32 (M,), summing to 1 within each group; and the factor of each merged key, fp32 (S,)."""
    run_M = groups.runs.run_F
    # Scores are exp of raw logits, which fp32 cannot hold beyond 88: taken relative to each group's largest.
    largest_S = run_maxima(log_score_M, groups.runs)
    score_M = (log_score_M - largest_S[run_M]).exp()
    sum_S = run_sums(score_M, groups.runs)
    weight_M = score_M / sum_S[run_M]
    log_of_mean_S = largest_S + (sum_S / groups.runs.length_R).log()
    mean_of_log_S = run_sums(weight_M * log_score_M, groups.runs)
    # A quotient of logarithms: where one of them is negative it would turn the key around.
    is_defined_S = (log_of_mean_S > 0) & (mean_of_log_S > 0)
    return weight_M, torch.where(is_defined_S, log_of_mean_S / mean_of_log_S, 1.0)


def _log_mean_scores_need(window_tokens: int) -> Need:
    return Need("log_mean_scores", (window_tokens,))


@register_evidence("log_mean_scores", reads_queries=True)
def _log_mean_scores(states: LayerStates, window_tokens: int) -> Tensor:
    """ln of the mean of exp(q·k) over a group's query heads and those of the last queries that see k: fp32 (H, N)."""
    num_heads, num_tokens, head_dim = states.k_HND.shape
    q_QWD = states.q_QND[:, -window_tokens:].float() * states.scaling
    num_queries = q_QWD.shape[1]
    q_HXD = q_QWD.reshape(num_heads, -1, head_dim)
    logit_HXN = q_HXD @ states.k_HND.float().transpose(1, 2)
    # A query of the window sees the tokens up to its own: fewer queries see the last tokens, hence means and not sums.
    column_N = torch.arange(num_tokens, device=q_QWD.device)
    is_seen_WN = column_N[None, :] <= column_N[-num_queries:, None]
    is_seen_XN = is_seen_WN.repeat(q_HXD.shape[1] // num_queries, 1)
    log_sum_HN = logit_HXN.masked_fill_(~is_seen_XN, float("-inf")).logsumexp(dim=1)
    return log_sum_HN - is_seen_XN.sum(dim=0).log()

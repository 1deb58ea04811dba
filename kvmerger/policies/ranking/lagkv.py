"""LagKV: keep tokens whose channels vary more than those of the partition that follows.

Shapes: H KV heads, N tokens, P partitions that have a successor, W tokens of a partition, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.budget import Budget
from kvmerger.cache.head_counters import PerHead
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.policies.parameters import require_count, require_flag
from kvmerger.policies.registry import register
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import Evidence, LayerStates, Need, register_evidence


@register_evidence("lag_scores", reads_queries=False)
def _lag_scores(states: LayerStates, n_sink: int, lag_size: int) -> Tensor:
    """Mean of the keys' and values' lag-relative scores of all tokens that have a next partition: fp32 (H, P, W)."""
    num_partitions = (states.k_HND.shape[1] - n_sink) // lag_size
    if num_partitions < 2:
        return states.k_HND.new_empty(states.k_HND.shape[0], 0, lag_size, dtype=torch.float32)
    last = n_sink + num_partitions * lag_size
    of_keys, of_values = (
        _relative_to_next(tensor[:, n_sink:last].float().unflatten(1, (num_partitions, lag_size)))
        for tensor in (states.k_HND, states.v_HND)
    )
    return (of_keys + of_values) / 2


def _relative_to_next(x_HPWD: Tensor) -> Tensor:
    """Softmax over a partition of the deviation across channels, each scaled by the next partition's range."""
    low_HP1D, high_HP1D = x_HPWD[:, 1:].amin(dim=2, keepdim=True), x_HPWD[:, 1:].amax(dim=2, keepdim=True)
    range_HP1D = high_HP1D - low_HP1D
    # A channel that is constant in the next partition measures nothing.
    is_flat_HP1D = range_HP1D == 0
    scaled_HPWD = (x_HPWD[:, :-1] - low_HP1D) / range_HP1D.masked_fill(is_flat_HP1D, 1.0)
    return scaled_HPWD.masked_fill(is_flat_HP1D, 0.0).std(dim=3).softmax(dim=2)


@register("lagkv")
@dataclass(frozen=True)
class LagKV(ScoringPolicy):
    """Keep sinks, the last partitions, and of each earlier one the tokens that vary most beside the next.

    Based on "LagKV: Lag-Relative Information of the KV Cache Tells Which Tokens Are Important" (arXiv 2504.04704), with
    the defaults of kvpress's ``lagkv``. Tokens after the sinks fall into partitions of ``lag_size``; keys and values are
    min-max normalised by the next partition, channel by channel, and the deviation over channels, softmaxed over the
    partition, is the score. The last partition and what is left over have no next one and are kept before any other.
    Applied once to the whole prompt. Where the budget does not hold that tail, or the prompt has no two partitions, the
    most recent tokens are kept, which is `streaming_llm`; the counter ``is_lag_ranked`` is then 0.

    Attributes:
        n_sink: first tokens, always kept.
        lag_size: tokens of a partition.
        cross_scoring: compare scores of all partitions; False keeps equally many of each, and gives slots that do not
            divide evenly to the partitions whose next best token scores highest.
    """

    n_sink: int = 4
    lag_size: int = 128
    cross_scoring: bool = False

    version = 2
    compresses_stacks = True

    def __post_init__(self) -> None:
        """Refuse what is no number of tokens."""
        require_count("lagkv", "n_sink", self.n_sink, at_least=0)
        require_count("lagkv", "lag_size", self.lag_size, at_least=1)
        require_flag("lagkv", "cross_scoring", self.cross_scoring)

    @property
    def num_protected(self) -> int:
        """The sinks and at least one recent token."""
        return self.n_sink + 1

    def needs(self) -> frozenset[Need]:
        """Lag-relative scores."""
        return frozenset({self._need})

    def scores(self, evidence: Evidence) -> Tensor:
        """Below 1 for ranked tokens, from 1 on and by recency for the tail, ``inf`` for sinks: fp64 (H, N)."""
        ranked_HPW = evidence.get(self._need).double()
        if not self.cross_scoring:
            # The score itself decides between equal ranks: left to the earlier token, the slots that do not divide evenly
            # would all go to the first partitions. Halved, it never reaches the next rank, nor the tail's 1.
            ranked_HPW = (_rank(ranked_HPW) + ranked_HPW / 2) / self.lag_size
        num_tail = self._num_tail(evidence.num_tokens)
        # From 1 on: ranks ÷ lag_size, and softmaxes over two tokens or more, are below 1, so the tail beats what is ranked.
        tail_T = 1 + torch.arange(num_tail, dtype=torch.float64, device=evidence.device)
        sink_HS = ranked_HPW.new_full((evidence.num_heads, min(self.n_sink, evidence.num_tokens)), torch.inf)
        return torch.cat([sink_HS, ranked_HPW.flatten(1), tail_T.expand(evidence.num_heads, -1)], dim=1)

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Keep the selected tokens, copied unchanged, and count whether ranks decided about any."""
        num_unranked = self.n_sink + self._num_tail(evidence.num_tokens)
        # On the CPU, where budget and lengths are known.
        is_lag_ranked_H = num_unranked < torch.tensor(budget.num_slots_H)
        return super().compress(layer, evidence, budget).counting({"is_lag_ranked": PerHead(is_lag_ranked_H)})

    def _num_tail(self, num_tokens: int) -> int:
        """Tokens behind the sinks that have no next partition."""
        num_partitions, num_left_over = divmod(max(0, num_tokens - self.n_sink), self.lag_size)
        return num_left_over + (self.lag_size if num_partitions else 0)

    @property
    def _need(self) -> Need:
        return Need("lag_scores", (self.n_sink, self.lag_size))


def _rank(scores_HPW: Tensor) -> Tensor:
    """Each score's place in its partition, 0 for the lowest; of equal scores the earlier token ranks higher."""
    # `sort` with stable=True: plain argsort leaves ties to the device, and with them which tokens are kept.
    order_HPW = scores_HPW.sort(dim=2, descending=True, stable=True).indices
    return (scores_HPW.shape[2] - 1 - order_HPW.argsort(dim=2)).double()

"""DuoAttention: heads that look far back keep everything, the others first and recent tokens.

Shapes: L layers, H KV heads, Q query heads, G = Q/H, N tokens, D head size, F positions, X heads of all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.budget import Budget, BudgetSpec, LikeVariant, num_slots_for
from kvmerger.cache.head_counters import PerHead
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.policies.base import CacheShape
from kvmerger.policies.parameters import require_count
from kvmerger.policies.ranking.streaming_llm import StreamingLLM
from kvmerger.policies.registry import register
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.before_rope import keys_before_rope, queries_before_rope
from kvmerger.prefill.evidence import Evidence, LayerStates, Need, register_evidence


@register_evidence("retrieval_scores", reads_queries=False, reads_hidden_states=True)
def _retrieval_scores(states: LayerStates, num_positions: int) -> Tensor:
    """How far back a head looks, from 1/F (all on the latest key) to 1 (all on the first): fp32 (H,).

    The head's mean query stands at the last of F positions and its mean key at each: what remains is what RoPE does. The
    score is the area under the cumulated attention, averaged over the group.
    """
    assert states.rotary is not None, "a model's layers have it"
    position_1F = torch.arange(num_positions, device=states.k_HND.device)[None]
    # The dtype of the first argument is that of the result; bf16 would lose the angles.
    cos_1FD, sin_1FD = states.rotary(states.k_HND.new_empty(0, dtype=torch.float32), position_1F)
    q_QD, k_HD = (
        before(states).mean(dim=1, dtype=torch.float32) for before in (queries_before_rope, keys_before_rope)
    )
    q_HGD = _turned(q_QD[:, None], cos_1FD[:, -1:], sin_1FD[:, -1:]).view(k_HD.shape[0], -1, k_HD.shape[1])
    k_HFD = _turned(k_HD[:, None], cos_1FD, sin_1FD)
    probs_HGF = (states.scaling * (q_HGD @ k_HFD.mT)).softmax(dim=2)
    return probs_HGF.cumsum(dim=2).mean(dim=(1, 2))


def _turned(x_X1D: Tensor, cos_1FD: Tensor, sin_1FD: Tensor) -> Tensor:
    """One vector of every head at all positions: (X, F, D)."""
    first, second = x_X1D.chunk(2, dim=-1)
    return x_X1D * cos_1FD + torch.cat([-second, first], dim=-1) * sin_1FD


@register("duo_attention")
@dataclass(frozen=True)
class DuoAttention(ScoringPolicy):
    """Keep everything in heads that look far back, and first and recent tokens in the others.

    Based on "DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads" (arXiv 2410.10819), with
    kvpress's ``on_the_fly_scoring`` in place of the authors' learnt tables: a head's mean query and mean key, at all
    distances of ``num_positions``, tell how far back it looks. Means are over the prompt itself, where kvpress takes 50
    texts of BookSum. The budget says how many of the model's heads stream, those that look least far: every other keeps all
    tokens, and what does not divide evenly makes one head's recent part longer. A budget below ``sink_size + recent_size``
    leaves every head with less recent tokens and ``num_retrieval_heads`` at 0, which is `streaming_llm`. While answering,
    streaming heads keep every new token, as in kvpress.

    Attributes:
        sink_size: first tokens, always kept.
        recent_size: recent tokens that a streaming head keeps.
        num_positions: distances that are tried.
    """

    sink_size: int = 128
    recent_size: int = 256
    num_positions: int = 500

    heads_differ = True
    layers_differ = True
    compresses_stacks = True

    def __post_init__(self) -> None:
        """Refuse what is no number of tokens."""
        require_count("duo_attention", "sink_size", self.sink_size, at_least=0)
        require_count("duo_attention", "recent_size", self.recent_size, at_least=1)
        require_count("duo_attention", "num_positions", self.num_positions, at_least=2)

    @property
    def num_protected(self) -> int:
        """The sinks and at least one recent token."""
        return self.sink_size + 1

    def caution(self, shape: CacheShape, budget: BudgetSpec) -> str | None:
        """Say so where no head can keep everything."""
        if isinstance(budget, LikeVariant):
            return None
        num_slots = num_slots_for(budget, shape.num_tokens)
        # The first head that looks far takes the slots of a whole prompt from all of the model's.
        if num_slots > self._least or num_slots == shape.num_tokens:
            return None
        return (
            f"{num_slots} slots per head are no more than what a streaming head holds, {self._least} "
            f"(sink_size={self.sink_size} and recent_size={self.recent_size}), so that every head streams, as in "
            f"streaming_llm: raise the budget or lower those"
        )

    def needs(self) -> frozenset[Need]:
        """How far back each head looks; reads hidden states."""
        return frozenset({self._need})

    def allocate(self, budget_L: Sequence[Budget], evidence_L: Sequence[Evidence]) -> Sequence[Budget]:
        """All tokens for as many heads as the slots allow, those that look farthest back first; their sum stays."""
        num_tokens, num_heads = evidence_L[0].num_tokens, evidence_L[0].num_heads
        num_slots = sum(min(count, num_tokens) for budget in budget_L for count in budget.num_slots_H)
        score_X = torch.cat([evidence.get(self._need) for evidence in evidence_L])
        # Of equal heads the earlier one retrieves. Fetched once, for all layers.
        farthest_X = score_X.sort(descending=True, stable=True).indices.cpu()
        slots_X = torch.empty_like(farthest_X)
        slots_X[farthest_X] = torch.tensor(_shared_out(num_slots, len(farthest_X), num_tokens, self._least))
        return [
            Budget(tuple(slots_H), sum(slots_H) / (num_heads * num_tokens))
            for slots_H in slots_X.view(-1, num_heads).tolist()
        ]

    def scores(self, evidence: Evidence) -> Tensor:
        """A token's position, ``inf`` for sinks: fp64 (H, N)."""
        return StreamingLLM(self.sink_size).scores(evidence)

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Keep the selected tokens, copied unchanged, and count the heads that keep all."""
        # On the CPU, where budget and lengths are known.
        is_retrieval_H = torch.tensor(budget.num_slots_H) >= evidence.num_tokens
        counters = {"num_retrieval_heads": PerHead(is_retrieval_H)}
        return super().compress(layer, evidence, budget).counting(counters)

    @property
    def _least(self) -> int:
        """Slots of a streaming head."""
        return self.sink_size + self.recent_size

    @property
    def _need(self) -> Need:
        return Need("retrieval_scores", (self.num_positions,))


def _shared_out(num_slots: int, num_heads: int, num_tokens: int, least: int) -> list[int]:
    """Slots of each head, falling: all tokens, at most one head between, then ``least``, or less where that is too much."""
    least = min(least, num_tokens, num_slots // num_heads)
    spare = num_slots - least * num_heads
    num_whole, rest = divmod(spare, num_tokens - least) if least < num_tokens else (num_heads, 0)
    beyond = [num_tokens - least] * num_whole + ([rest] if rest else [])
    return [least + more for more in beyond] + [least] * (num_heads - len(beyond))

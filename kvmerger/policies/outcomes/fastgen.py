"""FastGen: each head keeps the cheapest of five kinds of tokens that recovers enough of its attention.

Shapes: L layers of a stack, H KV heads of all of them, N tokens, C candidates: the kinds of tokens, cheapest first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.budget import Budget, share_of
from kvmerger.cache.head_counters import PerHead
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels.dispatch import is_among_highest
from kvmerger.kernels.reference import prompt
from kvmerger.models.token_classes import PUNCTUATION, SPECIAL
from kvmerger.policies.outcomes.base import OutcomePolicy
from kvmerger.policies.parameters import require_count, require_share
from kvmerger.policies.registry import register
from kvmerger.policies.selection import take_selected
from kvmerger.prefill.evidence import ATTENTION_MASS, Evidence, LayerStates, Need, register_evidence
from kvmerger.prefill.token_classes import TOKEN_CLASSES


def near_mass(share: float) -> Need:
    """Attention that each key gets from queries at most ``share`` of the prompt behind it: fp32 (H, N)."""
    return Need("near_mass", (share,))


@register_evidence("near_mass", reads_queries=True)
def _near_mass(states: LayerStates, share: float) -> Tensor:
    """Column sums of causal attention within a window of ``share`` of the tokens, at least one: fp32 (H, N)."""
    window_tokens = _window(states.k_HND.shape[1], share)
    return prompt.near_mass(states.q_QND, states.k_HND, states.scaling, window_tokens)


@register("fastgen")
@dataclass(frozen=True)
class FastGen(OutcomePolicy):
    """Keep in each head the cheapest kinds of tokens that recover ``recovery`` of its attention, and all where none do.

    Based on "Model Tells You What to Discard: Adaptive KV Cache Compression for LLMs" (arXiv 2310.01801), in its prompt
    phase, as the authors' reproduction cold-compress runs it. Kinds come in the order of their cost, each with those before:
    special tokens, punctuation, the ``frequent_share`` of tokens with most attention per query that sees them, a window of
    ``local_share`` behind each query (the last one's is kept), and all. What a kind recovers is the attention inside it, mean
    over queries. It is added up from column sums: for all tokens of a kind C_j, and for a window W_j, what key j gets from
    queries that have it in their window. That is exact, and no map of attention is held. Early queries have all they see in
    a window, so that recovery falls with the prompt's length. Differs in that there is one choice per KV head, from the mean
    of its query heads' attention, and in that the answer's own tokens are all kept: heads whose kind would take in no new
    tokens, or drop old ones, do not act while answering.

    Attributes:
        recovery: share (0–1) of a head's attention; at 1 everything stays.
        frequent_share: share (0–1) of the tokens that are kept as frequent, beside those of the kinds before.
        local_share: share (0–1) of the tokens in a window.
        n_initial: first tokens, which every kind has.
    """

    recovery: float = 0.9
    frequent_share: float = 0.3
    local_share: float = 0.3
    n_initial: int = 4

    layers_differ = True
    heads_differ = True
    compresses_stacks = True

    def __post_init__(self) -> None:
        """Refuse values outside their domain."""
        require_share("fastgen", "recovery", self.recovery)
        require_share("fastgen", "frequent_share", self.frequent_share)
        require_share("fastgen", "local_share", self.local_share)
        # A head without a slot would answer from the tail alone.
        require_count("fastgen", "n_initial", self.n_initial)

    def needs(self) -> frozenset[Need]:
        """Column sums of attention, all and near, and what kinds of tokens there are."""
        return frozenset({ATTENTION_MASS, near_mass(self.local_share), TOKEN_CLASSES})

    def select(self, evidence: Evidence, budget: Budget) -> Tensor:
        """Which tokens stay: bool (H, N)."""
        kinds_CHN = self._kinds(evidence)
        return _of_choice(kinds_CHN, self._choice(self._recovered(evidence, kinds_CHN)))

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Keep the selected tokens, copied unchanged; count what attention they recover, and heads that keep everything."""
        kinds_CHN = self._kinds(evidence)
        recovered_CH = self._recovered(evidence, kinds_CHN)
        choice_H = self._choice(recovered_CH)
        counters = {
            "recovered_attention": PerHead(recovered_CH.gather(0, choice_H[None])[0].float()),
            "full_ratio": PerHead((choice_H == len(recovered_CH) - 1).float()),
        }
        return take_selected(layer, _of_choice(kinds_CHN, choice_H)).counting(counters)

    def _kinds(self, evidence: Evidence) -> Tensor:
        """Which tokens each candidate keeps at the prompt's end, cheapest first: bool (C, H, N)."""
        num_tokens, mass_HN = evidence.num_tokens, evidence.get(ATTENTION_MASS)
        place_N = torch.arange(num_tokens, device=evidence.device)
        class_LN = evidence.by_layer(evidence.get(TOKEN_CLASSES))
        special_HN = evidence.for_heads((class_LN == SPECIAL) | (place_N < self.n_initial))
        punctuation_HN = special_HN | evidence.for_heads(class_LN == PUNCTUATION)
        # Causal: a token is seen by itself and all later ones.
        per_query_HN = (mass_HN / (num_tokens - place_N)).masked_fill(punctuation_HN, -torch.inf)
        num_frequent = share_of(num_tokens, self.frequent_share)
        frequent_HN = punctuation_HN | is_among_highest(per_query_HN, (num_frequent,) * evidence.num_heads)
        local_HN = frequent_HN | (place_N >= num_tokens - _window(num_tokens, self.local_share))
        return torch.stack([special_HN, punctuation_HN, frequent_HN, local_HN, torch.ones_like(special_HN)])

    def _recovered(self, evidence: Evidence, kinds_CHN: Tensor) -> Tensor:
        """Share of a head's attention inside what each candidate gives its queries: fp64 (C, H)."""
        mass_HN, near_HN = evidence.get(ATTENTION_MASS), evidence.get(near_mass(self.local_share))
        special_HN, punctuation_HN, frequent_HN = kinds_CHN[:3]
        inside = [mass_HN.masked_fill(~kept_HN, 0) for kept_HN in (special_HN, punctuation_HN, frequent_HN)]
        inside += [torch.where(frequent_HN, mass_HN, near_HN), mass_HN]
        # fp64: of some ten thousand tokens fp32 sums would lose what decides.
        sum_CH = torch.stack([inside_HN.sum(dim=1, dtype=torch.float64) for inside_HN in inside])
        return sum_CH / sum_CH[-1]

    def _choice(self, recovered_CH: Tensor) -> Tensor:
        """The first candidate that recovers enough: int64 (H,)."""
        is_enough_CH = recovered_CH >= self.recovery
        # All that there is, not all but what rounding hides.
        is_enough_CH[:-1] &= self.recovery < 1
        return is_enough_CH.int().argmax(dim=0)


def _of_choice(kinds_CHN: Tensor, choice_H: Tensor) -> Tensor:
    """Each head's own candidate: bool (H, N)."""
    return kinds_CHN.gather(0, choice_H[None, :, None].expand(1, -1, kinds_CHN.shape[2]))[0]


def _window(num_tokens: int, share: float) -> int:
    """Tokens that a query has in its window, itself among them."""
    return max(1, share_of(num_tokens, share))

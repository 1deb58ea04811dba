"""Compression once in a while: every so many tokens of the answer all that is held is ranked, and cut to the budget.

Shapes: H KV heads, Q query heads, N slots held per head, W newest queries, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvmerger.budget import Budget, BudgetError
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.decoding.periodic_rule import HeldSlots, PeriodicRule
from kvmerger.policies import registry
from kvmerger.policies.base import Policy, PolicyError
from kvmerger.policies.decoding.base import DecodingPolicy
from kvmerger.policies.parameters import require_count
from kvmerger.policies.registry import name_of, path_of, register_wrapper
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import Evidence, LayerStates, Need, registered

# Far apart, so that what random rankings draw at one cut is not another layer's or another repeat's.
_CUT_SEED_STRIDE = 2**40 + 15


@dataclass(frozen=True)
class RankedAnew(PeriodicRule):
    """A ranking made for prompts, asked about what is held.

    Attributes:
        ranking: it reads keys, values and order alone, and of queries those of the newest tokens.
        seed: of the prompt; a ranking that draws does so anew at each cut.
    """

    ranking: ScoringPolicy = None  # type: ignore[assignment]
    seed: int = 0

    @property
    def num_queries(self) -> int:
        """The window of the ranking's evidence."""
        return query_window(self.ranking)

    def scores(self, held: HeldSlots, num_slots: int) -> Tensor:
        """What the ranking gives."""
        states = LayerStates(_padded(held), held.k_HND, held.v_HND, held.scaling, rotary=held.rotary)
        seed = self.seed + held.cut_index * _CUT_SEED_STRIDE
        evidence = Evidence(states, held.layer_index, held.num_layers, seed)
        num_heads, num_tokens = held.k_HND.shape[:2]
        return self.ranking.checked_scores(
            evidence, Budget.uniform(num_slots, num_heads, num_slots / num_tokens)
        )


@register_wrapper("periodic")
@dataclass(frozen=True)
class Periodic(DecodingPolicy):
    """Every ``every`` tokens all that is held, prompt and answer, is ranked anew and cut to the budget.

    Based on DecodingPress of kvpress 0.5.5 (``compression_interval`` 512; its ``target_size`` is the budget here). Between
    two cuts the cache grows, so that a row holds the budget and one period at most, or its question where that is longer.
    Differs from it in three things. Cuts are counted from when the tokens behind the budget are ``every``, the question's
    among them, and not from the first token of the answer. Windows are those of queries as the model made them, as many as
    the ranking reads, where kvpress keeps 256 hidden states. And the prompt is compressed once, at its end, by what stands in
    front (kvpress: PrefillDecodingPress); without a context it is kept whole until the first cut.

    Attributes:
        every: tokens between two cuts; no fewer than the ranking's window.
        ranking: who ranks while answering, by name, with all defaults; "" is the policy in front.
    """

    every: int = 512
    ranking: str = ""

    def __post_init__(self) -> None:
        """Refuse a ranking that reads what only the prompt's prefill has."""
        super().__post_init__()
        require_count("periodic", "every", self.every, at_least=1)
        if self.room:
            raise PolicyError(
                f"periodic: room has no meaning where slots leave many at a time, got {self.room}; set every"
            )
        ranking = self._ranks()
        if uneven := next((part for part in self.inner.parts if part.heads_differ), None):
            raise PolicyError(
                f"periodic ranks each head by itself and needs as many slots in all heads of a layer, which "
                f"{name_of(uneven)} does not leave; put a policy in front that does, such as snapkv"
            )
        if (window := query_window(ranking)) > self.every:
            raise PolicyError(
                f"periodic: every={self.every} is less than the {window} newest queries that {name_of(ranking)} reads; "
                f"raise it, or lower that window"
            )

    @property
    def num_needed(self) -> int:
        """What the ranking never drops."""
        return max(1, self._ranks().num_protected)

    @property
    def needed_for(self) -> str:
        """Who protects that."""
        return f"what {name_of(self._ranks())} always keeps"

    def check_answering(self, num_tokens: int, num_slots: int) -> None:
        """Raise `BudgetError` where the budget does not hold what the ranking always keeps; a longer prompt is cut."""
        self._require_slots(num_slots)

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """What the wrapped policy keeps; `BudgetError` where heads of a layer hold unlike numbers of slots."""
        kept = super().compress(layer, evidence, budget)
        if any(len(set(slots_H)) > 1 for slots_H in _by_layer(kept.num_slots_H, len(evidence.layers))):
            raise BudgetError(
                f"periodic ranks each head by itself and needs as many slots in all heads of a layer; {path_of(self.inner)} "
                f"leaves unlike numbers at this budget"
            )
        return kept

    def decode_rule(self, prompt_seed: int) -> RankedAnew:
        """`RankedAnew` by the ranking."""
        return RankedAnew(self.every, ranking=self._ranks(), seed=prompt_seed)

    def _ranks(self) -> ScoringPolicy:
        """The ranking, once it is known to be one that can be asked again."""
        ranking = registry.get(self.ranking)() if self.ranking else self.inner.parts[0]
        if not isinstance(ranking, ScoringPolicy):
            raise PolicyError(
                f"periodic needs a ranking, which {name_of(ranking)} is not; name one, such as `ranking: keydiff`"
            )
        if reason := why_not_again(ranking):
            raise PolicyError(f"periodic cannot ask {name_of(ranking)} while answering: {reason}")
        return ranking


def query_window(ranking: Policy) -> int:
    """How many of the newest queries ``ranking``'s evidence reads; 0 for none."""
    windows = [int(need.params[0]) for need in ranking.needs() if registered(need).is_of_window]
    return max(windows, default=0)


def why_not_again(ranking: Policy) -> str | None:
    """Why ``ranking`` cannot be asked about slots that are held while answering; None where it can."""
    reasons = (_why_gone(need) for need in sorted(ranking.needs(), key=repr))
    return next((reason for reason in reasons if reason), None)


def _why_gone(need: Need) -> str | None:
    read = registered(need)
    if read.pieces is not None:
        return f"its {need.name} is of a repetition of the context, which an answer does not have"
    if read.reads_hidden_states:
        return f"its {need.name} reads hidden states of all that is held, and those of tokens that were read are gone"
    if read.reads_queries and not read.is_of_window:
        return (
            f"its {need.name} reads the queries of all that is held, and those of tokens that were read are gone; where "
            f"a sum of attention is meant, h2o_decode goes on with it"
        )
    return None


def _by_layer(num_slots_H: tuple[int, ...], num_layers: int) -> list[tuple[int, ...]]:
    heads = len(num_slots_H) // num_layers
    return [num_slots_H[start : start + heads] for start in range(0, len(num_slots_H), heads)]


def _padded(held: HeldSlots) -> Tensor:
    """The window's queries where they stand among all slots, zeros before them: (Q, N, D); empty where none are read."""
    if held.q_QWD is None:
        return held.k_HND.new_empty(0)
    num_queries, num_window, head_dim = held.q_QWD.shape
    q_QND = held.q_QWD.new_zeros(num_queries, held.k_HND.shape[1], head_dim)
    q_QND[:, -num_window:] = held.q_QWD
    return q_QND

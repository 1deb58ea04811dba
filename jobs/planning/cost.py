"""What a unit will cost, foreseen without weights: bytes of K/V, and a price that orders units by duration.

Bytes are what the engine holds at once in a fused run, counted the way the rows report them; where the number of
slots is an outcome of the prompt, all are assumed kept, so that a prediction is never too low.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from jobs.planning.work import ModelFacts, PlannedItem
from kvmerger.budget import LikeVariant, num_slots_for
from kvmerger.variants import REFERENCE_LABELS, VariantSpec

_KEYS_AND_VALUES = 2
_BYTES_PER_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}
_PREFILL_TOKENS_PER_STEP = 50
"""One decode step of the whole batch takes as long as prefilling about so many tokens (demo model, 2 CPU cores)."""


def bytes_per_token(model: ModelFacts) -> int:
    """Bytes of K and V of one token in all layers and heads.

    Raises:
        ValueError: a dtype whose size is not known.
    """
    dtype = model.dtype.rpartition(".")[2]
    if dtype not in _BYTES_PER_ELEMENT:
        raise ValueError(
            f"the size of dtype {model.dtype!r} is not known; known: {sorted(_BYTES_PER_ELEMENT)}"
        )
    elements = _KEYS_AND_VALUES * model.num_layers * model.num_kv_heads * model.head_dim
    return elements * _BYTES_PER_ELEMENT[dtype]


def most_slots(
    spec: VariantSpec, specs: Mapping[str, VariantSpec], outcomes: frozenset[str], tokens: int
) -> int:
    """The most slots per KV head that a variant can keep of `tokens`; no budget binds the labels in `outcomes`."""
    if isinstance(spec.budget, LikeVariant) and spec.budget.label in specs:
        return most_slots(specs[spec.budget.label], specs, outcomes, tokens)
    if spec.budget is None or isinstance(spec.budget, LikeVariant) or spec.label in outcomes:
        return tokens
    return num_slots_for(spec.budget, tokens)


def context_bytes(
    items: Sequence[PlannedItem], slots: Sequence[int], model: ModelFacts, own_slots: Sequence[int] = ()
) -> int:
    """Bytes of K/V that items on one context hold: one full prefix, each variant's prefix of `slots`, every row's tail.

    The A/A row shares the full prefix and `no_context` has none; both have tails. `own_slots` are those of the variants
    that act while they answer: each of their rows has a copy of the prefix and of its question's tail.
    Where a device has less memory, the engine answers in groups.
    """
    # A row that acts drops slots as it answers, so it cannot share a prefix: a copy with the tail, and the tail once more.
    num_context = len(items[0].tokens.context_ids)
    num_rows = len(items) * (len(slots) + len(REFERENCE_LABELS))
    # The gold answer is forced on every row, and may be longer than what the model is allowed to say.
    answer = max(max(it.item.max_new_tokens, len(it.tokens.gold_ids)) for it in items)
    tail = max(max(len(it.tokens.tail_ids), 1) for it in items) + answer
    copies = sum(count + 2 * max(len(it.tokens.tail_ids), 1) for count in own_slots for it in items)
    return (num_context + sum(slots) + num_rows * tail + copies) * bytes_per_token(model)


def cost_tokens(items: Sequence[PlannedItem]) -> float:
    """How long items on one context take, in tokens of prefill."""
    return cost_tokens_of(len(items[0].tokens.context_ids), [it.item.max_new_tokens for it in items])


def cost_tokens_of(context_tokens: int, new_tokens: Sequence[int]) -> float:
    """One prefill, then a batch of steps per question; `new_tokens` has each question's."""
    # One step more than tokens: the question's tail is read in a step of its own.
    num_steps = sum(count + 1 for count in new_tokens)
    return float(context_tokens + _PREFILL_TOKENS_PER_STEP * num_steps)


def num_pieces(cost: float, prefill_cost: float, usual_cost: float) -> int:
    """Into how many units a group should be cut so that none takes much longer than the usual one."""
    # Each piece repeats the prefill: below two prefills' worth, more than half of the work would be repetition.
    longest = max(2 * prefill_cost, 2 * usual_cost)
    return max(1, math.ceil(cost / longest))

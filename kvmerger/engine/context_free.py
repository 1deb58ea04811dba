"""Prompts with nothing to compress: every variant keeps all of them, and budgets bound what rows hold while they answer.

The whole cache counts, prompt and answer together, as R-KV and kvpress's DecodingPress count it. A share is one of the most
that the full cache may come to: the prompt and the longest answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from kvmerger.budget import (
    BudgetError,
    BytesShare,
    KeptRatio,
    LayerBytes,
    SlotCount,
    num_slots_for,
    slots_of_share,
)
from kvmerger.building import Variant
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.decoding.decode_rule import AnswerRule, require_rule
from kvmerger.generation import Prompt, Question
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.registry import path_of
from kvmerger.prefill.evidence import Need
from kvmerger.prefill.prefill import Prefilled


def answer_slots(variant: Variant, shape: CacheShape, num_new_tokens: int) -> int:
    """Slots per KV head that a row of ``variant`` may hold while it answers with at most so many tokens.

    ``shape`` is the cache of the whole prompt, with its sizes known.

    Raises:
        BudgetError: there is no budget, one that is like another variant's, or none that fits one slot.
    """
    longest = shape.num_tokens + num_new_tokens
    match variant.budget:
        case SlotCount(num_slots=num_slots):
            return num_slots
        case KeptRatio() as share:
            return num_slots_for(share, longest)
        case BytesShare() as share:
            assert shape.head_dim is not None and shape.itemsize is not None, "bytes need both sizes"
            # Whatever its form: what acts while answering changes slots one by one, and they are plain.
            return slots_of_share(
                share, LayerBytes(shape.num_kv_heads, shape.head_dim, shape.itemsize), longest
            )
    got = "none" if variant.budget is None else str(variant.budget)
    raise BudgetError(
        f"the item has no context to compress, so a budget bounds prompt and answer together, and must say how many slots "
        f"that is: give a number (`budget: 2048`) or a share of the longest answer (`budget: 0.25`, `budget: "
        f"{{bytes: 0.25}}`); got {got}"
    )


def answering_rule(
    variant: Variant, shape: CacheShape, num_new_tokens: int, prompt_seed: int
) -> AnswerRule | None:
    """The rule of a row that begins to answer with all of its prompt (``shape``); None where its policy does not act.

    Raises:
        BudgetError: the budget cannot be met.
    """
    rule = require_rule(variant.policy.decode_rule(prompt_seed))
    if rule is None:
        return None
    num_slots = answer_slots(variant, shape, num_new_tokens)
    variant.policy.check_answering(shape.num_tokens, num_slots)
    return rule.bounded(shape.num_tokens, num_slots)


def rules_of(variant: Variant, prefilled: Prefilled, prompt: Prompt) -> tuple[AnswerRule | None, ...]:
    """Each question's rule, see `answering_rule`."""
    seed = prefilled.evidence[0].prompt_seed
    return tuple(
        answering_rule(variant, _whole(prefilled, question), question.max_new_tokens, seed)
        for question in prompt.questions
    )


def kept_whole(variant: Variant, prefilled: Prefilled) -> tuple[LayerCache, ...]:
    """The prompt's cache as the rows of ``variant`` begin with it: the full row's own keys and values.

    Raises:
        PolicyError: `Policy.keep_all` left something out.
    """
    kept_L = []
    for layer, evidence in zip(prefilled.layers, prefilled.evidence, strict=True):
        kept = variant.policy.keep_all(layer, evidence)
        if not isinstance(kept, LayerCache) or kept.num_slots_H != layer.num_slots_H:
            raise PolicyError(
                f"{path_of(variant.policy)}: keep_all() must give a LayerCache that keeps every slot"
            )
        kept_L.append(kept)
    return tuple(kept_L)


def needs_to_keep_all(variants: Sequence[Variant]) -> frozenset[Need]:
    """The evidence that any of ``variants`` begins to answer with."""
    needs: set[Need] = set()
    for variant in variants:
        # A policy may be a user's: keeping asks it again, and there the error costs its own rows only.
        with suppress(Exception):
            needs |= variant.policy.needs_to_keep_all()
    return frozenset(needs)


def _whole(prefilled: Prefilled, question: Question) -> CacheShape:
    first = prefilled.layers[0]
    num_tokens = prefilled.evidence[0].num_tokens + len(question.tail_ids)
    return CacheShape(
        num_tokens, len(prefilled.layers), first.num_heads, first.head_dim, first.dtype.itemsize
    )

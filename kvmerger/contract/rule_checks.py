"""The checks of a policy that acts while it answers; one without a decode rule passes them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.contract.case import Case, bits, expect
from kvmerger.contract.decoding import MOST_PERIOD, Decoded, decode_at_random
from kvmerger.contract.layers import NUM_QUERY_HEADS, NUM_TOKENS
from kvmerger.decoding.decode_rule import AnswerRule, require_rule
from kvmerger.decoding.periodic_rule import PeriodicRule


def _rule(case: Case) -> AnswerRule | None:
    rule = require_rule(case.variant().policy.decode_rule(case.seed))
    # A period so short that there is a cut or more.
    return (
        replace(rule, every=max(1, rule.num_queries, MOST_PERIOD)) if isinstance(rule, PeriodicRule) else rule
    )


def _decoded(case: Case, rule: AnswerRule | None, prefix: Sequence[LayerCache]) -> Decoded:
    neighbour = case.prefilled().layers
    return decode_at_random(tuple(prefix), neighbour, rule, NUM_QUERY_HEADS, NUM_TOKENS, case.seed)


def its_decode_rule_holds_as_many_slots_as_before_and_finite_numbers(case: Case) -> None:
    if (rule := _rule(case)) is None:
        return
    decoded = _decoded(case, rule, case.compressed())
    num_slots = decoded.num_slots[rule.room :]
    if isinstance(rule, PeriodicRule):
        most = sum(layer.num_slots for layer in case.compressed())
        expect(
            max(num_slots) <= most, f"slots before the tail, step by step: {num_slots}, and {most} at first"
        )
    else:
        expect(len(set(num_slots)) == 1, f"slots held while the rule acts, step by step: {num_slots}")
    for index, layer in enumerate(decoded.layers):
        is_finite = all(bool(tensor.isfinite().all()) for tensor in layer.tensors())
        expect(is_finite, f"layer {index} has numbers that are not finite after decoding")


def its_decode_rule_gives_the_same_bits_again(case: Case) -> None:
    if (rule := _rule(case)) is None:
        return
    expect(rule == _rule(case), "decode_rule gave another rule for the same prompt the second time")
    # A fresh rule each time, as every prompt of a sweep gets one.
    first, again = (_decoded(case, _rule(case), case.compressed()) for _ in range(2))
    expect(bits(first.layers) == bits(again.layers), "the same tokens were decoded differently again")


def its_decode_rule_changes_its_own_row_only(case: Case) -> None:
    if (rule := _rule(case)) is None:
        return
    shared = case.compressed()
    before = bits(shared)
    beside = _decoded(case, rule, shared).neighbour
    expect(bits(shared) == before, "decoding changed the prefix that all rows of the variant share")
    # With nothing acting, the rows read the same tokens for as long.
    without = _decoded(case, None, shared).neighbour
    is_same = all(torch.equal(ours, theirs) for ours, theirs in zip(beside, without, strict=False))
    expect(is_same, "the row beside the one that acts has other attention outputs than without it")

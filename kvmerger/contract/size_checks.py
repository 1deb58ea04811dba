"""What a policy says of how much it keeps, held against what it keeps: budgets of slots and of bytes go by it."""

from __future__ import annotations

from kvmerger.building import is_uneven, spends_bytes
from kvmerger.contract.case import KEPT_RATIO, Case, expect
from kvmerger.contract.layers import NUM_KV_HEADS, NUM_LAYERS, NUM_TOKENS
from kvmerger.engine.storing import sizes_of

_ALLOWED = int(KEPT_RATIO * NUM_TOKENS)


def keeps_no_more_than_its_budget(case: Case) -> None:
    """Over all layers and heads, unless its budget is an outcome; something is kept."""
    if spends_bytes(case.variant().policy):
        prefilled = case.prefilled()
        most, held = sizes_of(prefilled.layers).read * KEPT_RATIO, sizes_of(case.held(prefilled)).read
        expect(0 < held <= most, f"the budget allows {most:.0f} bytes over all layers, {held} are held")
        return
    kept = sum(layer.num_slots for layer in case.compressed())
    allowed = _ALLOWED * NUM_KV_HEADS * NUM_LAYERS
    is_within = case.variant().policy.budget_is_outcome or kept <= allowed
    expect(is_within, f"the budget allows {allowed} slots over all layers and heads, {kept} were kept")
    expect(kept > 0, "nothing was kept")


def has_log_masses_only_if_it_says_so(case: Case) -> None:
    """What it does not announce, no budget of bytes knows of."""
    if case.variant().policy.adds_log_mass:
        return
    for index, layer in enumerate(case.compressed()):
        expect(
            layer.log_mass_S is None,
            f"layer {index} has log masses, which a budget of bytes does not know of; say so with adds_log_mass = True",
        )


def gives_heads_and_layers_unlike_shares_only_if_it_says_so(case: Case) -> None:
    """No head has more than its even share, unless heads or layers are said to differ."""
    policy = case.variant().policy
    if policy.budget_is_outcome or is_uneven(policy):
        return
    for index, layer in enumerate(case.compressed()):
        expect(
            max(layer.num_slots_H) <= _ALLOWED,
            f"layer {index} keeps {layer.num_slots_H} slots in its heads, {_ALLOWED} each are allowed; say so with "
            f"heads_differ = True (layers_differ, where layers do): a budget of bytes then holds back what the scales of an "
            f"uneven split may take",
        )

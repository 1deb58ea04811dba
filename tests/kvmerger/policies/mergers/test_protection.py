"""How many tokens are protected is what the ratio's decimal says, as everywhere a ratio becomes a number of slots."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import pytest

from kvmerger.budget import KeptRatio, num_slots_for
from kvmerger.merging.protected import protected_ratios
from kvmerger.policies.mergers.kvmerger import KVMerger
from kvmerger.policies.mergers.zeromerge import ZeroMerge


@pytest.mark.parametrize(("ratio", "num_tokens"), [(0.29, 100), (0.57, 100), (0.7, 90), (0.35, 20), (0.5, 7)])
def test_a_ratio_protects_as_many_tokens_as_its_decimal_says(ratio: float, num_tokens: int) -> None:
    expected = floor(Fraction(str(ratio)) * num_tokens)
    policy = KVMerger(recent_ratio=ratio, heavy_ratio=ratio)
    assert policy._num_protected(0.5, num_tokens) == (expected, expected)
    assert ZeroMerge(tail_ratio=ratio)._num_tail(num_tokens) == expected


@pytest.mark.parametrize("num_layers", [30, 32])
@pytest.mark.parametrize("kept", [0.5, 0.35, 0.2])
def test_at_the_shipped_settings_products_of_floats_said_the_same(num_layers: int, kept: float) -> None:
    """So rows computed with them stay valid under their version: the models of the configs have so many layers."""
    policy = KVMerger()
    for num_tokens in range(100, 40_000, 7):
        num_slots = num_slots_for(KeptRatio(kept), num_tokens)
        others = policy._slots_of_other_layers(num_slots, num_tokens, num_layers) / num_tokens
        for ratio in (kept, max(others, 0.0)):
            of_floats = tuple(floor(it * num_tokens) for it in protected_ratios(ratio))
            assert policy._num_protected(ratio, num_tokens) == of_floats
        assert ZeroMerge()._num_tail(num_slots) == floor(ZeroMerge().tail_ratio * num_slots)

"""The spare slot takes what is not to be written, and nothing ever comes back from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvmerger.decoding.decode_rule import DecodeRule, Heirs
from kvmerger.decoding.own_slots import NewToken, OwnSlots, Scores
from kvmerger.kernels.reference.ragged import SlotMass
from kvmerger.policies.decoding.streaming_llm_decode import OldestLeaves
from tests.kvmerger.decoding.test_own_slots import (
    CONTEXT,
    HEAD_DIM,
    NUM_HEADS,
    NUM_LAYERS,
    NUM_STEPS,
    RULES,
    random_prefix,
)


class SharedByAttention(OldestLeaves):
    """Heirs get what they were paid of all attention: 0 / 0 where nothing was read."""

    def heirs(self, step, leaving_LH):
        paid_LHM, column_LHM = step.attention_LHX.masked_fill(~step.is_held_LHX, 0.0).topk(2, dim=2)
        return Heirs(column_LHM, paid_LHM / step.attention_LHX.sum(dim=2, keepdim=True))


@pytest.mark.parametrize("rule", [*RULES.values(), SharedByAttention(3)], ids=lambda it: type(it).__name__)
def test_a_step_that_reads_nothing_changes_no_slot(rule: DecodeRule, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    own = random_own_slots(generator, is_ragged=True)
    before = [tensor.clone() for tensor in slots_of(own)]
    nothing = [SlotMass(torch.zeros(it.num_slots), torch.zeros(NUM_HEADS, 1)) for it in own.layers]
    num_merged = own.replace(rule, random_token(generator, 0), nothing, torch.tensor(False))
    assert num_merged == 0
    assert all(torch.equal(now, then) for now, then in zip(slots_of(own), before, strict=True))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), float("-inf")])
def test_what_is_in_the_spare_slot_is_of_no_account(name: str, junk: float, seed: int) -> None:
    clean, spoilt = (
        random_own_slots(torch.Generator().manual_seed(seed), is_ragged=name != "least_attended")
        for _ in range(2)
    )
    generator = torch.Generator().manual_seed(seed + 1)
    for step in range(NUM_STEPS):
        new = random_token(generator, step)
        mass_L = [
            SlotMass(*(torch.rand(size, generator=generator) for size in (it.num_slots, (NUM_HEADS, 1))))
            for it in clean.layers
        ]
        for tensor in (spoilt._k_FD, spoilt._v_FD, spoilt._score_F):
            tensor[-1] = junk
        spoilt._position_F[-1] = CONTEXT // 2
        assert spoilt.replace(RULES[name], new, mass_L) == clean.replace(RULES[name], new, mass_L)
        for ours, theirs in zip(slots_of(spoilt), slots_of(clean), strict=True):
            assert torch.equal(ours, theirs)


def random_own_slots(generator: torch.Generator, *, is_ragged: bool) -> OwnSlots:
    prefix = random_prefix(generator, torch.float32, is_ragged=is_ragged)
    k_LHTD, v_LHTD = torch.randn(2, NUM_LAYERS, NUM_HEADS, 1, HEAD_DIM, generator=generator)
    tail_score = torch.rand(NUM_LAYERS, NUM_HEADS, 1, generator=generator)
    scores = Scores([layer.score_S for layer in prefix if layer.score_S is not None], tail_score)
    return OwnSlots(prefix, k_LHTD, v_LHTD, CONTEXT, scores)


def random_token(generator: torch.Generator, step: int) -> NewToken:
    k_LHD, v_LHD = torch.randn(2, NUM_LAYERS, NUM_HEADS, HEAD_DIM, generator=generator)
    return NewToken(k_LHD, v_LHD, torch.tensor(CONTEXT + 1 + step), torch.tensor(step))


def slots_of(own: OwnSlots) -> list[Tensor]:
    """All but the spare: keys, values, positions, scores."""
    return [tensor[:-1] for tensor in (own._k_FD, own._v_FD, own._position_F, own._score_F)]

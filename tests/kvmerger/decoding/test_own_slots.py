"""A row's own slots: every rule's every step, bit by bit, against lists of slots, on ragged heads in fp32 and bf16."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.decoding.decode_rule import DecodeRule, DecodeRuleError, Heirs
from kvmerger.decoding.own_slots import NewToken, OwnSlots, Scores
from kvmerger.kernels.reference.ragged import SlotMass
from kvmerger.policies.decoding.cam import ValuesAreHandedOn, uniform
from kvmerger.policies.decoding.h2o_decode import LowestScoreLeaves
from kvmerger.policies.decoding.streaming_llm_decode import OldestLeaves
from kvmerger.policies.decoding.tova_decode import LeastAttendedLeaves
from tests.slow.decoding import Slot, drawn

NUM_LAYERS, NUM_HEADS, HEAD_DIM, NUM_TAIL, NUM_STEPS, CONTEXT = 3, 2, 8, 3, 25, 100
RULES: dict[str, DecodeRule] = {
    "oldest": OldestLeaves(3),
    "lowest_score": LowestScoreLeaves(4),
    "least_attended": LeastAttendedLeaves(),
    "handed_on": ValuesAreHandedOn(OldestLeaves(3), 5, seed=11),
    "handed_on_by_score": ValuesAreHandedOn(LowestScoreLeaves(2), 4, seed=12),
}
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def random_prefix(
    generator: torch.Generator, dtype: torch.dtype, *, is_ragged: bool
) -> tuple[LayerCache, ...]:
    layers = []
    for index in range(NUM_LAYERS):
        slots_H = (9 + index, 17 - index) if is_ragged else (12, 12)
        position = [torch.randperm(CONTEXT, generator=generator)[:count].sort().values for count in slots_H]
        if not is_ragged:
            position[1] = position[0]
        count = sum(slots_H)
        k_SD, v_SD = torch.randn(2, count, HEAD_DIM, generator=generator).to(dtype)
        layers.append(
            LayerCache(
                k_SD, v_SD, torch.cat(position).int(), slots_H, score_S=torch.rand(count, generator=generator)
            )
        )
    return tuple(layers)


def as_lists(layers: tuple[LayerCache, ...]) -> list[list[list[Slot]]]:
    """By layer and head, sorted by position."""
    heads_L = []
    for layer in layers:
        scores = torch.zeros(layer.num_slots) if layer.score_S is None else layer.score_S
        parts = zip(
            *(
                tensor.split(layer.num_slots_H)
                for tensor in (layer.position_S, layer.k_SD, layer.v_SD, scores)
            ),
            strict=True,
        )
        heads_L.append(
            [
                sorted(
                    (Slot(int(p), k, v, float(s)) for p, k, v, s in zip(*part, strict=True)),
                    key=lambda slot: slot.position,
                )
                for part in parts
            ]
        )
    return heads_L


def slow_step(name: str, heads: list[list[Slot]], position: int, layer: int, step: int) -> None:
    """One layer: the new token is in already; fp32 scores, values in their own dtype."""
    for head, slots in enumerate(heads):
        match name:
            case "oldest" | "handed_on":
                gone = next(slot for slot in slots if slot.position >= 3)
            case "lowest_score" | "handed_on_by_score":
                recent = 4 if name == "lowest_score" else 2
                gone = min((s for s in slots if s.position <= position - recent), key=lambda slot: slot.score)
            case _:
                means = [sum(slot.paid for slot in same) / len(heads) for same in zip(*heads, strict=True)]
                gone = slots[means.index(min(means))]
        if name.startswith("handed_on"):
            num_heirs, seed = (5, 11) if name == "handed_on" else (4, 12)
            heirs = [slot for slot in slots if slot.position > gone.position][:num_heirs]
            mean = sum(slot.score for slot in heirs) / len(heirs)
            if drawn(seed, step, layer, head) < min(1.0, gone.score / mean):
                weight = torch.tensor(1.0) / num_heirs
                for slot in heirs:
                    slot.v_D = (slot.v_D.float() + weight * gone.v_D.float()).to(slot.v_D.dtype)
        # TOVA's choice is made once for all heads, so slots go only when every head has chosen.
        gone.position = -1
    for slots in heads:
        slots[:] = [slot for slot in slots if slot.position >= 0]


@dtypes
@pytest.mark.parametrize("name", RULES)
def test_every_step_is_that_of_the_lists(name: str, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rng = random.Random(seed)
    prefix = random_prefix(generator, dtype, is_ragged=name != "least_attended")
    tail_k, tail_v = torch.randn(2, NUM_LAYERS, NUM_HEADS, NUM_TAIL, HEAD_DIM, generator=generator).to(dtype)
    tail_score = torch.rand(NUM_LAYERS, NUM_HEADS, NUM_TAIL, generator=generator)
    scores = Scores([layer.score_S for layer in prefix if layer.score_S is not None], tail_score)
    own = OwnSlots(prefix, tail_k, tail_v, CONTEXT, scores)
    expected = as_lists(prefix)
    for layer, head, index in (
        (layer, head, index)
        for layer in range(NUM_LAYERS)
        for head in range(NUM_HEADS)
        for index in range(NUM_TAIL)
    ):
        expected[layer][head].append(
            Slot(CONTEXT + index, tail_k[layer, head, index], tail_v[layer, head, index],
                 float(tail_score[layer, head, index]))
        )  # fmt: skip
    for step in range(NUM_STEPS):
        position = CONTEXT + NUM_TAIL + step
        k_LHD, v_LHD = torch.randn(2, NUM_LAYERS, NUM_HEADS, HEAD_DIM, generator=generator).to(dtype)
        mass_L = random_mass(own, expected, k_LHD, v_LHD, position, rng)
        new = NewToken(k_LHD, v_LHD, torch.tensor(position), torch.tensor(step))
        own.replace(RULES[name], new, mass_L)
        for layer, heads in enumerate(expected):
            slow_step(name, heads, position, layer, step)
        assert_same(own, expected)


def random_mass(
    own: OwnSlots,
    expected: list[list[list[Slot]]],
    k_LHD: Tensor,
    v_LHD: Tensor,
    position: int,
    rng: random.Random,
) -> list[SlotMass]:
    """Attention of a new token that joins ``expected``: one random number per slot, told to both sides."""
    mass_L = []
    for index, (layer, heads) in enumerate(zip(own.layers, expected, strict=True)):
        prefix_S, itself_H1 = torch.zeros(layer.num_slots), torch.zeros(NUM_HEADS, 1)
        for head, slots in enumerate(heads):
            slots.append(Slot(position, k_LHD[index, head], v_LHD[index, head]))
            for slot in slots:
                slot.paid = torch.tensor(rng.random()).item()
                slot.score = (torch.tensor(slot.score) + slot.paid).item()
                if slot.position == position:
                    itself_H1[head] = slot.paid
                    continue
                part = slice(layer.head_starts[head], layer.head_starts[head] + layer.num_slots_H[head])
                prefix_S[part][layer.position_S[part] == slot.position] = slot.paid
        mass_L.append(SlotMass(prefix_S, itself_H1))
    return mass_L


def assert_same(own: OwnSlots, expected: list[list[list[Slot]]]) -> None:
    for layer in own.layers:
        layer.check_integrity(is_in_order=False)
    for ours_H, theirs_H in zip(as_lists(own.layers), expected, strict=True):
        for ours, theirs in zip(ours_H, theirs_H, strict=True):
            assert [slot.position for slot in ours] == [slot.position for slot in theirs]
            for mine, yours in zip(ours, theirs, strict=True):
                assert torch.equal(mine.k_D, yours.k_D)
                assert torch.equal(mine.v_D, yours.v_D)


class WrongShape(OldestLeaves):
    """Says one number per head."""

    def worth(self, step):
        return super().worth(step)[:, :, 0]


def test_worth_of_another_shape_is_refused_with_the_right_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prefix = random_prefix(generator, torch.float32, is_ragged=True)
    k_LHTD = torch.zeros(NUM_LAYERS, NUM_HEADS, 1, HEAD_DIM)
    own = OwnSlots(prefix, k_LHTD, k_LHTD, CONTEXT, None)
    new = NewToken(k_LHTD[:, :, 0], k_LHTD[:, :, 0], torch.tensor(CONTEXT + 1), torch.tensor(0))
    with pytest.raises(DecodeRuleError, match=r"one number per layer, KV head and column"):
        own.replace(WrongShape(0), new, None)


def test_own_slots_share_no_storage_with_the_prefix_and_keep_its_log_mass(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prefix = tuple(
        LayerCache(
            it.k_SD, it.v_SD, it.position_S, it.num_slots_H, torch.rand(it.num_slots, generator=generator)
        )
        for it in random_prefix(generator, torch.float32, is_ragged=True)
    )
    before = [[tensor.clone() for tensor in layer.tensors()] for layer in prefix]
    k_LHTD = torch.randn(NUM_LAYERS, NUM_HEADS, 2, HEAD_DIM, generator=generator)
    own = OwnSlots(prefix, k_LHTD, k_LHTD, CONTEXT, None)
    for ours, theirs in zip(own.layers, prefix, strict=True):
        assert ours.log_mass_S is not None
        assert theirs.log_mass_S is not None
        for part, slots in zip(
            ours.log_mass_S.split(ours.num_slots_H), theirs.log_mass_S.split(theirs.num_slots_H), strict=True
        ):
            assert torch.equal(part, torch.cat([slots, torch.zeros(2)]))
    new = NewToken(k_LHTD[:, :, 0], k_LHTD[:, :, 0], torch.tensor(CONTEXT + 2), torch.tensor(0))
    own.replace(OldestLeaves(0), new, None)
    for layer, tensors in zip(prefix, before, strict=True):
        assert all(torch.equal(now, then) for now, then in zip(layer.tensors(), tensors, strict=True))


def test_draws_are_uniform_and_depend_on_seed_place_and_count_alone(seed: int) -> None:
    drawn_LH = uniform(seed, (50, 80), torch.tensor(3))
    assert torch.equal(drawn_LH[:7, :9], uniform(seed, (7, 9), torch.tensor(3)))
    assert drawn_LH[4, 6].item() == drawn(seed, 3, 4, 6)
    assert drawn_LH.min() >= 0
    assert drawn_LH.max() < 1
    # 4,000 draws: a mean further off than this, or a tenth this empty, comes once in a million seeds.
    assert abs(drawn_LH.mean().item() - 0.5) < 0.025
    assert drawn_LH.histc(10, 0, 1).min() > 300
    for other in (uniform(seed + 1, (50, 80), torch.tensor(3)), uniform(seed, (50, 80), torch.tensor(4))):
        assert torch.corrcoef(torch.stack([drawn_LH.flatten(), other.flatten()]))[0, 1].abs() < 0.09


class NewestToFirst(OldestLeaves):
    """The token just read leaves at once, and its value goes to the first column."""

    def worth(self, step):
        return -step.position_LHX.float()

    def heirs(self, step, leaving_LH):
        return Heirs(torch.zeros_like(leaving_LH[:, :, None]), torch.ones(*leaving_LH.shape, 1))


def test_a_token_that_leaves_at_once_can_hand_its_value_on(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prefix = random_prefix(generator, torch.float32, is_ragged=True)
    k_LHTD, v_LHTD = torch.randn(2, NUM_LAYERS, NUM_HEADS, 1, HEAD_DIM, generator=generator)
    own = OwnSlots(prefix, k_LHTD, v_LHTD, CONTEXT, None)
    new = NewToken(k_LHTD[:, :, 0] + 1, v_LHTD[:, :, 0] + 1, torch.tensor(CONTEXT + 1), torch.tensor(0))
    own.replace(NewestToFirst(0), new, None)
    for index, (ours, theirs) in enumerate(zip(own.layers, prefix, strict=True)):
        for head, (mine, yours) in enumerate(
            zip(ours.v_SD.split(ours.num_slots_H), theirs.v_SD.split(theirs.num_slots_H), strict=True)
        ):
            assert torch.equal(mine[0], yours[0] + new.v_LHD[index, head])
            assert torch.equal(mine[1:], torch.cat([yours[1:], v_LHTD[index, head]]))

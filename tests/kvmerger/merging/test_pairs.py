"""Rounds of lightest pairs are the merges of one after the other; the released code's pairs are its own."""

import pytest
import torch

from kvmerger.merging.pairs import Round, lowest_pairs, released_pairs
from tests.slow.pairs import slow_lowest_pairs, slow_released_pairs

NUM_TOKENS = 80
GAMMA = 21.5


def masses(seed: int, num_rows: int, num_tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, num_tokens, generator=generator, dtype=torch.float64).mul(2).exp()


def pairs_of(rounds: list[Round], row: int, num_tokens: int) -> list[tuple[int, int]]:
    start = row * num_tokens
    return [
        (left - start, right - start)
        for found in rounds
        for left, right in zip(found.left_P.tolist(), found.right_P.tolist(), strict=True)
        if start <= left < start + num_tokens
    ]


def test_rounds_are_the_merges_of_one_after_the_other(seed: int) -> None:
    mass_RN = masses(seed, 4, NUM_TOKENS)
    num_merges_R = (0, 30, 61, NUM_TOKENS - 1)
    rounds = lowest_pairs(mass_RN, num_merges_R, GAMMA)
    assert len(rounds) < sum(num_merges_R) / 4
    for row, num_merges in enumerate(num_merges_R):
        expected = slow_lowest_pairs(mass_RN[row].tolist(), num_merges, GAMMA)
        assert sorted(pairs_of(rounds, row, NUM_TOKENS)) == sorted(expected)


def test_the_earlier_of_equal_pairs_goes_first(seed: int) -> None:
    # Powers of 2 and no discount to speak of: many pairs weigh the same to the last bit.
    mass_N = torch.randint(0, 2, (NUM_TOKENS,), generator=torch.Generator().manual_seed(seed)).double().exp2()
    rounds = lowest_pairs(mass_N[None], (45,), 1e300)
    assert sorted(pairs_of(rounds, 0, NUM_TOKENS)) == sorted(slow_lowest_pairs(mass_N.tolist(), 45, 1e300))


def test_rounds_can_be_done_in_their_order(seed: int) -> None:
    slots = {token: [token] for token in range(NUM_TOKENS)}
    for left, right in pairs_of(lowest_pairs(masses(seed, 1, NUM_TOKENS), (60,), GAMMA), 0, NUM_TOKENS):
        assert slots[left][-1] + 1 == right, "no neighbours when their turn comes"
        slots[left] += slots.pop(right)
    assert len(slots) == NUM_TOKENS - 60


def test_attention_alone_decides_where_it_differs_most(seed: int) -> None:
    """On a prompt so long that plain weights would underflow."""
    mass_RN = masses(seed, 1, 3000) * 1e-18
    kept = slice(100, 110)
    mass_RN[:, kept] = 1.0
    merged = {right for _, right in pairs_of(lowest_pairs(mass_RN, (2500,), 3000 / 3.9), 0, 3000)}
    assert not merged & set(range(100, 111))


def test_released_pairs_are_those_of_its_calls(seed: int) -> None:
    num_tokens, num_merges = 1700, 1500
    mass_RN = masses(seed, 2, num_tokens)
    before_RN = mass_RN.clone()
    rounds, is_lost_F = released_pairs(mass_RN, num_merges, 300.0)
    assert torch.equal(mass_RN, before_RN)
    for row in range(2):
        calls, lost = slow_released_pairs(mass_RN[row].tolist(), num_merges, 300.0)
        assert len(rounds) == len(calls) == 3
        for found, expected in zip(rounds, calls, strict=True):
            assert pairs_of([found], row, num_tokens) == expected
        assert set(is_lost_F.view(2, -1)[row].nonzero().flatten().tolist()) == lost


@pytest.mark.parametrize("num_merges", [40, 60])
def test_released_pairs_that_overlap_lose_tokens_and_the_exact_ones_none(seed: int, num_merges: int) -> None:
    # A valley: the lightest pairs lie side by side.
    mass_RN = masses(seed, 1, NUM_TOKENS)
    mass_RN[:, 5:65] *= 1e-6
    rounds, is_lost_F = released_pairs(mass_RN, num_merges, 1e6)
    assert int(is_lost_F.sum()) > 0
    assert len(pairs_of(rounds, 0, NUM_TOKENS)) + int(is_lost_F.sum()) == num_merges
    assert len(pairs_of(lowest_pairs(mass_RN, (num_merges,), 1e6), 0, NUM_TOKENS)) == num_merges

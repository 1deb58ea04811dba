"""Which adjacent slots become one, two at a time: always the pair of lowest weight, down to an exact number of slots.

A slot of l tokens that get M of the attention weighs, with the slot after it, (M + M')·(l + l') ÷ exp(place ÷ gamma), place
being that of its first token (AsymKV, arXiv 2506.05410). A merge makes the pairs beside it heavier. So a pair lighter than
both beside it is merged before either of these, whatever else happens: all such pairs go at once, in rounds, and give the
same slots as one merge after the other.

Shapes: R rows (heads, or layers whose heads share slots), N tokens, F = R·N flat tokens, S slots that are left, all rows
together, P pairs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kvmerger.device import upload
from kvmerger.kernels.dispatch import is_among_highest

# Of the released code: pairs that one call merges at most (the prompt's blocks), and what a slot's tokens are clipped to.
RELEASED_PAIRS = 512
RELEASED_LENGTH = 5
# Between two looks at whether more are needed, each of which waits for the device.
_ROUNDS_PER_LOOK = 16


class Round(NamedTuple):
    """Merges of which no two share a slot: int64 (P,), the first tokens of slots that stay and of those that join them."""

    left_P: Tensor
    right_P: Tensor


class _Chain(NamedTuple):
    """The slots that are left, row by row, and behind them what is none: first flat token of each (F: none), its attention,
    its tokens, and how many of them are marked as kept.
    """

    first_S: Tensor
    mass_S: Tensor
    length_S: Tensor
    kept_S: Tensor

    def merged(self, is_merged_P: Tensor, none: int) -> _Chain:
        """With the marked pairs, of which no two share a slot, as one slot each; as long as before."""
        is_gone_S = torch.cat([is_merged_P.new_zeros(1), is_merged_P])
        place_S = ((~is_gone_S).cumsum(0) - 1).masked_fill(is_gone_S, is_gone_S.numel())
        filled = []
        for x_S, beyond in zip(self, (none, 1, 1, 0), strict=True):
            summed_S = x_S.clone()
            if x_S is not self.first_S:
                summed_S[:-1] += x_S[1:].masked_fill(~is_merged_P, 0)
            # One place more than there are slots: those that are gone go there, and nobody reads it.
            filled.append(x_S.new_full((x_S.numel() + 1,), beyond).scatter_(0, place_S, summed_S)[:-1])
        return _Chain(*filled)


class _Found(NamedTuple):
    """Of each flat token, and of one that is none: at what weight its slot joined which one before it, in which round."""

    height_F: Tensor
    left_F: Tensor
    round_F: Tensor


def lowest_pairs(
    mass_RN: Tensor, num_merges_R: tuple[int, ...], gamma: float, is_kept_RN: Tensor | None = None
) -> list[Round]:
    """The merges of the lowest pair, then of the then lowest one, and so on, ``num_merges_R[r]`` times in row r.

    Waits for the device once in 16 rounds; random attention takes 7 at half of the slots, 20 at a fiftieth.

    Args:
        mass_RN: attention of each token, any float, positive.
        num_merges_R: 0 to N − 1.
        gamma: tokens after which a pair counts e times less.
        is_kept_RN: bool; two slots with a marked token each are never merged, and a row ends where all others are.

    Returns:
        Rounds of flat indices, in an order in which they can be done. Ties go to the earlier pair.
    """
    mass_F = mass_RN.double().flatten()
    num_flat, num_tokens = mass_F.numel(), mass_RN.shape[1]
    kept_F = torch.zeros_like(mass_F) if is_kept_RN is None else is_kept_RN.flatten().double()
    own_F = torch.arange(num_flat, device=mass_F.device)
    chain = _Chain(own_F, mass_F, torch.ones_like(mass_F), kept_F)
    found = _Found(
        mass_F.new_full((num_flat + 1,), math.inf),
        own_F.new_zeros(num_flat + 1),
        own_F.new_zeros(num_flat + 1),
    )
    asked_R = upload(torch.tensor(num_merges_R), mass_F.device)
    num_rounds = 0
    while True:
        for _ in range(_ROUNDS_PER_LOOK):
            chain = _round(chain, found, asked_R, num_tokens, gamma, num_rounds)
            num_rounds += 1
        # What was found goes beyond what is asked: a light pair somewhere is no reason to merge a lowest one elsewhere. In
        # no row is a merge lighter than those that it rests on, so the lightest of a row rest on none that is left out.
        height_RN = found.height_F[:-1].view_as(mass_RN)
        is_merge_F = (is_among_highest(-height_RN, num_merges_R) & height_RN.isfinite()).flatten()
        round_F = found.round_F[:-1].masked_fill(~is_merge_F, num_rounds)
        # Atomics, but on whole numbers: in any order they give one sum.
        count_X = own_F.new_zeros(num_rounds + 1).scatter_add_(0, round_F, torch.ones_like(round_F))
        is_open_R = _lightest(chain, found, asked_R, num_tokens, gamma).is_open_R
        num_left = (chain.first_S < num_flat).sum()
        *counts, _, is_open, left = torch.cat([count_X, is_open_R.any()[None], num_left[None]]).tolist()
        if not is_open:
            break
        chain = _Chain(*(x_S[:left] for x_S in chain))
    # Stable: by rounds, and within each in the tokens' order.
    right_X = round_F.sort(stable=True).indices[: sum(counts)]
    return [Round(found.left_F[right_P], right_P) for right_P in right_X.split(counts) if right_P.numel()]


class _Lightest(NamedTuple):
    """Weights of all pairs, inf where there is none, and the rows that have not settled as many merges as asked."""

    height_P: Tensor
    row_P: Tensor
    is_open_R: Tensor


def _lightest(chain: _Chain, found: _Found, asked_R: Tensor, num_tokens: int, gamma: float) -> _Lightest:
    num_rows = asked_R.numel()
    row_P, next_P = chain.first_S[:-1] // num_tokens, chain.first_S[1:] // num_tokens
    height_P = _heights(chain.mass_S, chain.length_S, chain.first_S[:-1] % num_tokens, gamma)
    # A pair that a merge bars has become heavier too: what the module says of the order holds with them.
    is_barred_P = (row_P != next_P) | (next_P == num_rows) | (chain.kept_S[:-1] + chain.kept_S[1:] > 1)
    height_P = height_P.masked_fill(is_barred_P, math.inf)
    # A minimum is the same in whatever order the device takes it. Behind the rows: that of what is no slot.
    least_R = height_P.new_full((num_rows + 1,), math.inf).scatter_reduce(0, row_P, height_P, "amin")[:-1]
    # No merge to come is lighter than a row's lightest pair now: what is lighter is settled.
    height_RN = found.height_F[:-1].view(num_rows, num_tokens)
    num_settled_R = (height_RN < least_R[:, None]).sum(dim=1)
    return _Lightest(height_P, row_P, (num_settled_R < asked_R) & least_R.isfinite())


def _round(
    chain: _Chain, found: _Found, asked_R: Tensor, num_tokens: int, gamma: float, number: int
) -> _Chain:
    """Merge every pair that is lighter than both beside it, in rows that are not done, and note it in ``found``."""
    none = found.height_F.numel() - 1
    height_P, row_P, is_open_R = _lightest(chain, found, asked_R, num_tokens, gamma)
    is_open_P = torch.cat([is_open_R, is_open_R.new_zeros(1)])[row_P] & height_P.isfinite()
    beyond_1 = height_P.new_full((1,), math.inf)
    before_P, after_P = torch.cat([beyond_1, height_P[:-1]]), torch.cat([height_P[1:], beyond_1])
    is_lowest_P = (height_P < before_P) & (height_P <= after_P) & is_open_P
    # What is not merged is noted at the token that is none.
    right_P = chain.first_S[1:].masked_fill(~is_lowest_P, none)
    found.height_F.scatter_(0, right_P, height_P)
    found.left_F.scatter_(0, right_P, chain.first_S[:-1])
    found.round_F.scatter_(0, right_P, number)
    return chain.merged(is_lowest_P, none)


def released_pairs(mass_RN: Tensor, num_merges: int, gamma: float) -> tuple[list[Round], Tensor]:
    """What the released code of AsymKV and KVSlimmer does: up to 512 pairs at once, whether or not they share a slot.

    Of pairs in a row the first is merged, the second member of each later one is lost. A slot's tokens count 5 at most, and
    the place of a pair is that among the slots left.

    Args:
        mass_RN: as for `lowest_pairs`.
        num_merges: slots that every row has less in the end.
        gamma: as for `lowest_pairs`.

    Returns:
        Rounds, and bool (F,), True at the first token of each slot that was lost.
    """
    num_rows, num_tokens = mass_RN.shape
    first_RS = torch.arange(num_rows * num_tokens, device=mass_RN.device).view(num_rows, num_tokens)
    mass_RS = mass_RN.double().clone()
    length_RS = torch.ones_like(mass_RS)
    is_lost_F = torch.zeros(num_rows * num_tokens, dtype=torch.bool, device=mass_RN.device)
    rounds = []
    while num_merges > 0:
        num_pairs = min(num_merges, RELEASED_PAIRS)
        place_P = torch.arange(1, mass_RS.shape[1], device=mass_RN.device)
        height_RP = _heights(mass_RS, length_RS, place_P, gamma)
        is_pair_RP = is_among_highest(-height_RP, (num_pairs,) * num_rows)
        is_gone_RS = torch.cat([is_pair_RP.new_zeros(num_rows, 1), is_pair_RP], dim=1)
        is_merge_RP = is_pair_RP & ~is_gone_RS[:, :-1]
        is_lost_F[first_RS[:, 1:][is_pair_RP & ~is_merge_RP]] = True
        rounds.append(Round(first_RS[:, :-1][is_merge_RP], first_RS[:, 1:][is_merge_RP]))
        for x_RS in (mass_RS, length_RS):
            x_RS[:, :-1] += x_RS[:, 1:].clone().masked_fill(~is_merge_RP, 0.0)
        first_RS, mass_RS, length_RS = (
            x_RS[~is_gone_RS].view(num_rows, -1) for x_RS in (first_RS, mass_RS, length_RS)
        )
        length_RS = length_RS.clamp_max(RELEASED_LENGTH)
        num_merges -= num_pairs
    return rounds, is_lost_F


def _heights(mass_RS: Tensor, length_RS: Tensor, place_P: Tensor, gamma: float) -> Tensor:
    """Logarithms of the pairs' weights, fp64 (…, P): the weights themselves underflow on long prompts."""
    mass_RP, length_RP = (x_RS[..., :-1] + x_RS[..., 1:] for x_RS in (mass_RS, length_RS))
    return mass_RP.log() + length_RP.log() - place_P / gamma

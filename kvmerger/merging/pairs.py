"""Which adjacent slots become one, two at a time: always the pair of lowest weight, down to an exact number of slots.

A slot of l tokens that get M of the attention weighs, with the slot after it, (M + M')·(l + l') ÷ exp(place ÷ gamma), place
being that of its first token (AsymKV, arXiv 2506.05410). A merge makes the pairs beside it heavier. So a pair lighter than
both beside it is merged before either of these, whatever else happens: all such pairs go at once, in rounds, and give the
same slots as one merge after the other.

Shapes: R rows (heads, or layers whose heads share slots), N tokens, F = R·N flat tokens, S slots that are left, all rows
together, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kvmerger.device import upload
from kvmerger.kernels.dispatch import is_among_highest
from kvmerger.kernels.reference.ranking import marked_places

# Of the released code: pairs that one call merges at most (the prompt's blocks), and what a slot's tokens are clipped to.
RELEASED_PAIRS = 512
RELEASED_LENGTH = 5


class Round(NamedTuple):
    """Merges of which no two share a slot: int64 (P,), the first tokens of slots that stay and of those that join them."""

    left_P: Tensor
    right_P: Tensor


class _Chain(NamedTuple):
    """The slots that are left, row by row: first flat token, attention and number of tokens of each."""

    first_S: Tensor
    mass_S: Tensor
    length_S: Tensor

    def merged(self, is_merged_P: Tensor, num_merged: int) -> _Chain:
        """With the marked pairs, of which no two share a slot, as one slot each."""
        place_P = marked_places(is_merged_P, num_merged)
        is_left_S = torch.ones_like(self.first_S, dtype=torch.bool)
        is_left_S[place_P + 1] = False
        left_S = marked_places(is_left_S, is_left_S.numel() - num_merged)
        mass_S, length_S = self.mass_S.clone(), self.length_S.clone()
        for x_S in (mass_S, length_S):
            # What is read stands beside what is written, and is written nowhere: no two pairs share a slot.
            x_S[place_P] += x_S[place_P + 1]
        return _Chain(self.first_S[left_S], mass_S[left_S], length_S[left_S])


def lowest_pairs(mass_RN: Tensor, num_merges_R: tuple[int, ...], gamma: float) -> list[Round]:
    """The merges of the lowest pair, then of the then lowest one, and so on, ``num_merges_R[r]`` times in row r.

    Args:
        mass_RN: attention of each token, any float, positive.
        num_merges_R: 0 to N − 1.
        gamma: tokens after which a pair counts e times less.

    Returns:
        Rounds of flat indices, in an order in which they can be done. Ties go to the earlier pair.
    """
    num_rows, num_tokens = mass_RN.shape
    height_F = mass_RN.new_full((num_rows * num_tokens,), float("inf"), dtype=torch.float64)
    rounds = []
    for found, height_P in _rounds(mass_RN, num_merges_R, gamma, height_F):
        height_F[found.right_P] = height_P
        rounds.append(found)
    # What was found goes beyond what is asked: a light pair somewhere is no reason to merge a lowest one elsewhere. In no
    # row is a merge lighter than those that it rests on, so the lightest of a row rest on none that is left out.
    height_RN = height_F.view(num_rows, num_tokens)
    is_merge_F = (is_among_highest(-height_RN, num_merges_R) & height_RN.isfinite()).flatten()
    accepted = (is_merge_F[found.right_P] for found in rounds)
    return [
        Round(found.left_P[is_in_P], found.right_P[is_in_P])
        for found, is_in_P in zip(rounds, accepted, strict=True)
    ]


def _rounds(
    mass_RN: Tensor, num_merges_R: tuple[int, ...], gamma: float, height_F: Tensor
) -> Iterator[tuple[Round, Tensor]]:
    """Rounds, and the weight of each merge, until no lighter one than the asked ones can come; reads what it gave so far."""
    num_rows, num_tokens = mass_RN.shape
    asked_R = upload(torch.tensor(num_merges_R), mass_RN.device)
    mass_F = mass_RN.double().flatten()
    chain = _Chain(torch.arange(mass_F.numel(), device=mass_F.device), mass_F, torch.ones_like(mass_F))
    while True:
        row_P = chain.first_S[:-1] // num_tokens
        height_P = _heights(chain.mass_S, chain.length_S, chain.first_S[:-1] % num_tokens, gamma)
        height_P = height_P.masked_fill(row_P != chain.first_S[1:] // num_tokens, float("inf"))
        # A minimum is the same in whatever order the device takes it.
        least_R = height_P.new_full((num_rows,), float("inf")).scatter_reduce(0, row_P, height_P, "amin")
        # No merge to come is lighter than a row's lightest pair now: what is lighter is settled.
        num_settled_R = (height_F.view(num_rows, num_tokens) < least_R[:, None]).sum(dim=1)
        is_open_P = (num_settled_R < asked_R)[row_P] & height_P.isfinite()
        beyond_1 = height_P.new_full((1,), float("inf"))
        before_P, after_P = torch.cat([beyond_1, height_P[:-1]]), torch.cat([height_P[1:], beyond_1])
        is_lowest_P = (height_P < before_P) & (height_P <= after_P) & is_open_P
        num_found = int(is_lowest_P.sum())
        if num_found == 0:
            return
        place_P = marked_places(is_lowest_P, num_found)
        yield Round(chain.first_S[place_P], chain.first_S[place_P + 1]), height_P[place_P]
        chain = chain.merged(is_lowest_P, num_found)


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

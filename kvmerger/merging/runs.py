"""Which adjacent tokens become one: protected tokens out, links between neighbours, runs of linked tokens.

A link joins tokens i and i+1 of one head; a merging set is a maximal run of links, so every accepted link removes
exactly one slot. A token without links is a run of its own. Reductions over runs have a fixed order and no float atomics.

Shapes: H KV heads, N tokens, R runs of all heads together, F = H·N flat tokens, X anything.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kvmerger.kernels import dispatch
from kvmerger.kernels.dispatch import is_among_highest
from kvmerger.kernels.reference.ranking import marked_places

Links = Literal["cosine", "random", "low_mass", "cosine_low_mass"]
LINKS = ("cosine", "random", "low_mass", "cosine_low_mass")


class Runs(NamedTuple):
    """A partition of every head's tokens into runs of consecutive ones, in flat order.

    length_R: int64, tokens of each run. run_F: int64, the run of each flat token (ascending).
    num_runs_H: runs of each head.
    """

    length_R: Tensor
    run_F: Tensor
    num_runs_H: tuple[int, ...]


def protect(mass_HN: Tensor, num_recent: int, num_heavy: int) -> Tensor:
    """The last ``num_recent`` tokens and, of the others, the ``num_heavy`` with most attention mass: bool (H, N)."""
    num_heads, num_tokens = mass_HN.shape
    is_recent_N = torch.arange(num_tokens, device=mass_HN.device) >= num_tokens - num_recent
    # Recent tokens are out of the contest, or a heavy one among them would cost an older token its protection.
    others_HN = mass_HN.masked_fill(is_recent_N, float("-inf"))
    return is_among_highest(others_HN, (num_heavy,) * num_heads) | is_recent_N


def eligible_links(is_protected_HN: Tensor) -> Tensor:
    """Links whose two ends are both unprotected: bool (H, N-1)."""
    return ~(is_protected_HN[:, :-1] | is_protected_HN[:, 1:])


def highest_links(scores_HN: Tensor, is_eligible_HN: Tensor, num_links_H: tuple[int, ...]) -> Tensor:
    """Each head's ``num_links_H[h]`` eligible links of highest score: bool (H, N-1). Ties go to the earlier link.

    Fewer are marked where a head has fewer eligible links.
    """
    # The mask is needed twice: where a head has too few eligible links, −inf ones are among its highest too.
    candidates_HN = scores_HN.masked_fill(~is_eligible_HN, float("-inf"))
    return is_among_highest(candidates_HN, num_links_H) & is_eligible_HN


def runs_of(is_link_HN: Tensor) -> Runs:
    """The runs that the links (bool, (H, N-1)) join. Waits for the device, which alone knows how many there are.

    Raises:
        ValueError: the links are no bools of two dimensions.
    """
    if is_link_HN.dim() != 2 or is_link_HN.dtype != torch.bool:
        raise ValueError(f"links must be bools (H, N-1), got {is_link_HN.dtype} {tuple(is_link_HN.shape)}")
    num_heads = is_link_HN.shape[0]
    # A head's first token always starts a run: in flat order no run crosses from one head into the next.
    is_start_HN = torch.cat([is_link_HN.new_ones(num_heads, 1), ~is_link_HN], dim=1)
    is_start_F = is_start_HN.flatten()
    num_runs_H = tuple(is_start_HN.sum(dim=1).tolist())
    first_R = marked_places(is_start_F, sum(num_runs_H))
    length_R = first_R.diff(append=first_R.new_full((1,), is_start_F.numel()))
    return Runs(length_R, is_start_F.cumsum(0) - 1, num_runs_H)


def run_sums(values_FX: Tensor, runs: Runs) -> Tensor:
    """Sum of each run: fp32 (F, …) → (R, …). ValueError where there are not as many values as members."""
    _require_one_each(values_FX, runs)
    return dispatch.segment_sums(values_FX, runs.length_R)


def run_maxima(values_F: Tensor, runs: Runs) -> Tensor:
    """Largest value of each run: (F,) → (R,). ValueError where there are not as many values as members."""
    _require_one_each(values_F, runs)
    return dispatch.segment_maxima(values_F, runs.length_R)


def first_argmax(values_F: Tensor, runs: Runs) -> Tensor:
    """Flat index of each run's largest value, the first one on ties: (F,) → int64 (R,).

    Raises:
        ValueError: there are not as many values as members.
    """
    _require_one_each(values_F, runs)
    return dispatch.first_argmax(values_F, runs.length_R, runs.run_F)


def _require_one_each(values_FX: Tensor, runs: Runs) -> None:
    # A kernel goes by the runs' lengths: with fewer values it would read what lies behind them in memory.
    if values_FX.shape[0] != runs.run_F.shape[0]:
        raise ValueError(
            f"the runs have {runs.run_F.shape[0]} members, and there are {values_FX.shape[0]} values for them"
        )


def link_scores(
    kind: Links, cosine_HN: Tensor, mass_HN: Tensor, random_HN: Tensor, is_eligible_HN: Tensor
) -> Tensor:
    """How early each link is accepted: fp32 (H, N-1), highest first.

    Args:
        kind: ``cosine`` of the two keys; ``random``; ``low_mass``: least attention to the two tokens together;
            ``cosine_low_mass``: least sum of a link's ranks by the two, both among the head's eligible links.
        cosine_HN: fp32 (H, N-1), of each key with the next.
        mass_HN: fp32 (H, N) attention mass.
        random_HN: fp32 (H, N); the last column is not used.
        is_eligible_HN: bool (H, N-1).
    """
    if kind == "cosine":
        return cosine_HN
    if kind == "random":
        return random_HN[:, :-1]
    minus_mass_HN = -(mass_HN[:, :-1] + mass_HN[:, 1:])
    if kind == "low_mass":
        return minus_mass_HN
    # Ranks, since cosines and masses have no common scale.
    ranks = [_rank(scores_HN, is_eligible_HN) for scores_HN in (cosine_HN, minus_mass_HN)]
    return -(ranks[0] + ranks[1]).float()


def _rank(scores_HN: Tensor, is_eligible_HN: Tensor) -> Tensor:
    """0 for the highest eligible score of a row; ties go to the earlier column: int64 (H, N-1)."""
    order_HN = (
        scores_HN.masked_fill(~is_eligible_HN, float("-inf"))
        .sort(dim=1, descending=True, stable=True)
        .indices
    )
    place_HN = torch.arange(scores_HN.shape[1], device=scores_HN.device).expand_as(order_HN)
    return torch.empty_like(order_HN).scatter_(1, order_HN, place_HN)

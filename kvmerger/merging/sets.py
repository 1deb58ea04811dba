"""Which adjacent tokens become one: protected tokens out, links between neighbours, runs of linked tokens.

A link joins tokens i and i+1 of one head; a merging set is a maximal run of links, so every accepted link removes
exactly one slot. A token without links is a run of its own.

Shapes: H KV heads, N tokens, R runs of all heads together, F = H·N flat tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kvmerger.kernels.dispatch import is_among_highest
from kvmerger.kernels.reference.ranking import marked_places


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
    others_HN = mass_HN.masked_fill(is_recent_N, float("-inf"))
    return is_among_highest(others_HN, (num_heavy,) * num_heads) | is_recent_N


def eligible_links(is_protected_HN: Tensor) -> Tensor:
    """Links whose two ends are both unprotected: bool (H, N-1)."""
    return ~(is_protected_HN[:, :-1] | is_protected_HN[:, 1:])


def highest_links(scores_HN: Tensor, is_eligible_HN: Tensor, num_links_H: tuple[int, ...]) -> Tensor:
    """Each head's ``num_links_H[h]`` eligible links of highest score: bool (H, N-1). Ties go to the earlier link.

    Fewer are marked where a head has fewer eligible links.
    """
    candidates_HN = scores_HN.masked_fill(~is_eligible_HN, float("-inf"))
    return is_among_highest(candidates_HN, num_links_H) & is_eligible_HN


def runs_of(is_link_HN: Tensor) -> Runs:
    """The runs that the links (bool, (H, N-1)) join; no run crosses from one head into the next."""
    num_heads = is_link_HN.shape[0]
    is_start_HN = torch.cat([is_link_HN.new_ones(num_heads, 1), ~is_link_HN], dim=1)
    is_start_F = is_start_HN.flatten()
    num_runs_H = tuple(is_start_HN.sum(dim=1).tolist())
    first_R = marked_places(is_start_F, sum(num_runs_H))
    length_R = first_R.diff(append=first_R.new_full((1,), is_start_F.numel()))
    return Runs(length_R, is_start_F.cumsum(0) - 1, num_runs_H)

"""Which tokens end in which slot: every kept token with the dropped tokens that merge into it.

A dropped token that is in no group is evicted. Groups stand in the order of their kept tokens, so that positions ascend
within each head.

Shapes: H KV heads, N tokens, F = H·N flat tokens, M tokens in groups, S groups of all heads together (slots).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kvmerger.kernels.reference.nearest import EVICTED
from kvmerger.kernels.reference.ranking import marked_places
from kvmerger.merging.sets import Runs


class Groups(NamedTuple):
    """A partition of the merged and kept tokens into slots.

    member_M: int64 flat index of each member, group by group and ascending within a group. runs: which stretch of the
    members is which group. target_S: int64 flat index of the kept token each group merges into, one of its members.
    """

    member_M: Tensor
    runs: Runs
    target_S: Tensor

    @property
    def target_M(self) -> Tensor:
        """Flat index of each member's target."""
        return self.target_S[self.runs.run_F]

    @property
    def is_target_M(self) -> Tensor:
        """Whether a member is the kept token itself."""
        return self.member_M == self.target_M


def groups_of(target_HN: Tensor) -> Groups:
    """Group tokens by target: int64 (H, N), a token of the same head, itself for kept tokens, or `EVICTED`."""
    num_heads, num_tokens = target_HN.shape
    column_N = torch.arange(num_tokens, device=target_HN.device)
    is_member_HN, is_kept_HN = target_HN != EVICTED, target_HN == column_N
    # The one time that the device is waited for: how many slots and members there are.
    num_slots_H, num_members_H = torch.stack([is_kept_HN.sum(dim=1), is_member_HN.sum(dim=1)]).tolist()
    num_slots = sum(num_slots_H)
    member_M = marked_places(is_member_HN.flatten(), sum(num_members_H))
    slot_F = is_kept_HN.flatten().cumsum(0) - 1
    head_start_H1 = torch.arange(num_heads, device=target_HN.device)[:, None] * num_tokens
    slot_M = slot_F[(target_HN + head_start_H1).flatten()[member_M]]
    # Stable: members stay in the prompt's order, so that sums are taken in one order every time.
    run_M, order_M = slot_M.sort(stable=True)
    length_S = run_M.new_zeros(num_slots).scatter_add_(0, run_M, torch.ones_like(run_M))
    target_S = marked_places(is_kept_HN.flatten(), num_slots)
    return Groups(member_M[order_M], Runs(length_S, run_M, tuple(num_slots_H)), target_S)


def whole_runs(runs: Runs, pivot_R: Tensor) -> Groups:
    """Every run of a partition of all tokens as a group around its pivot."""
    return Groups(torch.arange(runs.run_F.numel(), device=runs.run_F.device), runs, pivot_R)

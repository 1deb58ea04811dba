"""What merging computes, in plain torch: the definition that other kernels are tested against.

Fixed order, no float atomics: the same input gives the same bits on every call.

Shapes: H KV heads, N tokens, F = H·N flat tokens, G other rows, D head size, M members of all groups or pairs, S groups
(slots), R runs, X anything.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kvmerger.cache.layer_cache import LayerCache


def segment_sums(values_FX: Tensor, length_R: Tensor) -> Tensor:
    """Sum of each stretch of ``length_R`` values, one after the other: (F, …) → (R, …)."""
    return _reduced(values_FX, "sum", length_R)


def segment_maxima(values_F: Tensor, length_R: Tensor) -> Tensor:
    """Largest value of each stretch: (F,) → (R,)."""
    return _reduced(values_F, "max", length_R)


def first_argmax(values_F: Tensor, length_R: Tensor, run_F: Tensor) -> Tensor:
    """Index of each stretch's largest value, the first one on ties: (F,) → int64 (R,). run_F: each value's stretch.

    Where a NaN is among the values it is one of the stretch's places, no matter which.
    """
    # The least index of those equal to the largest: which of equals an argmax takes is open.
    largest_R = segment_maxima(values_F, length_R)
    index_F = torch.arange(values_F.numel(), device=values_F.device)
    not_largest = values_F.numel()
    candidate_F = torch.where(values_F == largest_R[run_F], index_F, not_largest)
    first_R = torch.full_like(length_R, not_largest)
    first_R.scatter_reduce_(0, run_F, candidate_F, "amin")
    # NaN equals nothing, itself included: without this its stretch would have a place behind all values.
    return torch.minimum(first_R, length_R.cumsum(0) - 1)


def row_norms(x_FD: Tensor) -> Tensor:
    """L2 norm of every row: fp32 (F,)."""
    return x_FD.float().norm(dim=1)


def pair_distances(x_FD: Tensor, first_M: Tensor, second_M: Tensor) -> Tensor:
    """L2 distance of the rows ``first_M`` from the rows ``second_M`` (int64): fp32 (M,)."""
    return (x_FD[first_M].float() - x_FD[second_M].float()).norm(dim=1)


def pair_cosines(x_FD: Tensor, first_M: Tensor, second_M: Tensor, other_GD: Tensor | None = None) -> Tensor:
    """Cosine of the rows ``first_M`` with the rows ``second_M`` (int64): fp32 (M,), 0 with a row of zeros.

    The second are rows of ``other_GD``, or of ``x_FD`` where that is None.
    """
    second_MD = (x_FD if other_GD is None else other_GD)[second_M].float()
    return torch.cosine_similarity(x_FD[first_M].float(), second_MD, dim=1)


def mean_units(x_HND: Tensor) -> Tensor:
    """Mean of each head's rows, each divided by its norm: fp32 (H, D)."""
    return F.normalize(x_HND.float(), dim=-1).mean(dim=1)


def merged_slots(
    layer: LayerCache,
    member_M: Tensor,
    length_S: Tensor,
    target_S: Tensor,
    num_slots_H: tuple[int, ...],
    key_weight_M: Tensor | None,
    value_weight_M: Tensor | None,
) -> LayerCache:
    """One slot for each group, at its target's position: the weighted sums of its members' keys and values.

    Sums are taken in fp32, member after member, and rounded once. Groups of one pass through bit for bit.

    Args:
        member_M: int64 flat slot of each member, group by group.
        length_S: int64 members of each group.
        target_S: int64 flat slot of each group's target, one of its members.
        num_slots_H: groups of each head.
        key_weight_M, value_weight_M: fp32; None keeps the targets' own.
    """
    targets = layer.take(target_S, num_slots_H)

    def merged(x_FD: Tensor, own_SD: Tensor, weight_M: Tensor | None) -> Tensor:
        if weight_M is None:
            return own_SD
        x_SD = segment_sums(weight_M[:, None] * x_FD[member_M].float(), length_S)
        return torch.where((length_S > 1)[:, None], x_SD.to(own_SD.dtype), own_SD)

    return LayerCache(
        merged(layer.k_SD, targets.k_SD, key_weight_M),
        merged(layer.v_SD, targets.v_SD, value_weight_M),
        targets.position_S,
        num_slots_H,
    )


def _reduced(values_FX: Tensor, kind: str, length_R: Tensor) -> Tensor:
    # unsafe: torch would fetch the lengths to check them, twice; runs are a partition.
    return torch.segment_reduce(values_FX, kind, lengths=length_R, axis=0, unsafe=True)

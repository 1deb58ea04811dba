"""The kept token that each dropped one is merged into: the most similar, the one before or after, the heaviest of its run.

Targets are int64 (H, N): a kept token of the same head, itself for kept tokens, or `EVICTED`. Cosines are fp32 (H, N) and
1 for kept tokens. Nothing of size N × N is ever held.

Shapes: H KV heads, N tokens, D head size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kvmerger.kernels import dispatch
from kvmerger.kernels.reference.nearest import EVICTED, NO_COSINE
from kvmerger.merging.runs import Runs, first_argmax


class Targets(NamedTuple):
    """Where each token goes, and the cosine of its key with that token's."""

    target_HN: Tensor
    cosine_HN: Tensor

    def only(self, is_accepted_HN: Tensor) -> Targets:
        """The same with every dropped token evicted that is not accepted (bool, (H, N))."""
        is_kept_HN = self.target_HN == own_index(self.target_HN)
        target_HN = self.target_HN.masked_fill(~(is_accepted_HN | is_kept_HN), EVICTED)
        return Targets(target_HN, self.cosine_HN)


def own_index(like_HN: Tensor) -> Tensor:
    """Every token's own index within its head: int64 (H, N)."""
    return torch.arange(like_HN.shape[1], device=like_HN.device).expand(like_HN.shape)


def most_similar_kept(k_HND: Tensor, is_kept_HN: Tensor, num_layers: int = 1) -> Targets:
    """The kept token of the head whose key has the highest cosine; ties go to the earlier token.

    ``num_layers`` layers of a stack are searched one by one.
    """
    _require_marks(k_HND, is_kept_HN)
    # One search over all heads of the stack would be a matrix product of another shape, which rounds differently.
    target_HN, cosine_HN = dispatch.most_similar_kept(k_HND, is_kept_HN, num_layers)
    return _with_kept_at_home(target_HN, cosine_HN, is_kept_HN)


def more_similar_neighbour(k_HND: Tensor, is_kept_HN: Tensor) -> Targets:
    """Of the last kept token before and the first one after, that whose key has the higher cosine; ties go back."""
    _require_marks(k_HND, is_kept_HN)
    before_HN, after_HN = last_kept_before(is_kept_HN), first_kept_after(is_kept_HN)
    cosine_before_HN, cosine_after_HN = (_cosine_with(k_HND, index) for index in (before_HN, after_HN))
    is_after_HN = cosine_after_HN > cosine_before_HN
    return _with_kept_at_home(
        torch.where(is_after_HN, after_HN, before_HN),
        torch.where(is_after_HN, cosine_after_HN, cosine_before_HN),
        is_kept_HN,
    )


def last_kept_before(is_kept_HN: Tensor) -> Tensor:
    """Each token's nearest kept one at or before it, or `EVICTED`: int64 (H, N)."""
    # `EVICTED` is below every index, so a running maximum passes over dropped tokens.
    return own_index(is_kept_HN).masked_fill(~is_kept_HN, EVICTED).cummax(dim=1).values


def first_kept_after(is_kept_HN: Tensor) -> Tensor:
    """Each token's nearest kept one at or after it, or `EVICTED`: int64 (H, N)."""
    mirrored_HN = last_kept_before(is_kept_HN.flip(1)).flip(1)
    last = is_kept_HN.shape[1] - 1
    return torch.where(mirrored_HN == EVICTED, EVICTED, last - mirrored_HN)


def heaviest_kept_of_run(k_HND: Tensor, is_kept_HN: Tensor, runs: Runs, mass_HN: Tensor) -> Targets:
    """The kept token of a dropped token's run with most attention; `EVICTED` where the run has none."""
    _require_marks(k_HND, is_kept_HN)
    num_tokens = is_kept_HN.shape[1]
    pivot_R = first_argmax(mass_HN.masked_fill(~is_kept_HN, float("-inf")).flatten(), runs)
    pivot_F = pivot_R[runs.run_F]
    # A run without a kept token is all −inf, and its "largest" a dropped token.
    target_F = torch.where(is_kept_HN.flatten()[pivot_F], pivot_F % num_tokens, EVICTED)
    target_HN = target_F.view_as(is_kept_HN)
    return _with_kept_at_home(target_HN, _cosine_with(k_HND, target_HN), is_kept_HN)


def _require_marks(k_HND: Tensor, is_kept_HN: Tensor) -> None:
    # Marks of another length would make indices that are no token's.
    if is_kept_HN.shape != k_HND.shape[:2] or is_kept_HN.dtype != torch.bool:
        raise ValueError(
            f"marks of kept tokens must be bools (H, N) = {tuple(k_HND.shape[:2])}, got {is_kept_HN.dtype} "
            f"{tuple(is_kept_HN.shape)}"
        )


def _cosine_with(k_HND: Tensor, index_HN: Tensor) -> Tensor:
    """Cosine of every key with the one at ``index_HN``; `NO_COSINE` where that is `EVICTED`."""
    num_heads, num_tokens = index_HN.shape
    own_F = torch.arange(index_HN.numel(), device=index_HN.device)
    head_start_H1 = own_F.view_as(index_HN)[:, :1]
    # `EVICTED` would point into the head before; what token 0 gives in its place is overwritten below.
    other_F = (index_HN.clamp_min(0) + head_start_H1).flatten()
    cosine_HN = dispatch.pair_cosines(k_HND.flatten(0, 1), own_F, other_F).view(num_heads, num_tokens)
    return cosine_HN.masked_fill(index_HN == EVICTED, NO_COSINE)


def _with_kept_at_home(target_HN: Tensor, cosine_HN: Tensor, is_kept_HN: Tensor) -> Targets:
    return Targets(
        torch.where(is_kept_HN, own_index(is_kept_HN), target_HN), cosine_HN.masked_fill(is_kept_HN, 1.0)
    )

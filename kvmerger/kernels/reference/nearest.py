"""The search for the kept token most like a dropped one, in plain torch: the definition other kernels are tested against.

Nothing of size N × N is ever held.

Shapes: H KV heads, N tokens, D head size, B a block of tokens, K kept tokens of the head that keeps most.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

EVICTED = -1
"""The target of a token that no slot takes in."""
NO_COSINE = -2.0
"""Below every cosine: what a token without a kept one would have."""

# Bounds the fp32 cosines alive at a time (64 MiB).
_MAX_BLOCK_COSINES = 2**24


def most_similar_kept(k_HND: Tensor, is_kept_HN: Tensor, num_layers: int = 1) -> tuple[Tensor, Tensor]:
    """Each token's most similar kept one of its head, and their cosine: int64 and fp32, both (H, N). Keys must be finite.

    Similar is what has the highest cosine; of equal ones the earlier. Kept tokens' own numbers mean nothing. Without a kept
    token in the head: `EVICTED` and `NO_COSINE`. The heads of each of ``num_layers`` layers are searched by themselves:
    matrix products of another shape would round differently.
    """
    # Waits for the device: sizes of matrices follow.
    num_kept_LH = is_kept_HN.sum(dim=1).view(num_layers, -1).tolist()
    unit_HND = F.normalize(k_HND.float(), dim=2)
    # Kept tokens first, in the prompt's order: heads that keep fewer are filled up with dropped ones, never chosen.
    kept_HN = (~is_kept_HN).sort(dim=1, stable=True).indices
    is_filler_HN = ~is_kept_HN.gather(1, kept_HN)
    of_layers = zip(
        *(tensor.chunk(num_layers) for tensor in (unit_HND, kept_HN, is_filler_HN)), num_kept_LH, strict=True
    )
    found = [
        # One column at least: where no head keeps anything it is a filler, as in heads that keep less than others.
        _best_kept(units, kept, is_filler, max(1, *num_kept_H))
        for units, kept, is_filler, num_kept_H in of_layers
    ]
    cosine_HN, place_HN = (torch.cat(tensors) for tensors in zip(*found, strict=True))
    return kept_HN.gather(1, place_HN).masked_fill(cosine_HN == NO_COSINE, EVICTED), cosine_HN


def _best_kept(
    unit_HND: Tensor, kept_HN: Tensor, is_filler_HN: Tensor, num_kept: int
) -> tuple[Tensor, Tensor]:
    """Highest cosine of each token with one of the first ``num_kept`` tokens of ``kept_HN``, and which: both (H, N)."""
    kept_HK, is_filler_H1K = kept_HN[:, :num_kept], is_filler_HN[:, None, :num_kept]
    kept_HDK = unit_HND.gather(1, kept_HK[:, :, None].expand(-1, -1, unit_HND.shape[2])).transpose(1, 2)
    best = [
        (unit_HBD @ kept_HDK).masked_fill_(is_filler_H1K, NO_COSINE).max(dim=2)
        for unit_HBD in unit_HND.split(
            max(1, _MAX_BLOCK_COSINES // (max(1, num_kept) * unit_HND.shape[0])), dim=1
        )
    ]
    return torch.cat([one.values for one in best], dim=1), torch.cat([one.indices for one in best], dim=1)

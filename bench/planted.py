"""Keys whose neighbours come in similar runs, as many as make KVMerger's threshold keep a wanted share of the tokens.

Shapes: H KV heads, N tokens, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Cosine within a run 1/(1 + noise²) ≈ 0.92, between runs 0 ± 1/√D: far on either side of the paper's threshold 0.75.
_NOISE = 0.3
# Of all pairs of neighbours, those with no protected end under the paper's fractions (0.17 recent, 0.12 heavy): 0.72
# where the heavy tokens stand together, as with random queries; less where they are spread.
_ELIGIBLE_SHARE = 0.7


def planted_keys(
    num_heads: int,
    num_tokens: int,
    head_dim: int,
    kept: float = 0.5,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Random keys of which ``kvmerger_paper`` at ``budget: 0.5`` keeps about ``kept`` (0.3–1), wherever attention falls.

    Each neighbour continues its predecessor's run with the same probability, in every head by itself. Every device gets the
    same keys.

    Returns:
        k_HND in ``dtype`` on ``device``.

    Raises:
        ValueError: ``kept`` is less than the protected tokens leave room for.
    """
    link_share = (1 - kept) / _ELIGIBLE_SHARE
    if not 0 <= link_share <= 1:
        raise ValueError(f"kept must be from {1 - _ELIGIBLE_SHARE:.2f} to 1, got {kept}")
    generator = torch.Generator().manual_seed(seed)  # on the CPU: a GPU's would draw other numbers
    is_start_HN = torch.rand(num_heads, num_tokens, generator=generator) >= link_share
    is_start_HN[:, :1] = True
    index_HN = torch.arange(num_tokens).expand(num_heads, -1)
    start_HN = index_HN.masked_fill(~is_start_HN, 0).cummax(dim=1).values
    own_HND = torch.randn(num_heads, num_tokens, head_dim, generator=generator)
    shared_HND = own_HND.gather(1, start_HN[:, :, None].expand_as(own_HND))
    noise_HND = torch.randn(num_heads, num_tokens, head_dim, generator=generator)
    return (shared_HND + _NOISE * noise_HND).to(dtype).to(device)

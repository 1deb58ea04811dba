"""How much each token counts in the key of a slot that pairs were merged into, by what moving their keys does to the output.

With attention α and d = ‖v − o‖₁, o the output, the second derivatives of the output along two keys' logits are, in size,
α(1 − 2α)d for each and −α₁α₂(d₁ + d₂) across. The key that costs least in second order is (A·k₁ + B·k₂) ÷ (A + B) with
A = α₁(1 − 2α₁)d₁ − α₁α₂(d₁ + d₂), and B likewise (KVSlimmer, arXiv 2603.00907).

Shapes: H KV heads, N tokens, F = H·N flat tokens, P pairs, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kvmerger.merging.pairs import Round

PairWeights = Literal["hessian", "diagonal", "linear"]
PAIR_WEIGHTS = ("hessian", "diagonal", "linear")
# Shares of a key that are further apart than this are counted.
_FAR_APART = 0.1


class PairedTokens(NamedTuple):
    """What the merges made of the tokens.

    weight_F: fp64, each token's share in its slot's key. first_F: int64, the first token of its slot. length_F: fp64, at a
    slot's first token, what it counts for. num_apart_H: merges whose weights differ by more than 0.1 from ``linear`` ones.
    """

    weight_F: Tensor
    first_F: Tensor
    length_F: Tensor
    num_apart_H: Tensor


def pair_weights(
    kind: PairWeights,
    rounds: Sequence[Round],
    alpha_HN: Tensor,
    v_HND: Tensor,
    output_HD: Tensor,
    max_length: float = float("inf"),
) -> PairedTokens:
    """Do the merges of ``rounds`` in order; a slot that comes out of one has the sum of the attention and the mean value.

    Args:
        kind: ``hessian`` as above, kept within [0, 1]; ``diagonal`` without the term across; ``linear``: α·d, which both
            come to for small α. Where the first two give no share, ``linear`` does.
        rounds: of flat tokens (F,).
        alpha_HN: attention of each token.
        v_HND: values.
        output_HD: o.
        max_length: most that a slot's tokens count.
    """
    num_heads, num_tokens = alpha_HN.shape
    alpha_F, sum_FD = alpha_HN.double().flatten(), v_HND.float().flatten(0, 1).clone()
    first_F = torch.arange(alpha_F.numel(), device=alpha_F.device)
    weight_F, length_F = torch.ones_like(alpha_F), torch.ones_like(alpha_F)
    num_apart_H = first_F.new_zeros(num_heads)

    def deviation(place_P: Tensor) -> Tensor:
        mean_PD = sum_FD[place_P] / length_F[place_P, None].float()
        # In fp64: a device's order of adding may follow the number of pairs, which is another in a stack of layers.
        return (mean_PD - output_HD.float()[place_P // num_tokens]).abs().double().sum(dim=1)

    for left_P, right_P in rounds:
        alphas = alpha_F[left_P], alpha_F[right_P]
        deviations = deviation(left_P), deviation(right_P)
        share_P, linear_P = (left_share(it, *alphas, *deviations) for it in (kind, "linear"))
        is_apart_P = (share_P - linear_P).abs() > _FAR_APART
        # Atomics, but on whole numbers: in any order they give one sum.
        num_apart_H.scatter_add_(0, left_P // num_tokens, is_apart_P.long())
        factor_F = torch.ones_like(weight_F)
        factor_F[left_P], factor_F[right_P] = share_P, 1 - share_P
        weight_F = weight_F * factor_F[first_F]
        joined_F = torch.arange(first_F.numel(), device=first_F.device)
        joined_F[right_P] = left_P
        first_F = joined_F[first_F]
        for x_FX in (alpha_F, sum_FD, length_F):
            x_FX[left_P] += x_FX[right_P]
        length_F.clamp_max_(max_length)
    return PairedTokens(weight_F, first_F, length_F, num_apart_H)


def mean_values(alpha_HN: Tensor, v_HND: Tensor, num_layers: int) -> tuple[Tensor, Tensor]:
    """Attention divided by its sum, fp64 (H, N), and the values' mean by it, fp32 (H, D); layer by layer of a stack."""
    # Products and sums over all heads of a stack have another shape than a layer's, and round differently.
    parts = zip(alpha_HN.double().chunk(num_layers), v_HND.chunk(num_layers), strict=True)
    shares = [(alpha_HN / alpha_HN.sum(dim=1, keepdim=True), v_HND.float()) for alpha_HN, v_HND in parts]
    outputs = [torch.einsum("hn,hnd->hd", share_HN.float(), v_HND) for share_HN, v_HND in shares]
    return torch.cat([share_HN for share_HN, _ in shares]), torch.cat(outputs)


def left_share(kind: PairWeights, alpha1_P: Tensor, alpha2_P: Tensor, d1_P: Tensor, d2_P: Tensor) -> Tensor:
    """The share of the first key of each pair, from 0 to 1: (P,)."""
    # Two values that are the output itself: only their attention tells them apart.
    is_flat_P = alpha1_P * d1_P + alpha2_P * d2_P <= 0
    linear1_P, linear2_P = (
        torch.where(is_flat_P, alpha_P, alpha_P * d_P)
        for alpha_P, d_P in ((alpha1_P, d1_P), (alpha2_P, d2_P))
    )
    linear_P = linear1_P / (linear1_P + linear2_P)
    if kind == "linear":
        return linear_P
    first_P, second_P = alpha1_P * (1 - 2 * alpha1_P) * d1_P, alpha2_P * (1 - 2 * alpha2_P) * d2_P
    if kind == "diagonal":
        # Above an attention of 1/2 the term is negative, where a squared gradient cannot be.
        first_P, second_P = first_P.clamp_min(0), second_P.clamp_min(0)
    else:
        across_P = alpha1_P * alpha2_P * (d1_P + d2_P)
        first_P, second_P = first_P - across_P, second_P - across_P
    sum_P = first_P + second_P
    # The closed form divides by 0 where α₁ + α₂ is 1/2, and turns around beyond.
    return torch.where(sum_P > 0, (first_P / sum_P).clamp(0, 1), linear_P)

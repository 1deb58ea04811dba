"""Massive tokens: those with a channel of the residual stream that is far above all others' magnitudes.

Shapes: N tokens, E hidden size, S sampled tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvmerger.prefill.evidence import LayerStates, Need, register_evidence

MASSIVE = Need("massive")
TIMES_MEDIAN = 1000.0
"""Above so many medians a token is massive: the ratio of Sun et al. (2402.17762). Their other bound, a magnitude of 100, is
left out: it has a scale, and models of small activations would have no massive token by it."""
# Numbers that the median is taken of: one block of a GPU finds it, and so many take that one a millisecond.
_MOST_SAMPLED = 2**20


@register_evidence("massive", reads_queries=False, reads_hidden_states=True)
def times_median(states: LayerStates) -> Tensor:
    """Each token's largest magnitude in the stream that the layer starts from, in medians of all magnitudes: fp32 (N,).

    Finite; 0 of a token whose numbers are all 0. Beyond a million numbers the median is that of tokens at even distances.
    """
    assert states.residual_NE is not None, "registered as reading hidden states"
    largest_N = torch.linalg.vector_norm(states.residual_NE, ord=torch.inf, dim=1).float()
    return in_medians(largest_N, median_magnitude(states.residual_NE))


def in_medians(magnitude_N: Tensor, median: Tensor) -> Tensor:
    """Magnitudes divided by their ``median``, finite also where that is 0: fp32 (N,)."""
    numbers = torch.finfo(torch.float32)
    # Where more than half of all numbers are 0 every other one is massive.
    return (magnitude_N / median.clamp_min(numbers.tiny)).clamp_max(numbers.max)


def median_magnitude(residual_NE: Tensor) -> Tensor:
    """The median of all magnitudes, of two in the middle the lower one: fp32, of no dimension."""
    distance = -(-residual_NE.numel() // _MOST_SAMPLED)
    sampled_SE = residual_NE[:: max(1, distance)]
    return sampled_SE.abs().float().median()

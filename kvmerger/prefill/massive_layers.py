"""Where massive tokens arise in a model: the largest magnitudes of the stream that each layer starts from.

Shapes: N tokens, E hidden size, K the tokens with the largest magnitudes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kvmerger.models.loading import LoadedModel
from kvmerger.prefill.massive import TIMES_MEDIAN, in_medians, median_magnitude
from kvmerger.prefill.prefill import PrefillAttention

NUM_LARGEST = 5


@dataclass(frozen=True, slots=True)
class LargeToken:
    """One token of a layer: its largest magnitude, the channel that has it, and how many medians it is."""

    token: int
    channel: int
    magnitude: float
    times_median: float

    @property
    def is_massive(self) -> bool:
        """Whether it is above `TIMES_MEDIAN`."""
        return self.times_median > TIMES_MEDIAN


@dataclass(frozen=True, slots=True)
class LayerMagnitudes:
    """The stream that a layer starts from. largest: a few tokens, or all that are massive, the largest magnitude first."""

    median: float
    largest: tuple[LargeToken, ...]

    @property
    def massive(self) -> tuple[LargeToken, ...]:
        """The massive tokens, the largest first."""
        return tuple(it for it in self.largest if it.is_massive)


@torch.inference_mode()
def layer_magnitudes(model: LoadedModel, context_ids: Sequence[int]) -> list[LayerMagnitudes]:
    """Each layer's, from one prefill of ``context_ids`` (at least one token). What the last layer adds is not seen.

    Raises:
        torch.OutOfMemoryError: the prompt does not fit.
    """
    found: list[LayerMagnitudes] = []

    def watch(hidden_1NE: Tensor, attention: nn.Module, residual_1NE: Tensor) -> None:
        found.append(magnitudes_of(residual_1NE[0]))

    with model.on_its_device():
        ids_1N = torch.tensor([context_ids], device=model.device)
        position_1N = torch.arange(len(context_ids), device=model.device)[None]
        handler = PrefillAttention(model.info.num_layers, frozenset(), prompt_seed=0)
        model.visit_layers(ids_1N, position_1N, handler, watch)
    return found


def magnitudes_of(residual_NE: Tensor) -> LayerMagnitudes:
    """Of one stream. Of equal magnitudes any may come first."""
    median = median_magnitude(residual_NE)
    magnitude_N, channel_N = residual_NE.abs().max(dim=1)
    times_N = in_medians(magnitude_N.float(), median)
    # One transfer of a few numbers for each layer, since a diagnosis may wait.
    num_shown = max(NUM_LARGEST, int((times_N > TIMES_MEDIAN).sum()))
    token_K = magnitude_N.topk(min(num_shown, len(magnitude_N))).indices
    largest = (
        LargeToken(int(token), int(channel_N[token]), float(magnitude_N[token]), float(times_N[token]))
        for token in token_K
    )
    return LayerMagnitudes(float(median), tuple(largest))

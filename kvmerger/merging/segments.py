"""Reductions over sorted runs. Fixed order, no float atomics: the same input gives the same bits on every call.

Shapes: F flat tokens of all heads, R runs, X anything.
"""

from __future__ import annotations

from torch import Tensor

from kvmerger.kernels import dispatch
from kvmerger.merging.sets import Runs


def run_sums(values_FX: Tensor, runs: Runs) -> Tensor:
    """Sum of each run: fp32 (F, …) → (R, …)."""
    return dispatch.segment_sums(values_FX, runs.length_R)


def run_maxima(values_F: Tensor, runs: Runs) -> Tensor:
    """Largest value of each run: (F,) → (R,)."""
    return dispatch.segment_maxima(values_F, runs.length_R)


def first_argmax(values_F: Tensor, runs: Runs) -> Tensor:
    """Flat index of each run's largest value, the first one on ties: (F,) → int64 (R,)."""
    return dispatch.first_argmax(values_F, runs.length_R, runs.run_F)

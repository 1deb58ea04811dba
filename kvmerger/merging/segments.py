"""Reductions over sorted runs. Fixed order, no float atomics: the same input gives the same bits on every call.

Shapes: F flat tokens of all heads, R runs, X anything.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvmerger.merging.sets import Runs


def run_sums(values_FX: Tensor, runs: Runs) -> Tensor:
    """Sum of each run: fp32 (F, …) → (R, …)."""
    return _reduced(values_FX, "sum", runs)


def run_maxima(values_F: Tensor, runs: Runs) -> Tensor:
    """Largest value of each run: (F,) → (R,)."""
    return _reduced(values_F, "max", runs)


def first_argmax(values_F: Tensor, runs: Runs) -> Tensor:
    """Flat index of each run's largest value, the first one on ties: (F,) → int64 (R,)."""
    largest_R = run_maxima(values_F, runs)
    index_F = torch.arange(values_F.numel(), device=values_F.device)
    not_largest = values_F.numel()
    candidate_F = torch.where(values_F == largest_R[runs.run_F], index_F, not_largest)
    first_R = torch.full_like(runs.length_R, not_largest)
    return first_R.scatter_reduce_(0, runs.run_F, candidate_F, "amin")


def _reduced(values_FX: Tensor, kind: str, runs: Runs) -> Tensor:
    # unsafe: torch would fetch the lengths to check them, twice; `Runs` are a partition.
    return torch.segment_reduce(values_FX, kind, lengths=runs.length_R, axis=0, unsafe=True)

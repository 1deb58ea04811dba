"""What policies return, looked at where it comes in: kinds, shapes and devices at once, NaN with what is fetched anyway.

Nothing in here waits for the device.

Shapes: L layers, H KV heads, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from kvmerger.budget import Budget
from kvmerger.policies.base import PolicyError

_nan_counts: ContextVar[list[Tensor] | None] = ContextVar("nan_counts", default=None)


@contextmanager
def counting_nan() -> Iterator[list[Tensor]]:
    """Inside, gathers how many of each ranking's scores are NaN: int64 of no dimension, on the device of the scores."""
    counts: list[Tensor] = []
    token = _nan_counts.set(counts)
    try:
        yield counts
    finally:
        _nan_counts.reset(token)


def checked_scores(
    scores: object, shape: tuple[int, int], device: torch.device, whose: str, num_layers: int = 1
) -> Tensor:
    """``scores``, where they can be ranked: floats of ``shape`` (H, N) on ``device``; NaN among them are counted.

    Args:
        shape: H is the KV heads of all ``num_layers`` layers that are compressed as one.
        whose: what gave the scores, for the error.

    Raises:
        PolicyError: they cannot be ranked, with what came and what is wanted.
    """
    wanted = f"{whose}: scores must be floats (H, N) = {shape}, one per KV head and token"
    scores_HN = _tensor(scores, wanted, device)
    if tuple(scores_HN.shape) != shape:
        raise PolicyError(
            f"{wanted}; got {tuple(scores_HN.shape)}{_hint(scores_HN.shape, shape, num_layers)}"
        )
    if not scores_HN.is_floating_point():
        raise PolicyError(f"{wanted}; got {scores_HN.dtype}: convert them with .float()")
    # Asked here, `bool(...)` would wait for the device once a layer. NaN ranks highest, so the indices are sound meanwhile.
    if (counts := _nan_counts.get()) is not None:
        counts.append(scores_HN.isnan().sum())
    return scores_HN


def checked_marks(is_kept: object, shape: tuple[int, int], device: torch.device, whose: str) -> Tensor:
    """``is_kept``, where it says which tokens stay: bools of ``shape`` (H, N) on ``device``.

    Raises:
        PolicyError: it does not, with what came and what is wanted.
    """
    wanted = f"{whose}: marks of kept tokens must be bools (H, N) = {shape}, one per KV head and token"
    is_kept_HN = _tensor(is_kept, wanted, device)
    if tuple(is_kept_HN.shape) != shape:
        raise PolicyError(f"{wanted}; got {tuple(is_kept_HN.shape)}{_hint(is_kept_HN.shape, shape, 1)}")
    # Numbers would be counted by their sum, and `~` of them is no opposite.
    if is_kept_HN.dtype != torch.bool:
        raise PolicyError(f"{wanted}; got {is_kept_HN.dtype}: compare, as in ranks < budget")
    return is_kept_HN


def checked_budgets(budgets: object, num_layers: int, num_heads: int, whose: str) -> Sequence[Budget]:
    """``budgets``, where they say for every layer and KV head how many slots there are.

    Raises:
        PolicyError: they do not, with what came and what is wanted.
    """
    wanted = f"{whose}: allocate() must give a Budget for each of the {num_layers} layers"
    if not isinstance(budgets, Sequence) or not all(isinstance(budget, Budget) for budget in budgets):
        raise PolicyError(f"{wanted}, got {budgets!r}")
    if len(budgets) != num_layers:
        raise PolicyError(f"{wanted}, got {len(budgets)} of them")
    for index, budget in enumerate(budgets):
        slots_H = budget.num_slots_H
        is_whole = isinstance(slots_H, tuple) and all(
            isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in slots_H
        )
        if not is_whole or len(slots_H) != num_heads:
            raise PolicyError(
                f"{wanted}, with a tuple of {num_heads} whole numbers of slots from 0 on, one per KV head; layer {index} "
                f"has {slots_H!r}: convert them with int()"
            )
        # Written as what must hold: every comparison with NaN is false.
        if not 0 <= budget.asked_ratio <= 1:
            raise PolicyError(
                f"{wanted}, with an asked_ratio from 0 to 1; layer {index} has {budget.asked_ratio!r}"
            )
    return budgets


def _tensor(given: object, wanted: str, device: torch.device) -> Tensor:
    if not isinstance(given, Tensor):
        raise PolicyError(f"{wanted}; got {given!r:.100}: return a torch.Tensor")
    if given.device != device:
        raise PolicyError(
            f"{wanted}, on {device}; got them on {given.device}: create them with device={device.type!r}"
        )
    return given


def _hint(got: Sequence[int], shape: tuple[int, int], num_layers: int) -> str:
    """What to do about scores or marks whose shape is a known mistake; empty for any other."""
    num_heads, num_tokens = shape
    if num_layers > 1 and tuple(got) == (num_heads // num_layers, num_tokens):
        return (
            f": that is one layer, and {num_layers} are given as one; score all evidence.num_heads, or say "
            f"compresses_stacks = False"
        )
    if len(got) == len(shape) and got[1] == num_tokens and got[0] > num_heads and not got[0] % num_heads:
        return ": for query heads, take the mean of each KV head's, scores.view(H, -1, N).mean(dim=1)"
    return ""

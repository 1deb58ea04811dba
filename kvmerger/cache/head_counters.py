"""Counters that a policy keeps per KV head, as tensors on the device; the first one read fetches all in one copy.

A counter's name decides how heads, and then layers, are put together, as `LayerCache.counters` says.

Shapes: H KV heads, L layers, C columns of numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor


class PerHead(NamedTuple):
    """One counter: a number of every head (H,), and of means how much each head's counts; None counts all alike."""

    value_H: Tensor
    weight_H: Tensor | None = None


class HeadCounters(Mapping[str, float]):
    """Counters of one layer, or of several that were compressed as one; immutable. A mean over nothing is left out."""

    def __init__(self, per_head: Mapping[str, PerHead]) -> None:
        self._per_head = dict(per_head)
        self._fetched: dict[str, float] | None = None

    def joined(self, more: Mapping[str, PerHead]) -> HeadCounters:
        """These and ``more``."""
        return HeadCounters({**self._per_head, **more})

    def require_heads(self, num_heads: int) -> None:
        """Raise ValueError unless every counter and its weights have a number for each of ``num_heads`` heads."""
        for name, counter in self._per_head.items():
            for given in counter:
                # Of another length the numbers would be told apart by layer all the same, and be others'.
                if given is not None and (not isinstance(given, Tensor) or given.shape != (num_heads,)):
                    got = tuple(given.shape) if isinstance(given, Tensor) else f"{given!r:.100}"
                    raise ValueError(
                        f"counter {name!r} must have a number for each of {num_heads} heads, as a tensor ({num_heads},), "
                        f"got {got}"
                    )

    def by_layer(self, num_layers: int) -> list[dict[str, float]]:
        """The numbers of each of ``num_layers`` layers, whose heads lie one layer after the other. Waits for the device."""
        if not self._per_head:
            return [{} for _ in range(num_layers)]
        # Each counter's values, then its weights where it has any: `_of_layer` takes them off in this order.
        columns = [column for counter in self._per_head.values() for column in counter if column is not None]
        columns_LCH = _fetched(columns).unflatten(1, (num_layers, -1)).transpose(0, 1)
        return [self._of_layer(iter(of_layer)) for of_layer in columns_LCH.tolist()]

    def _of_layer(self, columns: Iterator[Sequence[float]]) -> dict[str, float]:
        combined = {
            name: _combined_heads(name, next(columns), None if weight_H is None else next(columns))
            for name, (_, weight_H) in self._per_head.items()
        }
        return {name: value for name, value in combined.items() if value is not None}

    def _all(self) -> dict[str, float]:
        if self._fetched is None:
            (self._fetched,) = self.by_layer(1)
        return self._fetched

    def __getitem__(self, name: str) -> float:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def numbers_of(counters_L: Sequence[Mapping[str, object]]) -> list[dict[str, float]]:
    """Every layer's counters as floats. Tensors among them are fetched together: the device is waited for at most once.

    Raises:
        ValueError: a counter is no number, or its name no text.
    """
    for counters in counters_L:
        for name, value in counters.items():
            _require_number(name, value)
    tensors = [
        value[None] for counters in counters_L for value in counters.values() if isinstance(value, Tensor)
    ]
    fetched = iter(_fetched(tensors)[:, 0].tolist() if tensors else ())
    return [
        {
            name: next(fetched) if isinstance(value, Tensor) else float(value)  # type: ignore[arg-type]
            for name, value in counters.items()
        }
        for counters in counters_L
    ]


def _require_number(name: object, value: object) -> None:
    is_one = isinstance(value, Real) or (
        isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex()
    )
    if not (is_one and isinstance(name, str)):
        raise ValueError(
            f"a counter has a name and a real number, or a tensor of no dimension, got {name!r}: {value!r}; leave out what "
            f"there is no number for, and count heads apart with LayerCache.counting"
        )


def _fetched(columns: Sequence[Tensor]) -> Tensor:
    """All columns on the CPU, in their order (C, H); those of the device come in one copy."""
    # fp64 holds every count below 2**53, and gives columns of different dtypes one to be stacked in.
    on_device = [column.double() for column in columns if column.device.type != "cpu"]
    fetched = iter(torch.stack(on_device).cpu() if on_device else ())
    return torch.stack(
        [column.double() if column.device.type == "cpu" else next(fetched) for column in columns]
    )


def combined(name: str, values: Sequence[float]) -> float:
    """One number of a counter's ``values``, at least one, by the rule in `LayerCache.counters`."""
    if name.startswith("num_"):
        return sum(values)
    if name.startswith("largest_"):
        return max(values)
    return min(values) if name.startswith("is_") else fmean(values)


def _combined_heads(name: str, values: Sequence[float], weights: Sequence[float] | None) -> float | None:
    if weights is None or name.startswith(("num_", "largest_", "is_")):
        return combined(name, values)
    total = sum(weights)
    # A mean over nothing is no number: 0 would be read as a measured one.
    return (
        sum(value * weight for value, weight in zip(values, weights, strict=True)) / total if total else None
    )

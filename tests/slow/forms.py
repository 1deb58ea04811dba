"""Codes by their definitions, number by number in Python floats: what the forms are held to, written apart from them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kvmerger.cache.forms.layouts import CodeLayout, Grid, Per

# The best points for a standard normal number, those above 0: J. Max, IRE Trans. Inf. Theory 6 (1960), table I.
LLOYD_MAX = {
    3: (0.2451, 0.7560, 1.344, 2.152),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733),
}
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def groups_of(layout: CodeLayout, num_slots_H: Sequence[int], head_dim: int) -> list[list[tuple[int, int]]]:
    """The (slot, channel) pairs that share a scale, group by group in the order in which scales are stored."""
    num_slots = sum(num_slots_H)
    whole_slots = [[(slot, channel) for channel in range(head_dim)] for slot in range(num_slots)]
    if layout.per in (Per.SLOT, Per.NOTHING):
        return whole_slots
    if layout.per is Per.BLOCK:
        return [
            slot[at : at + layout.group] for slot in whole_slots for at in range(0, head_dim, layout.group)
        ]
    found, first = [], 0
    for count in num_slots_H:
        for at in range(0, count, layout.group):
            slots = range(first + at, first + min(at + layout.group, count))
            found += [[(slot, channel) for slot in slots] for channel in range(head_dim)]
        first += count
    return found


def decoded(x_SD: Tensor, layout: CodeLayout, num_slots_H: Sequence[int]) -> Tensor:
    """What ``x_SD`` (S, D) becomes by being stored and read, in fp64."""
    numbers = x_SD.double()
    if layout.is_rotated:
        numbers = turned(numbers)
    heads = [head for head, count in enumerate(num_slots_H) for _ in range(count)]
    largest = {
        head: max(
            abs(float(number)) for slot, its in enumerate(heads) if its == head for number in numbers[slot]
        )
        for head in set(heads)
    }
    out = torch.empty_like(numbers)
    for group in groups_of(layout, num_slots_H, x_SD.shape[1]):
        values = [float(numbers[place]) for place in group]
        for place, value in zip(group, _group(values, layout, largest[heads[group[0][0]]]), strict=True):
            out[place] = value
    return turned(out) if layout.is_rotated else out


def _group(values: list[float], layout: CodeLayout, largest_of_head: float) -> list[float]:
    largest = max(map(abs, values))
    match layout.grid:
        case Grid.SIGNED:
            step = _single(largest / 127) or 1.0
            return [step * max(-127, min(127, round(value / step))) for value in values]
        case Grid.E4M3:
            step = 1.0 if layout.per is Per.NOTHING else _single(largest / 448) or 1.0
            return [
                step * _rounded(max(-448.0, min(448.0, value / step)), torch.float8_e4m3fn)
                for value in values
            ]
        case Grid.UNSIGNED:
            most = 2**layout.bits - 1
            low = _rounded(min(values), torch.float16)
            step = _rounded((max(values) - min(values)) / most, torch.float16)
            return [low + step * max(0, min(most, round((value - low) / (step or 1.0)))) for value in values]
        case Grid.E2M1:
            whole = _single(largest_of_head / (6 * 448)) or 1.0
            step = whole * _rounded(largest / 6 / whole, torch.float8_e4m3fn)
            return [
                math.copysign(step * _nearest_e2m1(abs(value) / (step or 1.0)), value) for value in values
            ]
        case Grid.GAUSSIAN:
            return _gaussian(values, layout.bits)


def _gaussian(values: list[float], bits: int) -> list[float]:
    length = math.sqrt(math.fsum(value**2 for value in values))
    points = [*(-point for point in LLOYD_MAX[bits]), *LLOYD_MAX[bits]]
    chosen = [
        min(points, key=lambda point: abs(point - value / (length or 1.0) * math.sqrt(len(values))))
        for value in values
    ]
    step = _rounded(length / math.sqrt(math.fsum(point**2 for point in chosen)), torch.float16)
    return [step * point for point in chosen]


def _nearest_e2m1(value: float) -> float:
    # Of two that are as near, the one with the even code.
    return E2M1[min(range(8), key=lambda code: (abs(E2M1[code] - value), code % 2))]


def turned(x_SD: Tensor) -> Tensor:
    """Rows times Sylvester's Hadamard matrix, of length one."""
    size = x_SD.shape[1]
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return x_SD @ matrix / math.sqrt(size)


def _single(value: float) -> float:
    return _rounded(value, torch.float32)


def _rounded(value: float, dtype: torch.dtype) -> float:
    return float(torch.tensor(value, dtype=torch.float32).to(dtype))


def best_of_all_tables(errors_L: Sequence[Mapping[tuple[int, int], float]], mean_bits: float) -> float:
    """The least summed error of all tables of bits that keep the mean, each of them tried."""
    return min(
        sum(error for _, error in table)
        for table in itertools.product(*(errors.items() for errors in errors_L))
        if sum(sum(pair) for pair, _ in table) <= mean_bits * 2 * len(errors_L)
    )


def attention_error(
    queries: Sequence[Sequence[Sequence[float]]],
    exact: tuple[Sequence, Sequence],
    stored: tuple[Sequence, Sequence],
    scaling: float,
) -> float:
    """Relative error of causal attention of the last queries, head by head and query by query: ``queries`` by query head, the
    keys and values of ``exact`` and ``stored`` by KV head."""
    differences, norms = 0.0, 0.0
    group = len(queries) // len(exact[0])
    for head, of_head in enumerate(queries):
        for index, query in enumerate(of_head):
            num_seen = len(exact[0][0]) - len(of_head) + index + 1
            outputs = []
            for keys, values in (exact, stored):
                k_seen, v_seen = keys[head // group][:num_seen], values[head // group][:num_seen]
                logits = [scaling * sum(a * b for a, b in zip(query, key, strict=True)) for key in k_seen]
                weights = [math.exp(logit - max(logits)) for logit in logits]
                outputs.append(
                    [
                        sum(weight * value[channel] for weight, value in zip(weights, v_seen, strict=True))
                        / sum(weights)
                        for channel in range(len(query))
                    ]
                )
            differences += sum((a - b) ** 2 for a, b in zip(*outputs, strict=True))
            norms += sum(a * a for a in outputs[0])
    return math.sqrt(differences / norms)

"""Random batches for ragged attention on any device, a dense float64 computation of them, and what both must agree on.

Used under Triton's interpreter on the CPU and, unchanged, on CUDA; both run `FEW`, CUDA also `MANY`.
"""

import itertools
import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.ragged_layer import RaggedLayer
from kvmerger.cache.row_table import PrefixTable, lengths_on_device
from kvmerger.kernels.reference import ragged as reference
from kvmerger.kernels.reference.ragged import RaggedAttention
from tests.kvmerger.kernels.both.poison import poisoned_memory

POISON = float("nan")
# Rounding of the output itself, and of sums in another order.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
MASS_TOLERANCE = 2e-5
TAIL_ROOM = 5

FIELDS = ("num_groups", "head_dim", "num_tokens", "dtype")
# Every ratio of heads, size and width once.
FEW = [
    (1, 16, 1, torch.float32),
    (4, 64, 1, torch.bfloat16),
    (3, 80, 1, torch.float16),
    (8, 16, 2, torch.float32),
    (3, 64, 17, torch.bfloat16),
    (4, 128, 65, torch.bfloat16),
]
MANY = [
    *itertools.product((1, 3, 4, 8), (16, 64, 128), (1, 2, 17, 65), TOLERANCE),
    *itertools.product((3,), (80, 96, 256), (1, 40), TOLERANCE),
]


@dataclass(frozen=True)
class Case:
    """One batch: queries (R, Q, T, D), their layer, and the rows to return attention mass for."""

    q_RQTD: Tensor
    layer: RaggedLayer
    scaling: float
    mass_rows: tuple[int, ...]


def random_case(
    seed: int,
    *,
    num_heads: int = 2,
    num_groups: int = 3,
    head_dim: int = 64,
    num_tokens: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    longest: int = 300,
) -> Case:
    """Ragged, uniform, one-slot, empty and shared prefixes, with and without log masses, idle rows and a dummy.

    Tails are poisoned behind each row's tokens, and queries behind its new ones.
    """
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    ragged = tuple(
        rng.choice((0, 1, 15, 16, 17, 63, 64, 65, rng.randrange(longest))) for _ in range(num_heads)
    )
    shapes = [
        (longest,) * num_heads,
        ragged,
        (0,) * num_heads,
        (1,) * num_heads,
        tuple(rng.randrange(longest) for _ in range(num_heads)),
    ]
    prefixes: list[LayerCache | None] = [
        _random_prefix(generator, shape, head_dim, dtype, device, has_mass=index % 2 == 1)
        for index, shape in enumerate(shapes)
    ]
    prefixes += [prefixes[1], None, prefixes[0]]
    num_new_R = (num_tokens, rng.randint(1, num_tokens), 1, num_tokens, 0, num_tokens, 0, 1)
    tail_start_R = tuple(rng.choice((0, 1, 30, 64, 70)) if prefix is not None else 0 for prefix in prefixes)
    capacity = num_tokens + max(tail_start_R) + TAIL_ROOM
    tails = [
        _randn(generator, (len(prefixes), num_heads, capacity, head_dim), dtype, device) for _ in range(2)
    ]
    q_RQTD = _randn(
        generator, (len(prefixes), num_tokens, num_heads * num_groups, head_dim), dtype, device
    ).transpose(1, 2)
    for row, (start, num_new) in enumerate(zip(tail_start_R, num_new_R, strict=True)):
        q_RQTD[row, :, num_new:] = POISON
        for tail_RHCD in tails:
            tail_RHCD[row, :, start + num_new :] = POISON
    layer = RaggedLayer(tuple(prefixes), *tails, tail_start_R, num_new_R)
    return Case(q_RQTD, layer, head_dim**-0.5, (0, 1, 2, 4, 5, 6))


def alone(case: Case, row: int) -> Case:
    """The same batch with every other row a dummy."""
    layer, num_rows = case.layer, len(case.layer.prefix_R)
    others = replace(
        layer,
        prefix_R=tuple(layer.prefix_R[index] if index == row else None for index in range(num_rows)),
        device_rows=None,
        tail_start_R=tuple(layer.tail_start_R[index] * (index == row) for index in range(num_rows)),
        num_new_R=tuple(layer.num_new_R[index] * (index == row) for index in range(num_rows)),
    )
    return replace(case, layer=others, mass_rows=(row,))


def dense_float64(case: Case) -> Tensor:
    """Output (R, T, Q, D), one query head at a time over one dense matrix; zeros where a row has no new token."""
    num_rows, num_query_heads, num_tokens, head_dim = case.q_RQTD.shape
    out_RTQD = torch.zeros(num_rows, num_tokens, num_query_heads, head_dim, dtype=torch.float64)
    layer = case.layer
    for row, (prefix, start, num_new) in enumerate(
        zip(layer.prefix_R, layer.tail_start_R, layer.num_new_R, strict=True)
    ):
        if prefix is None or num_new == 0:
            continue
        plain = prefix.plain(torch.float32)
        for query_head in range(num_query_heads):
            head = query_head * prefix.num_heads // num_query_heads
            own = slice(sum(prefix.num_slots_H[:head]), sum(prefix.num_slots_H[: head + 1]))
            k_ND, v_ND = (
                torch.cat([held_SD[own], tail_RHCD[row, head, : start + num_new].float()]).double().cpu()
                for held_SD, tail_RHCD in (
                    (plain.k_SD, layer.tail_k_RHCD),
                    (plain.v_SD, layer.tail_v_RHCD),
                )
            )
            bias_TN = torch.zeros(num_new, len(k_ND), dtype=torch.float64)
            num_slots = prefix.num_slots_H[head]
            if prefix.log_mass_S is not None:
                bias_TN[:, :num_slots] = prefix.log_mass_S[own].double().cpu()
            bias_TN[:, num_slots:] += torch.full((num_new, start + num_new), float("-inf")).triu(start + 1)
            scores_TN = (
                case.q_RQTD[row, query_head, :num_new].double().cpu() @ k_ND.T * case.scaling + bias_TN
            )
            out_RTQD[row, :num_new, query_head] = scores_TN.softmax(dim=1) @ v_ND
    return out_RTQD


def check_against_both(case: Case) -> None:
    """Triton's output and masses are the reference's and the float64 computation's, zeros included."""
    ours, theirs = attend_into_poison(case), reference.ragged_attention(*arguments(case))
    dtype = case.q_RQTD.dtype
    assert ours.out_RTQD.dtype == dtype
    tolerance = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(ours.out_RTQD.double().cpu(), dense_float64(case), **tolerance)
    torch.testing.assert_close(ours.out_RTQD, theirs.out_RTQD, **tolerance)
    for row, num_new in enumerate(case.layer.num_new_R):
        assert not ours.out_RTQD[row, num_new:].any(), f"row {row}: padding must be zero"
    assert ours.mass_by_row.keys() == theirs.mass_by_row.keys() and ours.mass_by_row
    for row, mass in theirs.mass_by_row.items():
        for our_part, their_part in zip(ours.mass_by_row[row], mass, strict=True):
            torch.testing.assert_close(our_part, their_part, atol=MASS_TOLERANCE, rtol=MASS_TOLERANCE)


def check_rows_do_not_see_each_other(case: Case) -> None:
    """Each row has the same bits alone as among the others; twice the same call gives the same bits."""
    together, again = attend_into_poison(case), attend_into_poison(case)
    assert torch.equal(together.out_RTQD, again.out_RTQD)
    for row, num_new in enumerate(case.layer.num_new_R):
        if not num_new:
            continue
        single = attend_into_poison(alone(case, row))
        assert torch.equal(single.out_RTQD[row], together.out_RTQD[row]), f"row {row}"
        if row in case.mass_rows:
            for mine, among_others in zip(single.mass_by_row[row], together.mass_by_row[row], strict=True):
                assert torch.equal(mine, among_others), f"row {row}"


def check_changed_rows_are_followed(case: Case) -> None:
    """One table serves rows whose slots change in place and rows that get other slots altogether."""
    layer = case.layer
    prefixes = [None if prefix is None else (prefix,) for prefix in layer.prefix_R]
    device = case.q_RQTD.device
    table = PrefixTable(prefixes, device)
    lengths_2R = lengths_on_device(layer.tail_start_R, layer.num_new_R, device)
    longer = layer.prefix_R[0]
    assert longer is not None
    for tensor in (longer.k_SD, longer.v_SD):
        tensor[::3] = tensor[::3].flip(0) * 2
    other = longer.take(
        torch.arange(longer.num_slots, device=device)[1:],
        (longer.num_slots_H[0] - 1, *longer.num_slots_H[1:]),
    )
    prefixes[3] = (other,)
    table.follow(prefixes)
    changed = replace(
        layer,
        prefix_R=tuple(None if prefix is None else prefix[0] for prefix in prefixes),
        device_rows=table.layer(0, lengths_2R),
    )
    check_against_both(replace(case, layer=changed))


def check_bounds_are_filled_with_zeros(case: Case) -> None:
    """Where the host knows bounds of lengths alone, as in recorded steps, masses are the rows' own and zeros behind them."""
    layer, device = case.layer, case.q_RQTD.device
    prefixes = [None if prefix is None else (prefix,) for prefix in layer.prefix_R]
    lengths_2R = lengths_on_device(layer.tail_start_R, layer.num_new_R, device)
    bound = layer.tail_k_RHCD.shape[2] - 1
    bounded = replace(
        layer,
        tail_start_R=(bound,) * len(prefixes),
        num_new_R=(1,) * len(prefixes),
        device_rows=PrefixTable(prefixes, device).layer(0, lengths_2R),
    )
    expected, bounds = attend_into_poison(case), attend_into_poison(replace(case, layer=bounded))
    assert torch.equal(bounds.out_RTQD, expected.out_RTQD)
    idle = set(case.mass_rows) - expected.mass_by_row.keys()
    assert any(layer.prefix_R[row] is not None for row in idle), "a row that reads nothing asks as well"
    for row, mass in bounds.mass_by_row.items():
        assert mass.tail_HC.shape[1] == bound + 1
        end = layer.tail_start_R[row] + layer.num_new_R[row] if row not in idle else 0
        assert not mass.tail_HC[:, end:].any(), f"row {row}"
        if row in idle:
            assert not mass.prefix_S.any(), f"row {row}"
            continue
        assert torch.equal(mass.prefix_S, expected.mass_by_row[row].prefix_S), f"row {row}"
        assert torch.equal(mass.tail_HC[:, :end], expected.mass_by_row[row].tail_HC), f"row {row}"


def check_any_tiling(case: Case) -> None:
    """However the work is cut, the numbers are the same up to rounding."""
    from kvmerger.kernels.triton import ragged as triton_ragged

    for tiling in (
        triton_ragged.Tiling(16, 16, split_slots=16, most_parts=3),
        triton_ragged.Tiling(32, 128, split_slots=128),
        triton_ragged.Tiling(16, 16, most_split_queries=1),
    ):
        ours, theirs = attend_into_poison(case, tiling), attend_into_poison(case)
        tolerance = TOLERANCE[case.q_RQTD.dtype]
        torch.testing.assert_close(ours.out_RTQD, theirs.out_RTQD, atol=tolerance, rtol=tolerance)
        for row, mass in theirs.mass_by_row.items():
            for our_part, their_part in zip(ours.mass_by_row[row], mass, strict=True):
                torch.testing.assert_close(our_part, their_part, atol=MASS_TOLERANCE, rtol=MASS_TOLERANCE)


def attend_into_poison(case: Case, tiling: Any = None, packed_tiling: Any = None) -> RaggedAttention:
    """Triton's result when all memory it gets unwritten holds NaN."""
    from kvmerger.kernels.triton import ragged as triton_ragged

    with poisoned_memory():
        return triton_ragged.ragged_attention(*arguments(case), tiling, packed_tiling)


def arguments(case: Case) -> tuple[Tensor, RaggedLayer, float, tuple[int, ...]]:
    """What every implementation is called with."""
    return case.q_RQTD, case.layer, case.scaling, case.mass_rows


def _random_prefix(
    generator: torch.Generator,
    lengths: tuple[int, ...],
    head_dim: int,
    dtype: torch.dtype,
    device: str,
    *,
    has_mass: bool,
) -> LayerCache:
    k_SD, v_SD = (_randn(generator, (sum(lengths), head_dim), dtype, device) for _ in range(2))
    position_S = torch.cat([torch.arange(length) for length in lengths]).int().to(device)
    log_mass_S = (torch.rand(sum(lengths), generator=generator) * 3).to(device) if has_mass else None
    return LayerCache(k_SD, v_SD, position_S, lengths, log_mass_S)


def _randn(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(shape, generator=generator).to(dtype).to(device)

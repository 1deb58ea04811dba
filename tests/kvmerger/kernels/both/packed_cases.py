"""Batches in which some rows are packed, and what attention over them must do on any device.

Used under Triton's interpreter on the CPU and, unchanged, on CUDA. A packed row's numbers are those of the float64
computation and of the reference over its decoded keys and values; its bits are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from kvmerger.cache.forms import registry
from kvmerger.cache.forms.base import CodedForm, Form
from kvmerger.cache.forms.layouts import CodeLayout, Grid, Per
from kvmerger.cache.packed_layer import PackedLayer
from kvmerger.cache.row_table import PrefixTable, lengths_on_device
from kvmerger.kernels.reference.ragged import RaggedAttention
from tests.kvmerger.kernels.both.ragged_cases import (
    MASS_TOLERANCE,
    TOLERANCE,
    Case,
    alone,
    attend_into_poison,
    check_against_both,
    random_case,
)


@dataclass(frozen=True)
class AnyForm(CodedForm):
    """A form of any two layouts, as a user's may be."""

    k: CodeLayout
    v: CodeLayout

    def layouts(self) -> tuple[CodeLayout, CodeLayout]:
        return self.k, self.v


def _unsigned(bits: int, per: Per, group: int = 0) -> CodeLayout:
    return CodeLayout(Grid.UNSIGNED, bits, per, group)


# What no shipped form has: each side per channel or block, groups that no block of slots or tile of channels is made of.
ODD_FORMS = {
    "k by block, v by channel": AnyForm(_unsigned(4, Per.BLOCK, 32), _unsigned(4, Per.CHANNEL, 24)),
    "groups of 24 and 40": AnyForm(_unsigned(4, Per.CHANNEL, 24), _unsigned(2, Per.BLOCK, 40)),
    "8 bits in groups": AnyForm(_unsigned(8, Per.CHANNEL, 16), _unsigned(8, Per.BLOCK, 16)),
    "signed in groups": AnyForm(
        CodeLayout(Grid.SIGNED, 8, Per.CHANNEL, 32), CodeLayout(Grid.E4M3, 8, Per.BLOCK, 32)
    ),
    "3 bits everywhere": AnyForm(_unsigned(3, Per.BLOCK, 16), _unsigned(3, Per.CHANNEL, 32)),
    "points as values": AnyForm(
        CodeLayout(Grid.E2M1, 4, Per.BLOCK, 16), CodeLayout(Grid.GAUSSIAN, 4, Per.SLOT)
    ),
}
SHIPPED = tuple(registry.names())
FORMS = (*SHIPPED, *ODD_FORMS)
FIELDS = ("form", "num_heads", "num_groups", "head_dim", "num_tokens", "dtype")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def form_named(name: str) -> Form:
    """A shipped form at its defaults, or one of `ODD_FORMS`."""
    return ODD_FORMS[name] if name in ODD_FORMS else registry.get(name)()


def fits(name: str, head_dim: int) -> bool:
    """Whether heads of this size can be stored so."""
    try:
        form_named(name).check(head_dim)
    except ValueError:
        return False
    return True


def packed_case(seed: int, forms: Sequence[str | None], **shape: object) -> Case:
    """`random_case` with row r in ``forms[r % len(forms)]``, or plain where that is None."""
    return with_forms(random_case(seed, **shape), forms)


def with_forms(case: Case, forms: Sequence[str | None]) -> Case:
    """``case``, its plain rows in ``forms``."""
    prefix_R = tuple(
        prefix if prefix is None or name is None else PackedLayer.of(prefix, form_named(name))
        for prefix, name in zip(case.layer.prefix_R, forms * len(case.layer.prefix_R), strict=False)
    )
    return replace(case, layer=replace(case.layer, prefix_R=prefix_R))


def check_form(
    seed: int,
    form: str,
    num_heads: int,
    num_groups: int,
    head_dim: int,
    num_tokens: int,
    dtype: torch.dtype,
    device: str,
    longest: int,
) -> None:
    """Rows in ``form``, beside plain ones, have the reference's and float64's numbers."""
    shape = {"num_heads": num_heads, "num_groups": num_groups, "head_dim": head_dim, "num_tokens": num_tokens}
    case = packed_case(
        seed, (form, form, form, None, form), dtype=dtype, device=device, longest=longest, **shape
    )
    check_against_both(case)


def check_bits_are_a_rows_own(plain: Case, forms: Sequence[str]) -> None:
    """Whatever forms the others have, or none, and alone, a row has the same bits; plain rows those of an unpacked batch."""
    mixed = with_forms(plain, (None, *forms))
    others = with_forms(plain, (*forms[1:], None, *forms[:1]))
    together = attend_into_poison(mixed)
    _check_same(together, attend_into_poison(mixed), range(len(plain.layer.prefix_R)))
    unpacked = attend_into_poison(plain)
    for row, layer in enumerate(mixed.layer.prefix_R):
        if not plain.layer.num_new_R[row]:
            continue
        _check_same(together, attend_into_poison(alone(mixed, row)), [row])
        if not isinstance(layer, PackedLayer):
            _check_same(together, unpacked, [row])
        prefix_R = tuple(
            layer if index == row else other for index, other in enumerate(others.layer.prefix_R)
        )
        beside_others = replace(others, layer=replace(others.layer, prefix_R=prefix_R))
        _check_same(together, attend_into_poison(beside_others), [row])


def _check_same(first: RaggedAttention, second: RaggedAttention, rows: Sequence[int]) -> None:
    """The same output of these rows, and the same masses of those of them that asked in both."""
    for row in rows:
        assert torch.equal(first.out_RTQD[row], second.out_RTQD[row]), f"row {row}"
        if row in first.mass_by_row and row in second.mass_by_row:
            for one, other in zip(first.mass_by_row[row], second.mass_by_row[row], strict=True):
                assert torch.equal(one, other), f"row {row}"


def check_any_packed_tiling(case: Case) -> None:
    """However the work over packed prefixes is cut, the numbers are the same up to rounding."""
    from kvmerger.kernels.triton.tiling import PackedTiling

    expected = attend_into_poison(case)
    for tiling in (
        PackedTiling(4, 32, split_slots=32, most_parts=3),
        PackedTiling(16, 32, split_slots=32, num_warps=2),
        PackedTiling(8, 128, split_slots=128, most_parts=1, num_warps=4),
    ):
        ours = attend_into_poison(case, packed_tiling=tiling)
        tolerance = TOLERANCE[case.q_RQTD.dtype]
        torch.testing.assert_close(ours.out_RTQD, expected.out_RTQD, atol=tolerance, rtol=tolerance)
        for row, mass in expected.mass_by_row.items():
            for our_part, their_part in zip(ours.mass_by_row[row], mass, strict=True):
                torch.testing.assert_close(our_part, their_part, atol=MASS_TOLERANCE, rtol=MASS_TOLERANCE)


def check_changed_groups_are_followed(case: Case, form: str) -> None:
    """One table serves rows that become plain, or packed, or are joined with those of another."""
    layer, device = case.layer, case.q_RQTD.device
    packed = with_forms(case, (form, None)).layer.prefix_R
    plain = [None if prefix is None else (prefix,) for prefix in layer.prefix_R]
    mixed = [None if prefix is None else (prefix,) for prefix in packed]
    lengths_2R = lengths_on_device(layer.tail_start_R, layer.num_new_R, device)
    table = PrefixTable(plain, device)
    before = table.group_key
    table.follow(mixed)
    rows = table.layer(0, lengths_2R)
    assert table.group_key != before and [group.rows for group in rows.groups] == [(0, 2, 4)]
    check_against_both(replace(case, layer=replace(layer, prefix_R=packed, device_rows=rows)))
    halves = {0: PrefixTable(mixed[:4], device), 4: PrefixTable(mixed[4:], device)}
    columns_LRHJ = torch.cat([halves[start].layer(0, lengths_2R).columns_RHJ for start in (0, 4)])[None]
    joined = PrefixTable.joined(halves, mixed, columns_LRHJ)
    assert joined.group_key == table.group_key
    rows = joined.layer(0, lengths_2R)
    check_against_both(replace(case, layer=replace(layer, prefix_R=packed, device_rows=rows)))

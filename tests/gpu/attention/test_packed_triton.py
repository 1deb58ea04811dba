"""Attention over packed codes on CUDA: the reference's numbers for every form, bits that are a row's own, and recordings."""

import itertools
from dataclasses import replace

import pytest
import torch

from kvmerger.cache.row_table import PrefixTable, lengths_on_device
from tests.kvmerger.kernels.both.packed_cases import (
    BF16,
    F16,
    F32,
    FIELDS,
    FORMS,
    ODD_FORMS,
    SHIPPED,
    check_any_packed_tiling,
    check_bits_are_a_rows_own,
    check_changed_groups_are_followed,
    check_form,
    fits,
    packed_case,
)
from tests.kvmerger.kernels.both.ragged_cases import (
    arguments,
    check_bounds_are_filled_with_zeros,
    random_case,
)

triton_ragged = pytest.importorskip("kvmerger.kernels.triton.ragged", exc_type=ImportError)
is_interpreted = pytest.importorskip("kvmerger.kernels.triton.packed", exc_type=ImportError).is_interpreted
pytestmark = pytest.mark.gpu

# KV heads, query heads of each, head size, tokens, dtype.
SHAPES = [
    *[
        (form, heads, 4, head_dim, num_tokens, BF16)
        for form, (heads, head_dim), num_tokens in itertools.product(
            SHIPPED, ((2, 64), (1, 80), (2, 128)), (1, 40)
        )
        if fits(form, head_dim)
    ],
    *[(form, 2, 3, 64, 3, BF16) for form in ODD_FORMS],
    *[(form, 1, 1, 80, 1, F16) for form in FORMS if fits(form, 80)],
    *[(form, 2, 8, 128, 2, F16) for form in ("int8", "fp8_scaled", "kivi4", "turboquant_4bit_nc", "k2v4")],
    *[(form, 2, 5, 256, 1, BF16) for form in ("int4_rotated", "kivi2", "fp8")],
    *[(form, 2, 3, 64, 2, F32) for form in ("fp8", "int8", "kivi4", "int4_rotated", "nvfp4")],
]


@pytest.mark.parametrize(FIELDS, SHAPES, ids=str)
def test_equals_the_reference_and_float64(
    form: str,
    num_heads: int,
    num_groups: int,
    head_dim: int,
    num_tokens: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    assert not is_interpreted()
    check_form(seed, form, num_heads, num_groups, head_dim, num_tokens, dtype, "cuda", longest=700)


@pytest.mark.parametrize("form", ["int4", "kivi4", "fp8"])
def test_long_prefixes(form: str, seed: int) -> None:
    check_form(seed, form, 2, 4, 128, 1, BF16, "cuda", longest=20000)


@pytest.mark.parametrize("num_tokens", [1, 4, 65])
def test_a_rows_bits_are_its_own(num_tokens: int, seed: int) -> None:
    plain = random_case(seed, num_groups=4, num_tokens=num_tokens, dtype=BF16, device="cuda", longest=3000)
    check_bits_are_a_rows_own(plain, ("int4", "kivi2", "fp8"))


@pytest.mark.parametrize(
    ("forms", "num_tokens"), [(("kivi4", None, "int4_rotated"), 1), (("nvfp4", None), 9)]
)
def test_any_tiling_gives_the_same_numbers(forms: tuple[str | None, ...], num_tokens: int, seed: int) -> None:
    case = packed_case(
        seed, forms, num_heads=1, head_dim=64, num_tokens=num_tokens, dtype=BF16, device="cuda"
    )
    check_any_packed_tiling(case)


def test_changed_groups_are_followed(seed: int) -> None:
    check_changed_groups_are_followed(random_case(seed, dtype=BF16, device="cuda"), "kivi4")


@pytest.mark.parametrize("num_tokens", [1, 9])
def test_masses_behind_a_rows_end_are_zeros(num_tokens: int, seed: int) -> None:
    check_bounds_are_filled_with_zeros(
        packed_case(seed, ("int4", None), num_tokens=num_tokens, device="cuda")
    )


def test_a_graph_holds_all_groups(seed: int) -> None:
    """Recorded once, the launches of all forms give a later step's numbers, masses included."""
    case = packed_case(seed, ("int4", None, "kivi4", "fp8"), dtype=BF16, device="cuda")
    layer, device = case.layer, case.q_RQTD.device
    prefixes = [None if prefix is None else (prefix,) for prefix in layer.prefix_R]
    lengths_2R = lengths_on_device(layer.tail_start_R, layer.num_new_R, device)
    rows = PrefixTable(prefixes, device).layer(0, lengths_2R)
    case = replace(case, layer=replace(layer, device_rows=rows))
    triton_ragged.ragged_attention(*arguments(case))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = triton_ragged.ragged_attention(*arguments(case))
    case.q_RQTD.mul_(-0.5)
    expected = triton_ragged.ragged_attention(*arguments(case))
    graph.replay()
    assert torch.equal(recorded.out_RTQD, expected.out_RTQD)
    for row, mass in expected.mass_by_row.items():
        assert torch.equal(recorded.mass_by_row[row].prefix_S, mass.prefix_S)

"""Attention over packed codes under Triton's CPU interpreter; run by test_triton_kernels.py in a process of its own.

tests/gpu/attention/test_packed_triton.py runs the same cases and more on CUDA.
"""

import pytest
import torch

import tests.kvmerger.kernels.interpreter.triton_interpreter  # noqa: F401  (before any kernel)
from tests.kvmerger.kernels.both.packed_cases import (
    BF16,
    F16,
    F32,
    FIELDS,
    FORMS,
    check_any_packed_tiling,
    check_bits_are_a_rows_own,
    check_changed_groups_are_followed,
    check_form,
    packed_case,
)
from tests.kvmerger.kernels.both.ragged_cases import check_bounds_are_filled_with_zeros, random_case

# KV heads, query heads of each, head size, tokens, dtype.
SHAPES = [
    *[(form, 1, 4, 64, 1, BF16) for form in FORMS],
    *[
        (form, 2, 3, 80, 2, BF16)
        for form in ("fp8", "int8", "int4", "kivi4", "kivi3", "kivi2", "nvfp4", "k8v2")
    ],
    ("groups of 24 and 40", 2, 1, 80, 1, F16),
    ("int4_rotated", 1, 3, 16, 2, F32),
    ("turboquant_3bit_nc", 1, 8, 128, 1, F16),
    ("kivi4", 1, 4, 128, 20, BF16),
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
    check_form(seed, form, num_heads, num_groups, head_dim, num_tokens, dtype, "cpu", longest=100)


@pytest.mark.parametrize("num_tokens", [1, 33])
def test_a_rows_bits_are_its_own(num_tokens: int, seed: int) -> None:
    plain = random_case(seed, num_heads=1, head_dim=16, num_tokens=num_tokens, dtype=BF16, longest=70)
    check_bits_are_a_rows_own(plain, ("int4", "kivi2"))


@pytest.mark.parametrize(
    ("forms", "num_tokens"), [(("kivi4", None, "int4_rotated"), 1), (("nvfp4", None), 9)]
)
def test_any_tiling_gives_the_same_numbers(forms: tuple[str | None, ...], num_tokens: int, seed: int) -> None:
    check_any_packed_tiling(
        packed_case(seed, forms, num_heads=1, head_dim=16, num_tokens=num_tokens, dtype=BF16, longest=70)
    )


def test_changed_groups_are_followed(seed: int) -> None:
    check_changed_groups_are_followed(random_case(seed, num_heads=2, head_dim=16, longest=70), "kivi4")


@pytest.mark.parametrize("num_tokens", [1, 9])
def test_masses_behind_a_rows_end_are_zeros(num_tokens: int, seed: int) -> None:
    check_bounds_are_filled_with_zeros(
        packed_case(seed, ("int4", None), num_heads=1, head_dim=16, num_tokens=num_tokens, longest=70)
    )

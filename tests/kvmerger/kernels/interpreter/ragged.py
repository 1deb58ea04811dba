"""The Triton kernels under its CPU interpreter; run by test_triton_kernels.py in a process of its own.

The interpreter takes seconds for what a GPU does in microseconds. tests/gpu/attention/test_ragged_triton.py runs the same
cases and more on CUDA.
"""

import pytest
import torch

import tests.kvmerger.kernels.interpreter.triton_interpreter  # noqa: F401  (before any kernel)
from tests.kvmerger.kernels.both.ragged_cases import (
    FEW,
    FIELDS,
    check_against_both,
    check_any_tiling,
    check_bounds_are_filled_with_zeros,
    check_changed_rows_are_followed,
    check_rows_do_not_see_each_other,
    random_case,
)

LONGEST = 140  # slots of a head


@pytest.mark.parametrize(FIELDS, FEW, ids=str)
def test_equals_the_reference_and_float64(
    num_groups: int, head_dim: int, num_tokens: int, dtype: torch.dtype, seed: int
) -> None:
    check_against_both(
        random_case(
            seed,
            num_groups=num_groups,
            head_dim=head_dim,
            num_tokens=num_tokens,
            dtype=dtype,
            longest=LONGEST,
        )
    )


def test_a_prefix_of_several_splits_is_put_together(seed: int) -> None:
    check_against_both(random_case(seed, num_heads=1, num_groups=4, head_dim=16, longest=600))


@pytest.mark.parametrize(("num_tokens", "dtype"), [(1, torch.bfloat16), (9, torch.float32)], ids=str)
def test_a_rows_bits_do_not_depend_on_its_neighbours(num_tokens: int, dtype: torch.dtype, seed: int) -> None:
    case = random_case(seed, num_heads=1, head_dim=16, num_tokens=num_tokens, dtype=dtype, longest=LONGEST)
    check_rows_do_not_see_each_other(case)


@pytest.mark.parametrize("num_tokens", [1, 9])
def test_any_tiling_gives_the_same_numbers(num_tokens: int, seed: int) -> None:
    check_any_tiling(random_case(seed, num_heads=1, head_dim=16, num_tokens=num_tokens, longest=LONGEST // 2))


def test_changed_rows_are_followed(seed: int) -> None:
    check_changed_rows_are_followed(random_case(seed, num_heads=2, head_dim=16, longest=LONGEST))


@pytest.mark.parametrize("num_tokens", [1, 9])
def test_masses_behind_a_rows_end_are_zeros(num_tokens: int, seed: int) -> None:
    check_bounds_are_filled_with_zeros(
        random_case(seed, num_heads=1, head_dim=16, num_tokens=num_tokens, longest=LONGEST)
    )

"""A prompt's attention mass by Triton, under its CPU interpreter; run by test_triton_kernels.py in a process of its own.

tests/gpu/test_prompt_triton.py runs the same cases and more on CUDA.
"""

import pytest
import torch

import tests.kvmerger.kernels.triton_interpreter  # noqa: F401  (before any kernel)
from tests.kvmerger.kernels.mass_cases import (
    FEW,
    FIELDS,
    WINDOWS,
    check_any_tiling,
    check_log_sum_exp,
    check_mass,
    check_window,
    random_prompt,
)


@pytest.mark.parametrize("has_lse", [False, True])
@pytest.mark.parametrize(FIELDS, FEW, ids=str)
def test_mass_is_the_float64_loops(
    num_tokens: int,
    num_heads: int,
    num_groups: int,
    head_dim: int,
    dtype: torch.dtype,
    has_lse: bool,
    seed: int,
) -> None:
    shape = (num_tokens, num_heads, num_groups, head_dim)
    check_mass(random_prompt(seed, *shape, dtype, "cpu"), has_lse=has_lse)


@pytest.mark.parametrize("window_tokens", WINDOWS)
def test_window_attention_is_the_float64_loops(window_tokens: int, seed: int) -> None:
    for has_lse in (False, True):
        check_window(
            random_prompt(seed, 150, 2, 3, 64, torch.bfloat16, "cpu"), window_tokens, has_lse=has_lse
        )


def test_any_tiling_gives_the_same_mass(seed: int) -> None:
    check_any_tiling(random_prompt(seed, 200, 1, 2, 64, torch.bfloat16, "cpu"))


@pytest.mark.parametrize(FIELDS, FEW, ids=str)
def test_log_sum_exp_is_the_float64_loops(
    num_tokens: int, num_heads: int, num_groups: int, head_dim: int, dtype: torch.dtype, seed: int
) -> None:
    check_log_sum_exp(random_prompt(seed, num_tokens, num_heads, num_groups, head_dim, dtype, "cpu"))


def test_no_token_has_no_mass() -> None:
    from kvmerger.kernels import triton_prompt

    q_QND, k_HND = torch.empty(6, 0, 16), torch.empty(2, 0, 16)
    assert triton_prompt.attention_mass(q_QND, k_HND, 1.0).shape == (2, 0)
    assert triton_prompt.window_attention(q_QND, k_HND, 1.0, 4).shape == (6, 0)

"""Tests of a prompt's attention mass by Triton that hold on any device; whoever imports them has a fixture `device`.

tests/gpu/test_prompt_triton.py runs them on CUDA, interpreted_triton_prompt.py under Triton's CPU interpreter.
"""

import pytest
import torch

from tests.kvmerger.kernels.both.mass_cases import (
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
    device: str,
) -> None:
    shape = (num_tokens, num_heads, num_groups, head_dim)
    check_mass(random_prompt(seed, *shape, dtype, device), has_lse=has_lse)


@pytest.mark.parametrize("window_tokens", WINDOWS)
def test_window_attention_is_the_float64_loops(window_tokens: int, seed: int, device: str) -> None:
    for has_lse in (False, True):
        check_window(
            random_prompt(seed, 150, 2, 3, 64, torch.bfloat16, device), window_tokens, has_lse=has_lse
        )


def test_any_tiling_gives_the_same_mass(seed: int, device: str) -> None:
    check_any_tiling(random_prompt(seed, 200, 1, 2, 64, torch.bfloat16, device))


@pytest.mark.parametrize(FIELDS, FEW, ids=str)
def test_log_sum_exp_is_the_float64_loops(
    num_tokens: int,
    num_heads: int,
    num_groups: int,
    head_dim: int,
    dtype: torch.dtype,
    seed: int,
    device: str,
) -> None:
    check_log_sum_exp(random_prompt(seed, num_tokens, num_heads, num_groups, head_dim, dtype, device))

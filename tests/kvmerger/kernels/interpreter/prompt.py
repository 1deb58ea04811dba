"""A prompt's attention mass by Triton, under its CPU interpreter; run by test_triton_kernels.py in a process of its own.

tests/gpu/test_prompt_triton.py runs the same cases and more on CUDA.
"""

import pytest
import torch

import tests.kvmerger.kernels.interpreter.triton_interpreter  # noqa: F401  (before any kernel)
from tests.kvmerger.kernels.both.mass import (  # noqa: F401  (collected here)
    test_any_tiling_gives_the_same_mass,
    test_log_sum_exp_is_the_float64_loops,
    test_mass_is_the_float64_loops,
    test_window_attention_is_the_float64_loops,
)


@pytest.fixture
def device() -> str:
    return "cpu"


def test_no_token_has_no_mass() -> None:
    from kvmerger.kernels.triton import prompt as triton_prompt

    q_QND, k_HND = torch.empty(6, 0, 16), torch.empty(2, 0, 16)
    assert triton_prompt.attention_mass(q_QND, k_HND, 1.0).shape == (2, 0)
    assert triton_prompt.window_attention(q_QND, k_HND, 1.0, 4).shape == (6, 0)

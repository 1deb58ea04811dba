"""The most similar kept token by Triton, under its CPU interpreter; run by test_triton_kernels.py in a process of its own.

tests/gpu/test_nearest_triton.py runs the same cases and longer ones on CUDA.
"""

import pytest

import tests.kvmerger.kernels.interpreter.triton_interpreter  # noqa: F401  (before any kernel)
from tests.kvmerger.kernels.both.nearest import (  # noqa: F401  (collected here)
    test_a_heads_bits_are_its_own,
    test_the_most_similar_kept_token_is_float64s,
)


@pytest.fixture
def device() -> str:
    return "cpu"

"""A decoder layer's Triton kernels under their CPU interpreter; run by test_triton_kernels.py in a process of its own.

tests/gpu/test_layer_triton.py runs the same cases and more on CUDA.
"""

import pytest

import tests.kvmerger.kernels.interpreter.triton_interpreter  # noqa: F401  (before any kernel)
from tests.kvmerger.kernels.both.layer import (  # noqa: F401  (collected here)
    test_gated_is_the_references,
    test_norms_are_the_references,
    test_rotated_heads_are_the_references,
    test_tails_get_each_rows_new_tokens_and_nothing_else,
)


@pytest.fixture
def device() -> str:
    return "cpu"

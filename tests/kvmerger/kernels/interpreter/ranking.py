"""Ranking and copying slots by Triton, under its CPU interpreter; run by test_triton_kernels.py in a process of its own.

tests/gpu/test_ranking_triton.py runs the same cases and longer ones on CUDA.
"""

import pytest

import tests.kvmerger.kernels.interpreter.triton_interpreter  # noqa: F401  (before any kernel)


@pytest.fixture
def device() -> str:
    return "cpu"

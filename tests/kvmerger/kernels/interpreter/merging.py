"""Merging by Triton, under its CPU interpreter; run by test_triton_kernels.py in a process of its own.

tests/gpu/test_merging_triton.py runs the same cases and longer ones on CUDA.
"""

import pytest

import tests.kvmerger.kernels.interpreter.triton_interpreter  # noqa: F401  (before any kernel)
from tests.kvmerger.kernels.both.merging import (  # noqa: F401  (collected here)
    test_groups_become_the_loops_slots,
    test_mean_units_and_cosines_with_them_are_float64s,
    test_rows_and_pairs_have_float64s_numbers,
    test_runs_give_the_loops_numbers,
)


@pytest.fixture
def device() -> str:
    return "cpu"

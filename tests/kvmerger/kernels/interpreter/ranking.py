"""Ranking and copying slots by Triton, under its CPU interpreter; run by test_triton_kernels.py in a process of its own.

tests/gpu/test_ranking_triton.py runs the same cases and longer ones on CUDA.
"""

import pytest

import tests.kvmerger.kernels.interpreter.triton_interpreter  # noqa: F401  (before any kernel)
from tests.kvmerger.kernels.both.ranking import (  # noqa: F401  (collected here)
    test_no_column_is_no_place,
    test_scores_may_lie_in_memory_in_any_way,
    test_slots_are_copied_bit_for_bit,
    test_the_same_are_among_the_highest_as_in_a_stable_sort,
)


@pytest.fixture
def device() -> str:
    return "cpu"

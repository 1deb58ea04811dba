"""Buckets: every number of rows has one, and the A/A row always has another."""

from hypothesis import given
from hypothesis import strategies as st

from kvmerger.limits import ROW_BUCKETS, another_bucket, bucket_for


@given(num_rows=st.integers(1, 1000))
def test_a_bucket_holds_its_rows_and_there_are_few_of_them(num_rows: int) -> None:
    bucket = bucket_for(num_rows)
    assert bucket >= num_rows
    assert bucket in ROW_BUCKETS or bucket % ROW_BUCKETS[-1] == 0
    assert bucket_for(bucket) == bucket, "a full bucket is its own"


@given(num_rows=st.integers(1, 1000), num_main_rows=st.integers(1, 1000))
def test_the_other_bucket_is_never_the_one_taken(num_rows: int, num_main_rows: int) -> None:
    taken = bucket_for(num_main_rows)
    other = another_bucket(num_rows, taken)
    assert other != taken
    assert other >= num_rows

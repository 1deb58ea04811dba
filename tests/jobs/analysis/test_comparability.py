"""What makes pairs wrong is refused by name; what may be the point of a comparison is told."""

import json
from typing import Any

import pytest

from jobs.analysis.comparability import ComparisonError, check_comparable, differences_to_tell
from jobs.results.schema import FAILED
from tests.fakes.pairs import paired_rows


def test_equal_results_are_comparable_and_there_is_nothing_to_tell(seed: int) -> None:
    rows = paired_rows(seed, 3)
    assert check_comparable(rows, rows) == {("query_mode", "model")}
    assert differences_to_tell(rows, rows) == ()


@pytest.mark.parametrize(
    ("column", "value", "name"),
    [
        ("model", "other", "model"),
        ("query_mode", "other", "query mode"),
        ("model_revision", "other", "model revision"),
        ("dtype", "bfloat16", "dtype"),
        ("metric", "rouge", "scorer"),
        ("answers", ["x"], "gold answers"),
        ("cluster_id", "x", "context"),
        ("context_tokens", 7, "context tokens"),
        ("tail_tokens", 7, "tail tokens"),
        ("prompt_digest", "x", "prompt or answer length"),
        ("scorer", "qa_f1 (2.0)", "scorer's version"),
    ],
)
def test_what_makes_pairs_wrong_is_refused_by_name(seed: int, column: str, value: Any, name: str) -> None:
    rows = paired_rows(seed, 3)
    other = [row | {column: value} for row in rows]
    with pytest.raises(ComparisonError, match=rf"differ in\n  {name}"):
        check_comparable(rows, other)


def test_all_that_differs_is_listed_at_once(seed: int) -> None:
    rows = paired_rows(seed, 3)
    other = [row | {"dtype": "bfloat16", "metric": "rouge"} for row in rows]
    with pytest.raises(ComparisonError) as caught:
        check_comparable(rows, other)
    assert "dtype: float32 in A, bfloat16 in B" in str(caught.value)
    assert "scorer of 3 of 3 common items" in str(caught.value)


def test_a_failed_row_knows_no_dtype_and_stands_in_no_way(seed: int) -> None:
    rows = paired_rows(seed, 3)
    other = [*rows[1:], rows[0] | {"status": FAILED, "dtype": None, "context_tokens": None}]
    check_comparable(rows, other)


def test_folders_without_common_items_or_results_are_refused(seed: int) -> None:
    rows = paired_rows(seed, 3)
    with pytest.raises(ComparisonError, match="no item is in both"):
        check_comparable(rows, [row | {"item_id": f"new {row['item_id']}"} for row in rows])
    with pytest.raises(ComparisonError, match="B has no finished rows"):
        check_comparable(rows, [row | {"status": FAILED} for row in rows])


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"versions": json.dumps({"torch": "2.14"})}, "torch: 2.13 in A, 2.14 in B"),
        ({"device": "cuda"}, "device: None in A, cuda in B"),
        ({"device_name": "NVIDIA H200"}, "device's name: unknown in A, NVIDIA H200 in B"),
        ({"execution": "isolated"}, "execution: execution in A, isolated in B"),
        ({"layers": "transformers"}, "decoder layers by: fused in A, transformers in B"),
        ({"policy_version": "2"}, "snapkv@0.5, version: None in A, 2 in B"),
    ],
)
def test_what_may_explain_a_difference_is_told(seed: int, values: dict[str, Any], told: str) -> None:
    rows = paired_rows(seed, 3)
    other = [row | values for row in rows]
    check_comparable(rows, other)
    assert told in differences_to_tell(rows, other)


def test_what_rows_of_older_versions_do_not_know_is_not_told(seed: int) -> None:
    rows = paired_rows(seed, 3)
    assert differences_to_tell(rows, [row | {"attention": None, "layers": None} for row in rows]) == ()


def test_another_identity_of_the_full_row_is_told(seed: int) -> None:
    rows = paired_rows(seed, 3)
    other = [row | {"identity": f"x{row['identity']}"} for row in rows]
    assert any("other identities" in it for it in differences_to_tell(rows, other))


def test_of_a_variant_another_form_is_told_and_other_bits_where_the_form_is_the_same(seed: int) -> None:
    rows = [row | {"form": "int4", "bits_k": 4.0, "bits_v": 4.0} for row in paired_rows(seed, 3)]
    of = "kvmerger@0.5"

    def told(**values: Any) -> list[str]:
        other = [row | values if row["variant"] == of else row for row in rows]
        return [it for it in differences_to_tell(rows, other) if it.startswith(of)]

    assert told(form="kivi2", bits_k=2.0, bits_v=2.0) == [f"{of}, stored as: int4 in A, kivi2 in B"]
    assert told(bits_k=3.5) == [f"{of}, bits of keys: 4.0 in A, 3.5 in B"]
    assert told(form=None, bits_k=None, bits_v=None) == []  # rows of before forms

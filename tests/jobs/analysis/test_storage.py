"""Of a variant, bytes and bits are means over the rows that tell them, and a form is told once."""

from __future__ import annotations

import random

import pytest

from jobs.analysis.differences import differences_between
from jobs.analysis.storage import mean_storage, storage_of
from jobs.analysis.summary import series_name, summarize
from tests.fakes.rows import INT4, K8V4, make_row, make_sweep_rows, with_forms


def test_a_share_is_a_mean_of_shares_and_no_share_of_means() -> None:
    """The longer prompt of two does not outvote the shorter one."""
    rows = [make_row("a", kv_bytes=1, full_kv_bytes=2), make_row("b", kv_bytes=100, full_kv_bytes=1000)]
    assert storage_of(rows).held_share == pytest.approx((0.5 + 0.1) / 2)
    assert storage_of(rows).held_bytes == pytest.approx(50.5)


def test_old_rows_and_new_ones_of_a_variant_have_one_mean() -> None:
    rows = [
        make_row("a", kv_bytes=68, full_kv_bytes=136),
        make_row(
            "b",
            form="plain",
            bits_k=16.0,
            kv_bytes=34,
            full_kv_bytes=136,
            position_bytes=2,
            full_position_bytes=8,
        ),
    ]
    found = storage_of(rows)
    assert found.held_share == pytest.approx((0.5 + 32 / 128) / 2)
    assert (found.form, found.is_plain, found.bits_k, found.bits_v) == ("plain", True, 16.0, None)
    assert storage_of([]).is_plain and storage_of([]).held_share is None


def test_several_forms_are_all_named_and_are_not_plain() -> None:
    found = storage_of([make_row("a", form="plain"), make_row("b", form="int4"), make_row("c", form="int4")])
    assert (found.form, found.is_plain) == ("plain, int4", False)


def test_a_mean_over_tasks_needs_all_of_them() -> None:
    whole, old = storage_of([make_row("a", read_bytes=1, full_read_bytes=2)]), storage_of([make_row("b")])
    assert mean_storage([whole, whole]).read_share == 0.5
    assert mean_storage([whole, old]).read_share is None
    assert mean_storage([]).held_share is None


def test_tables_and_pairs_hold_the_same_numbers(seed: int) -> None:
    policies = {"int4": 1.0, "a@0.5+k8v4": 0.5}
    rows = with_forms(
        make_sweep_rows(random.Random(seed), policies, ["b/t", "b/u"], 3), {"int4": INT4, "a@0.5+k8v4": K8V4}
    )
    summary = summarize(rows)
    means = {it.label: it.storage for it in summary.macro_means(summary.settings()[0])}
    assert means["int4"].held_share == pytest.approx(INT4.bytes_ratio, abs=1e-5)
    assert (means["a@0.5+k8v4"].bits_k, means["a@0.5+k8v4"].bits_v) == (8.0, 4.0)
    for it in differences_between(rows, [("a@0.5+k8v4", "int4")]):
        assert it.policy_storage.held_share == pytest.approx(K8V4.bytes_ratio / 2, abs=1e-5)
        assert it.reference_storage.form == "int4"


@pytest.mark.parametrize(
    ("label", "asked", "name"),
    [
        ("snapkv@0.5+int4", '{"kept_ratio": 0.5}', "snapkv+int4"),
        ("snapkv@0.5+int4", None, "snapkv+int4"),
        ("snapkv@512+int4", '{"slots": 512}', "snapkv+int4"),
        ("random@like:snapkv@0.5+fp8+kivi4", '{"like": "snapkv@0.5+fp8"}', "random+kivi4"),
        ("random@bytes:like:snapkv@0.5+fp8", '{"bytes": {"like": "snapkv@0.5+fp8"}}', "random"),
        ("keydiff+keepkv@bytes:0.2+int4", '{"bytes": 0.2}', "keydiff+keepkv+int4"),
        ("int4", None, "int4"),
        ("mine", '{"kept_ratio": 0.5}', "mine"),
        ("snapkv@0.5", '{"kept_ratio": 0.5}', "snapkv"),
    ],
)
def test_a_form_stays_in_a_series_name_and_the_budget_does_not(
    label: str, asked: str | None, name: str
) -> None:
    rows = [make_row("a", variant=label, policy="p", budget_asked=asked)]
    assert series_name(summarize(rows).tasks[0].variants[0]) == name

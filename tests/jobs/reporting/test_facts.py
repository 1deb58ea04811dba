"""What ran is counted from the rows and from nothing else."""

import pytest
import yaml

from jobs.reporting.facts import num_prefills, setting_facts, shown_settings
from jobs.results.schema import FAILED, Row
from tests.fakes.rows import make_row


def rows_of(execution: str) -> list[Row]:
    return [
        make_row(f"{unit}/{label}/{item}", unit, variant=label, item_id=item, execution=execution)
        for unit in ("u1", "u2")
        for label in ("full", "knorm@0.5", "snapkv@0.5")
        for item in ("q1", "q2")
    ]


def test_a_fused_unit_is_one_prefill_whatever_it_served() -> None:
    assert num_prefills(rows_of("fused")) == 2


def test_an_isolated_unit_is_a_prefill_per_variant() -> None:
    assert num_prefills(rows_of("isolated")) == 6


def test_contexts_that_share_a_unit_have_a_prefill_each() -> None:
    agnostic = [row | {"cluster_id": row["item_id"]} for row in rows_of("fused")]
    assert num_prefills(agnostic) == 4
    aware = [row | {"query_mode": "query_aware"} for row in rows_of("fused")]
    assert num_prefills(aware) == 4


def test_a_unit_that_failed_proves_no_prefill() -> None:
    rows = rows_of("fused")
    for row in rows:
        row["status"] = FAILED if row["unit_id"] == "u1" else row["status"]
    assert num_prefills(rows) == 1


def test_every_device_is_named_and_one_without_a_name_is_called_unknown() -> None:
    devices = [("cuda", "NVIDIA H200"), ("cuda", "NVIDIA H200"), ("cuda", None), (None, None)]
    rows = [
        row | {"device": device, "device_name": name}
        for row, (device, name) in zip(rows_of("fused"), devices, strict=False)
    ]
    (facts,) = setting_facts(rows)
    assert facts.device == "cuda (NVIDIA H200), cuda (name unknown)"


@pytest.mark.parametrize(
    "password", ["Kn0ck", "Kn0ck " * 30 + "Kn0ck", "Kn0ck'Kn0ck", 'Kn0ck"', "Kn0ck: - Kn0ck"]
)
def test_settings_are_shown_without_passwords_however_yaml_writes_them(password: str) -> None:
    settings = {"name": "a", "tracking": {"uri": f"http://joe:{password}@h/x"}, "tasks": [{"data": "/a@b"}]}
    shown = shown_settings(yaml.safe_dump(settings))
    assert yaml.safe_load(shown) == {**settings, "tracking": {"uri": "http://…@h/x"}}
    assert "Kn0ck" not in shown_settings(f"a: [\nuri: http://joe:{password}@h")  # which is no YAML


def test_settings_without_passwords_are_shown_as_they_were_written() -> None:
    text = "name: a  # mine\ntracking: {uri: sqlite:////a@b/c.db}\n"
    assert shown_settings(text) == text

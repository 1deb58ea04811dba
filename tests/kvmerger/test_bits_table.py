"""A table of bits is what its hash says, in its file and among parameters, and is another model's where it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvmerger.bits_table import checked, content_hash, read_table, sealed, table_of
from kvmerger.names import VariantError
from kvmerger.nested import frozen
from kvmerger.variants import parse_policy_entry
from tests.fakes.settings import table_of_pairs

PAIRS = [(8, 4), (4, 2), (2, 2)]


def test_its_content_has_one_hash_in_a_file_and_among_parameters(tmp_path: Path) -> None:
    table = table_of_pairs(PAIRS, ["c1", "c2"])
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table, indent=1))
    short = read_table(path)
    assert isinstance(short["errors"], str) and short != table
    for content in (table, short, frozen(short), frozen(table), json.loads(json.dumps(short))):
        assert content_hash(content) == table["hash"] == checked(content).content_hash
    found = checked(short)
    assert found.pairs_L == tuple(PAIRS) and found.items == {"c1", "c2"}
    assert found.mean_bits == 22 / 6


@pytest.mark.parametrize(
    "change",
    [
        {"pairs": [[8, 4], [4, 2], [4, 2]]},
        {"items": ["c1"]},
        {"seed": 1},
        {"mean_bits": 4.0},
        {"errors": [{"k8v8": 0.25}] * 3},
        {"model": {"name": "tiny", "revision": "files-1", "dtype": "float32"}},
    ],
)
def test_whatever_is_changed_in_it_is_noticed_and_makes_another_hash(change: dict[str, Any]) -> None:
    table = table_of_pairs(PAIRS, ["c1", "c2"])
    with pytest.raises(VariantError, match=r"was changed since it was made.*jobs/calibrate.py"):
        checked(table | change)
    assert sealed(table | change)["hash"] != table["hash"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "kvtuner needs a table, as in {name: kvtuner, table: table.json}"),
        ("table.json", "was not read"),
        ([1, 2], "has the keys errors, hash, items"),
        ({"pairs": [[8, 8]]}, "has the keys errors, hash, items"),
        (table_of_pairs([]), "pairs are bits"),
        (table_of_pairs([(8, 3)]), "pairs are bits"),
        (table_of_pairs([(8, True)]), "pairs are bits"),
        (table_of_pairs([(8, 4.0)]), "pairs are bits"),  # type: ignore[list-item]
        (table_of_pairs(PAIRS, model="tiny"), "model has dtype, name, revision"),
        (table_of_pairs(PAIRS, items=[1]), "items are digests"),
    ],
)
def test_what_is_no_table_is_refused(content: Any, message: str) -> None:
    with pytest.raises(VariantError, match=message):
        checked(content)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "no JSON"), ("[]", "has the keys"), (None, "cannot read")]
)
def test_a_file_that_holds_none_is_named(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(VariantError, match=rf"(?s){message}") as caught:
        read_table(path)
    assert str(path) in str(caught.value)


def test_a_table_of_another_model_says_whose_it_is() -> None:
    table = checked(table_of_pairs(PAIRS))
    assert table.refusal("files-0", 3) is None
    assert "tiny at files-0, and the model is at files-1" in str(table.refusal("files-1", 3))
    assert "3 layers, and the model has 4" in str(table.refusal("files-0", 4))


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "kvtuner"},
        {"name": "snapkv@0.5+kvtuner"},
        {"name": "kvtuner", "kvtuner.table": None},
        {"name": "streaming_llm@0.5+kvtuner+streaming_llm_decode"},
    ],
)
def test_a_variant_is_told_by_its_table(entry: dict[str, Any]) -> None:
    key = "kvtuner.table" if "kvtuner.table" in entry else "table"
    (one,), (other,) = (
        parse_policy_entry({**entry, key: table_of_pairs(pairs)}) for pairs in (PAIRS, PAIRS[::-1])
    )
    assert table_of(one.policy, one.params) == checked(table_of_pairs(PAIRS))
    assert hash(one) != hash(other) and one.canonical() != other.canonical() and one.label == other.label
    assert json.loads(json.dumps(one.canonical()))["params"][key]["pairs"] == [list(it) for it in PAIRS]
    assert table_of("snapkv+int4", ()) is None

"""A table that settings name by its file is its content from then on, and one that cannot be used is a sentence."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import yaml

from jobs.settings.schema import Settings, load_settings
from kvmerger.bits_table import checked
from tests.fakes.settings import refused, table_of_pairs, write

PAIRS = [(8, 4), (4, 2)]
SETTINGS = """
tasks: [{name: ruler/niah_single_2, length: 1024, limit: 6}]
policies: [{name: kvtuner, table: TABLE}, {name: snapkv@0.5+kvtuner, kvtuner.table: TABLE}, int4]
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "tables" / "table.json"
    path.parent.mkdir()
    path.write_text(json.dumps(table_of_pairs(PAIRS)))
    return path


def text_with(path: str) -> str:
    return SETTINGS.replace("TABLE", path)


def test_its_content_takes_its_paths_place_and_needs_the_file_no_more(tmp_path: Path, table: Path) -> None:
    beside = load_settings(write(tmp_path, text_with("tables/table.json")))
    absolute = load_settings(write(tmp_path, text_with(str(table))))
    table.unlink()
    assert beside.variants == absolute.variants
    labels = [spec.label for spec in beside.variants]
    assert labels == ["kvtuner", "snapkv@0.5+kvtuner", "int4"]
    for spec in beside.variants[:2]:
        ((_, content),) = spec.params
        assert checked(content).pairs_L == tuple(PAIRS)
        assert pickle.loads(pickle.dumps(spec)) == spec
    # As they are stored with results, and read again without the file.
    stored = yaml.safe_load(yaml.safe_dump(beside.model_dump(mode="json")))
    assert Settings.model_validate(stored).variants == beside.variants


def test_a_table_that_is_not_there_or_was_changed_is_refused_by_its_name(tmp_path: Path, table: Path) -> None:
    message = refused(tmp_path, text_with("tables/tabel.json"))
    assert (
        "no table 'tables/tabel.json' (did you mean 'table.json'?)" in message and "calibrate.py" in message
    )
    table.write_text(table.read_text().replace("[8, 4]", "[8, 2]"))
    message = refused(tmp_path, text_with("tables/table.json"))
    assert "was changed since it was made" in message and str(table) in message
    (tmp_path / "tables" / "folder.json").mkdir()
    assert "no table" in refused(tmp_path, text_with("tables/folder.json"))

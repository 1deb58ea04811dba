"""A promoted night is named by `baseline.json`; what names none is told with its remedy, and nothing else is read for it."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.gate.baseline import BaselineError, PromotedNight
from jobs.results.store import ResultStore
from tests.fakes.rows import make_row


@pytest.mark.parametrize("night", [None, 5, "", ".", "..", "../other", "a/b", "/tmp", "\0", ["a"], {"a": 1}])
def test_a_pointer_that_names_no_night_beside_it_is_told(tmp_path: Path, night: Any) -> None:
    (tmp_path / "baseline.json").write_text(json.dumps({"night": night}))
    with pytest.raises(BaselineError, match=r"baseline\.json names no night; delete it and promote a night"):
        PromotedNight(tmp_path).find()


def test_the_night_that_was_promoted_is_found(tmp_path: Path) -> None:
    assert PromotedNight(tmp_path).find() is None
    night = ResultStore(tmp_path / "2026-12-01-abc")
    night.write_unit("u1", [make_row("a")])
    PromotedNight(tmp_path).promote(night)
    found = PromotedNight(tmp_path).find()
    assert found is not None and found.name == "2026-12-01-abc" and len(found.rows) == 1

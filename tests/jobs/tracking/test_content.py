"""What a tracker is told of a variant's budget and of the run's job, in a word; a variant has the name of its table."""

from __future__ import annotations

import random
from typing import Any

import pytest

from jobs.analysis.summary import summarize
from jobs.tracking.content import budget_text, links_of, table_names
from kvmerger.budget import BytesLike, BytesShare, KeptRatio, LikeVariant, SlotCount
from kvmerger.variants import VariantSpec
from tests.fakes.rows import make_sweep_rows


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (KeptRatio(0.5), "0.5"),
        (SlotCount(512), "512"),
        (LikeVariant("kvmerger@0.5"), "like:kvmerger@0.5"),
        (BytesShare(0.2), "bytes:0.2"),
        (BytesLike("snapkv@0.5+fp8"), "bytes:like:snapkv@0.5+fp8"),
        (None, "none"),
    ],
)
def test_every_budget_has_its_word(budget: Any, text: str) -> None:
    assert budget_text(VariantSpec("a", "a", (), budget).canonical()["budget"]) == text


@pytest.mark.parametrize("tasks", [["longbench/qasper"], ["longbench/qasper", "ruler/vt"]])
def test_a_variant_has_the_name_of_the_first_table(tasks: list[str], seed: int) -> None:
    label = "kvmerger_paper[0.17+0.12]"
    rows = make_sweep_rows(random.Random(seed), {label: 0.4, "knorm@0.5": 0.5}, tasks, 3)
    named = [row | {"policy": row["policy"].partition("[")[0]} for row in rows]
    assert table_names(summarize(named)) == {
        "full": "full cache",
        "full_aa": "full again (A/A noise)",
        "no_context": "no context (tail alone)",
        label: "kvmerger_paper (40.0% kept)",
        "knorm@0.5": "knorm@0.5",
    }


def test_the_tags_of_a_job_are_what_is_known_of_it() -> None:
    meta = {"ray": {"job_id": "02000000", "submission_id": None, "dashboard": "http://head:8265"}}
    assert links_of(meta) == {"ray_job_id": "02000000", "ray_dashboard": "http://head:8265"}
    assert links_of({}) == links_of({"ray": None}) == {}

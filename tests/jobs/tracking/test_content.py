"""What a tracker is told of a variant's budget and form, in a word."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.tracking.content import budget_text
from kvmerger.budget import BytesLike, BytesShare, KeptRatio, LikeVariant, SlotCount
from kvmerger.variants import VariantSpec


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (KeptRatio(0.5), "0.5"),
        (SlotCount(512), "512"),
        (LikeVariant("kvmerger@0.5"), "like kvmerger@0.5"),
        (BytesShare(0.2), "0.2 of bytes"),
        (BytesLike("snapkv@0.5+fp8"), "like snapkv@0.5+fp8 in bytes"),
        (None, "none"),
    ],
)
def test_every_budget_has_its_word(budget: Any, text: str) -> None:
    assert budget_text(VariantSpec("a", "a", (), budget).canonical()["budget"]) == text

"""What compressing says of a variant besides its slots."""

import pytest
import torch

from kvmerger.budget import KeptRatio
from kvmerger.building import Variant, build
from kvmerger.contract.layers import random_prefill
from kvmerger.engine.compress import compress_all


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("knorm", {}, None),
        ("pivots_only", {}, None),
        ("knorm+nearest", {"min_cosine": -0.99}, None),
        ("knorm+nearest", {"min_cosine": 1.0}, "merged nothing"),
        ("knorm+kvmerger", {"eps": 1.0}, "merged nothing"),
        ("kvmerger", {"mode": "threshold", "eps": 1.0}, "kept every slot"),
    ],
)
def test_a_policy_that_did_not_do_its_work_is_labelled(
    name: str, options: dict, reason: str | None, seed: int
) -> None:
    policy = build(name, options)
    compression = compress_all(
        random_prefill(seed, torch.float32, policy), [Variant("it", policy, KeptRatio(0.6))]
    )
    assert not compression.failed
    found = compression.done["it"].degenerate_reason
    assert found is None if reason is None else reason in str(found)

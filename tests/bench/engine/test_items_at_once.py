"""What the benchmark of several prompts at once counts."""

import argparse

import pytest
import torch

from bench.engine.items_at_once import line_of, measure
from bench.random_llama import random_llama


def test_every_number_of_prompts_runs_all_items_and_none_flips_in_fp32() -> None:
    model = random_llama("tiny", "cpu", torch.float32)
    options = argparse.Namespace(shape="tiny", items=3, new_tokens=3, variants=2, at_once=[1, 2, 3])
    found = measure(model, 60, options)
    assert [(one.at_once, one.num_items, one.num_failed_rows) for one in found] == [
        (n, 3, 0) for n in (1, 2, 3)
    ]
    for one in found:
        assert one.same_tokens_ratio > 0.9
        assert 0 < sum(one.phases_s.values()) <= one.seconds / one.num_items, "no phase counts twice"
        assert f"| 60 | {one.at_once} |" in line_of(one)
    assert found[0].same_tokens_ratio == pytest.approx(1.0)

"""What compressing says of a variant besides its slots; counters may be tensors, which become numbers all at once."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import pytest
import torch

from bench.engine.op_counter import OpCounter
from kvmerger.budget import KeptRatio
from kvmerger.building import Variant, build
from kvmerger.contract.layers import random_prefill
from kvmerger.engine.compress import compress_all
from kvmerger.policies.ranking.knorm import Knorm
from tests.fakes.tiny_models import TinyModel, tiny_model
from tests.kvmerger.engine.test_foreign_policies import NUM_LAYERS, prompts_of, run

# Prompts warn where an error makes them answer apart: then it reached more than its variant.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


@pytest.fixture(scope="module")
def model(seed: int) -> TinyModel:
    return tiny_model(seed, num_layers=NUM_LAYERS)


@dataclass(frozen=True)
class Counts(Knorm):
    """Counts what `counters` says, layer by layer."""

    counters: ClassVar[dict[str, Any]] = {
        "num_seen": torch.tensor(3),
        "is_fine": torch.tensor(True),
        "mean_norm": torch.tensor(0.5, dtype=torch.bfloat16),
        "largest_share": Fraction(1, 4),
        "num_calls": 2,
        "is_new": False,
    }
    compresses_stacks: ClassVar[bool] = False

    def compress(self, layer, evidence, budget):
        return super().compress(layer, evidence, budget).with_counters(self.counters)


def test_counters_that_are_tensors_of_no_dimension_are_numbers(model: TinyModel, seed: int) -> None:
    expected = {
        "num_seen": 3.0 * NUM_LAYERS, "is_fine": 1.0, "mean_norm": 0.5, "largest_share": 0.25,
        "num_calls": 2.0 * NUM_LAYERS, "is_new": 0.0,
    }  # fmt: skip
    rows = run(model, prompts_of(seed), [Variant("mine", Counts(), KeptRatio(0.5))], "run_many")
    for of_prompt in rows:
        counters = of_prompt["mine", 0].counters
        assert {name: counters[name] for name in expected} == expected
        assert all(type(value) is float for value in counters.values())


def test_counters_of_all_layers_are_fetched_at_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def waits() -> int:
        prefilled = random_prefill(seed, torch.float32, Counts())
        with OpCounter() as counter:
            compression = compress_all(prefilled, [Variant("it", Counts(), KeptRatio(0.5))])
        assert not compression.failed
        return counter.num_waits

    with_tensors = waits()
    monkeypatch.setattr(Counts, "counters", {"num_seen": 3.0})
    assert with_tensors == waits() + 1


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

"""A policy of a user's own with a plausible mistake costs its own rows, with a message that says what to write instead."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from kvmerger import (
    ATTENTION_MASS,
    DecodeRule,
    Engine,
    Generation,
    KeptRatio,
    Need,
    Policy,
    Prompt,
    Question,
    Variant,
    VariantFailure,
    build_variant,
    parse_policies,
)
from kvmerger.decoding.batch import Batch, Row
from kvmerger.engine.fused import needs_of
from kvmerger.prefill.prefill import prefill
from tests.fakes.tiny_models import VOCAB_SIZE, TinyModel, tiny_model

# Prompts warn where an error makes them answer apart: then it reached more than its variant.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
NUM_LAYERS = 3
LENGTHS = (40, 44)
BAD = "bad"
GOOD = [
    {"name": "knorm", "budget": 0.5},
    {"name": "h2o", "budget": 0.5},
    {"name": "h2o_decode", "budget": 0.5, "recent": 4},
]
Results = dict[tuple[str, int], Generation | VariantFailure]


@dataclass(frozen=True)
class KeepsAll(Policy):
    def compress(self, layer, evidence, budget):
        return layer


@dataclass(frozen=True)
class Returns(KeepsAll):
    """Keeps every slot, and gives back what `change` makes of the layer."""

    change: Callable[[Any], Any]

    def compress(self, layer, evidence, budget):
        return replace(layer, **self.change(layer))


@dataclass(frozen=True)
class Declares(KeepsAll):
    """Names `declared` as its evidence, whatever that is."""

    declared: Any

    def needs(self):
        return self.declared


@dataclass(frozen=True)
class Acts(KeepsAll):
    """Names `rule` as its rule, whatever that is."""

    rule: Any

    def decode_rule(self, prompt_seed):
        return self.rule


@dataclass(frozen=True)
class OldestLeaves(DecodeRule):
    def worth(self, step):
        return step.position_LHX.float()


@dataclass(frozen=True)
class AsksByMethod(OldestLeaves):
    def reads_attention(self):
        return True


def zeros(layer, **options):
    return torch.zeros(layer.num_slots, **options)


REMEDY = r"create it with device=layer\.k_SD\.device"
KEPT = {
    "log masses elsewhere": (
        lambda layer: {"log_mass_S": zeros(layer, device="meta")},
        f"log_mass_S is on meta, k_SD on cpu: {REMEDY}",
    ),
    "values elsewhere": (
        lambda layer: {"v_SD": layer.v_SD.to("meta")},
        f"v_SD is on meta, k_SD on cpu: {REMEDY}",
    ),
    "positions elsewhere": (
        lambda layer: {"position_S": layer.position_S.to("meta")},
        f"position_S is on meta, k_SD on cpu: {REMEDY}",
    ),
    "scores elsewhere": (
        lambda layer: {"score_S": zeros(layer, device="meta")},
        f"score_S is on meta, k_SD on cpu: {REMEDY}",
    ),
    "all but keys elsewhere": (
        lambda layer: {"k_SD": layer.k_SD.to("meta")},
        f"v_SD is on cpu, k_SD on meta: {REMEDY}",
    ),
    "positions int64": (
        lambda layer: {"position_S": layer.position_S.long()},
        r"position_S is torch\.int64, the uncompressed layer's torch\.int32: convert",
    ),
    "positions float": (
        lambda layer: {"position_S": layer.position_S.float()},
        r"position_S is torch\.float32, the uncompressed layer's torch\.int32: convert",
    ),
    "scores int64": (
        lambda layer: {"score_S": zeros(layer, dtype=torch.int64)},
        r"score_S must be torch\.float32, got torch\.int64",
    ),
    "log masses half": (
        lambda layer: {"log_mass_S": zeros(layer, dtype=torch.float16)},
        r"log_mass_S must be torch\.float32, got torch\.float16",
    ),
    "log masses in a column": (lambda layer: {"log_mass_S": zeros(layer)[:, None]}, "log_mass_S has shape"),
    "scores of some slots": (lambda layer: {"score_S": zeros(layer)[1:].clone()}, "score_S has shape"),
    "lengths float": (
        lambda layer: {"num_slots_H": tuple(map(float, layer.num_slots_H))},
        r"num_slots_H must be whole numbers .*, got \(4\d\.0, 4\d\.0\)",
    ),
    "lengths one tensor": (
        lambda layer: {"num_slots_H": torch.tensor(layer.num_slots_H)},
        r"num_slots_H must be whole numbers .*, got tensor.*tolist",
    ),
    "lengths tensors": (
        lambda layer: {"num_slots_H": tuple(map(torch.tensor, layer.num_slots_H))},
        "num_slots_H must be whole numbers",
    ),
    "lengths negative": (
        lambda layer: {"num_slots_H": (3 * layer.num_slots_H[0], -layer.num_slots_H[0])},
        "num_slots_H must be whole numbers from 0 on",
    ),
    "no counter": (lambda layer: {"counters": {"is_fine": None}}, "'is_fine': None"),
    "a counter of text": (lambda layer: {"counters": {"how": "well"}}, "'how': 'well'"),
    "a counter of heads": (
        lambda layer: {"counters": {"num_seen": torch.ones(layer.num_heads)}},
        r"'num_seen': tensor.*LayerCache\.counting",
    ),
    "a counter without a name": (lambda layer: {"counters": {3: 1.0}}, "a counter has a name"),
    "no counters": (lambda layer: {"counters": None}, "counters must be a dictionary"),
}
NEEDS = {
    "a set of text": frozenset({"attention_mass"}),
    "a set of plain tuples": frozenset({("attention_mass", ())}),
    "the need itself": ATTENTION_MASS,
    "a list": [ATTENTION_MASS],
    "nothing": None,
    "one parameter": frozenset({Need("window_attention", 8)}),
    "a name that is none": frozenset({Need(3)}),
}
RULES = {
    "text": ("oldest", r"decode_rule\(\) must give an instance of a DecodeRule, or None, got 'oldest'"),
    "a class": (OldestLeaves, "must give an instance of a DecodeRule, or None, got <class"),
    "no room": (OldestLeaves(room=None), r"OldestLeaves\.room must be a whole number .*, got None"),
    "half a room": (OldestLeaves(room=1.5), r"OldestLeaves\.room must be a whole number .*, got 1\.5"),
    "room below zero": (OldestLeaves(room=-1), r"OldestLeaves\.room must be a whole number .*, got -1"),
    "a method for a flag": (AsksByMethod(), r"AsksByMethod\.reads_attention must be True or False"),
}
NUMBERS = {
    "keys NaN": lambda layer: {"k_SD": layer.k_SD * torch.nan},
    "values NaN": lambda layer: {"v_SD": layer.v_SD * torch.nan},
    "values infinite": lambda layer: {"v_SD": layer.v_SD / 0},
    "a value NaN": lambda layer: {"v_SD": layer.v_SD.index_fill(0, torch.tensor([0]), torch.nan)},
    "log masses NaN": lambda layer: {"log_mass_S": zeros(layer) / 0},
    "log masses infinite": lambda layer: {"log_mass_S": (zeros(layer) + 1) / 0},
}
NOT_FINITE = "gives logits that are NaN or infinite .KL nan, the gold answer's NLL nan.: look for 0 / 0"
PHASES = {"numbers": "fidelity"}
"""Where a mistake is noticed; the others in "compress"."""
MISTAKES: dict[str, dict[str, tuple[Policy, str]]] = {
    "kept": {name: (Returns(change), message) for name, (change, message) in KEPT.items()},
    "needs": {name: (Declares(said), r"Declares\.needs\(\) must give a set of Need") for name, said in NEEDS.items()},
    "rule": {name: (Acts(rule), message) for name, (rule, message) in RULES.items()},
    "numbers": {name: (Returns(change), NOT_FINITE) for name, change in NUMBERS.items()},
}  # fmt: skip


def prompts_of(seed: int) -> list[Prompt]:
    rng = random.Random(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCAB_SIZE) for _ in range(count))

    return [Prompt(tokens(length), (Question(tokens(3), tokens(4), 4),)) for length in LENGTHS]


def good() -> list[Variant]:
    return [build_variant(spec) for spec in parse_policies(GOOD)]


def run(model: TinyModel, prompts: Sequence[Prompt], variants: Sequence[Variant], how: str) -> list[Results]:
    engine = Engine(model.ours)
    found = engine.run_many(prompts, variants) if how == "run_many" else [engine.run(prompts[0], variants)]
    return [
        {
            (it.label, it.question_index): replace(it, seconds={}) if isinstance(it, Generation) else it
            for it in of_prompt
        }
        for of_prompt in found
    ]


@pytest.fixture(scope="module")
def model(seed: int) -> TinyModel:
    return tiny_model(seed, num_layers=NUM_LAYERS)


@pytest.mark.parametrize("how", ["run", "run_many"])
@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_costs_its_own_rows_only_and_says_what_to_write(
    kind: str, how: str, model: TinyModel, seed: int
) -> None:
    prompts, mistakes = prompts_of(seed), MISTAKES[kind]
    bad = [Variant(name, policy, KeptRatio(0.5)) for name, (policy, _) in mistakes.items()]
    # As many rows without a mistake, since bits depend on the number of rows.
    sound = [Variant(name, KeepsAll(), KeptRatio(0.5)) for name in mistakes]
    with_bad, with_sound = (run(model, prompts, [*good(), *others], how) for others in (bad, sound))
    for beside, expected in zip(with_bad, with_sound, strict=True):
        for name, (_, message) in mistakes.items():
            failure = beside.pop((name, 0))
            assert isinstance(failure, VariantFailure), name
            assert failure.phase == PHASES.get(kind, "compress")
            assert re.search(message, failure.message), failure.message
            del expected[name, 0]
        assert all(isinstance(row, Generation) for row in beside.values())
        assert beside == expected, "other rows are what they are beside sound ones"


@pytest.mark.parametrize("name", NEEDS)
def test_needs_that_are_none_do_not_get_into_prefill(name: str) -> None:
    assert needs_of([Variant(BAD, Declares(NEEDS[name]), None), *good()]) == needs_of(good())


def test_a_rule_that_fails_as_its_row_begins_fails_that_row_alone(model: TinyModel, seed: int) -> None:
    """Compressing refuses such a rule; whatever else it may raise there must not reach other rows either."""
    (prompt, _) = prompts_of(seed)
    layers = prefill(model.ours, prompt.context_ids, frozenset()).layers
    rows = {0: Row("full", 0, layers), 1: Row("acts", 0, layers, OldestLeaves(room=2))}
    gold = dict.fromkeys(range(3), prompt.questions[0].gold_ids)
    alone = Batch(model.ours, prompt, rows, 4)
    beside = Batch(model.ours, prompt, {**rows, 2: Row(BAD, 0, layers, OldestLeaves(room=None))}, 4)
    assert {index: failure.error_type for index, failure in beside.failures.items()} == {2: "TypeError"}
    answers, expected = beside.decode(), alone.decode()
    hidden, expected_hidden = beside.force(gold, 4), alone.force({0: gold[0], 1: gold[1]}, 4)
    for index in rows:
        assert answers[index] == expected[index]
        assert torch.equal(hidden[index], expected_hidden[index])
        assert beside.counters_by_row.get(index) == alone.counters_by_row.get(index)
    assert not alone.failures

"""Values that a user's own policy returns and nobody can believe: each costs its own rows, with a sentence, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from bench.engine.op_counter import OpCounter
from kvmerger import (
    KEY_NORMS,
    Budget,
    DecodeRule,
    Generation,
    Heirs,
    KeptRatio,
    PerHead,
    Policy,
    ScoringPolicy,
    SelectingPolicy,
    Variant,
    VariantFailure,
    is_among_highest,
    keep_highest,
    take_selected,
)
from kvmerger.contract.layers import random_prefill
from kvmerger.engine.compress import compress_all
from kvmerger.policies.allocation.adakv import AdaKV
from kvmerger.policies.decoding.h2o_decode import H2ODecode
from kvmerger.policies.reducers.compensated import Compensated
from tests.fakes.tiny_models import TinyModel, tiny_model
from tests.kvmerger.engine.test_foreign_policies import NUM_LAYERS, KeepsAll, good, prompts_of, run
from tests.kvmerger.kernels.both.poison import poisoned_memory

# Prompts warn where an error makes them answer apart: then it reached more than its variant.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
HERE = re.escape(__name__)


@dataclass(frozen=True)
class Scores(ScoringPolicy):
    """Scores tokens by what `change` makes of their keys' norms."""

    change: Callable[[Any], Any]
    is_stacked: bool = False

    @property
    def compresses_stacks(self):
        return self.is_stacked

    def scores(self, evidence):
        return self.change(evidence.get(KEY_NORMS))


@dataclass(frozen=True)
class Marks(SelectingPolicy):
    """Keeps what `change` makes of the marks of the first half."""

    change: Callable[[Any], Any]

    def select(self, evidence, budget):
        index_N = torch.arange(evidence.num_tokens)
        return self.change((index_N < budget.num_slots_H[0]).expand(evidence.num_heads, -1))


@dataclass(frozen=True)
class Calls(Policy):
    """Keeps what `call` gives."""

    call: Callable[[Any, Any], Any]

    def compress(self, layer, evidence, budget):
        return self.call(layer, budget)


@dataclass(frozen=True)
class Allocates(KeepsAll):
    """Gives layers what `change` makes of their budgets."""

    change: Callable[[Any], Any]

    def allocate(self, budget_L, evidence_L):
        return self.change(list(budget_L))


@dataclass(frozen=True)
class Rule(DecodeRule):
    """Lets the slot of least `worths`, and hands its value on to `heirs_of`."""

    worths: Callable[[Any], Any] = lambda position_LHX: position_LHX.float()
    heirs_of: Callable[[Any], Any] = lambda _: None

    def worth(self, step):
        return self.worths(step.position_LHX)

    def heirs(self, step, leaving_LH):
        return self.heirs_of(leaving_LH)


@dataclass(frozen=True)
class Acts(KeepsAll):
    rule: Any

    def decode_rule(self, prompt_seed):
        return self.rule


def shifted(layer, by: int):
    return replace(layer, position_S=layer.position_S + by)


def counted(layer, value: float):
    return layer.counting({"mean_share": PerHead(torch.tensor([1.0, value]))})


H = 2
SCORES = rf"scores must be floats \(H, N\) = \({H}, \d+\), one per KV head and token"
MARKS = rf"marks of kept tokens must be bools \(H, N\) = \({H}, \d+\), one per KV head and token"
BUDGETS = rf"{HERE}:Allocates: allocate\(\) must give a Budget for each of the {NUM_LAYERS} layers"
NAN = r": \d+ of its scores are NaN, which rank above all others: look for 0 / 0"
COMPRESSING: dict[str, tuple[Policy, str]] = {
    "scores NaN": (Scores(lambda it: it * torch.nan), f"{HERE}:Scores{NAN}"),
    "a score NaN": (Scores(lambda it: it.index_fill(1, torch.tensor([3]), torch.nan)), f"Scores: {NUM_LAYERS * H} of"),
    "scores NaN, as a stack": (Scores(lambda it: it * torch.nan, is_stacked=True), f"{HERE}:Scores{NAN}"),
    "scores short": (Scores(lambda it: it[:, 1:]), rf"{HERE}:Scores: {SCORES}; got \({H}, \d+\)"),
    "scores of one head": (Scores(lambda it: it[:1]), rf"{SCORES}; got \(1, \d+\)"),
    "scores of query heads": (
        Scores(lambda it: it.repeat(2, 1)), rf"{SCORES}; got \(4, \d+\): for query heads, take the mean"
    ),
    "scores of one layer": (
        Scores(lambda it: it[:H], is_stacked=True),
        rf"= \({NUM_LAYERS * H}, \d+\).*; got \({H}, \d+\): that is one layer, and {NUM_LAYERS} are given as one",
    ),
    "scores flat": (Scores(lambda it: it[0]), rf"{SCORES}; got \(\d+,\)"),
    "no scores": (Scores(lambda _: None), f"{SCORES}; got None: return a torch.Tensor"),
    "scores whole": (Scores(lambda it: it.long()), rf"{SCORES}; got torch\.int64: convert them with \.float\(\)"),
    "scores elsewhere": (Scores(lambda it: it.to("meta")), f"{SCORES}, on cpu; got them on meta: create them"),
    "scores short, shared out": (AdaKV(Scores(lambda it: it[:, 1:])), f"{HERE}:Scores: {SCORES}"),
    "scores NaN, shared out": (AdaKV(Scores(lambda it: it * torch.nan)), f"{HERE}:Scores[+]adakv{NAN}"),
    "scores short, merged": (Compensated(Scores(lambda it: it[:, 1:])), f"{HERE}:Scores: {SCORES}"),
    "scores NaN, merged": (Compensated(Scores(lambda it: it * torch.nan)), f"{HERE}:Scores[+]compensated{NAN}"),
    "scores NaN, kept by hand": (
        Calls(lambda layer, budget: keep_highest(layer, torch.full((H, layer.num_slots // H), torch.nan), budget)),
        f"{HERE}:Calls{NAN}",
    ),
    "scores short, kept by hand": (
        Calls(lambda layer, budget: keep_highest(layer, torch.zeros(H, 7), budget)),
        rf"keep_highest: {SCORES}; got \({H}, 7\)",
    ),
    "scores NaN, marked by hand": (
        Marks(lambda it: is_among_highest(it / torch.zeros(it.shape[1]) * 0, (20, 20))), f"{HERE}:Marks{NAN}"
    ),
    "too few counts": (Marks(lambda it: is_among_highest(it.float(), (20,))), r"is_among_highest: scores must be floats"),
    "marks whole": (Marks(lambda it: it.long()), rf"{HERE}:Marks: {MARKS}; got torch\.int64: compare"),
    "marks short": (Marks(lambda it: it[:, 1:]), rf"{MARKS}; got \({H}, \d+\)"),
    "no marks": (Marks(lambda _: None), f"{MARKS}; got None"),
    "marks whole, merged": (Compensated(Marks(lambda it: it.long())), MARKS),
    "marks whole, taken by hand": (
        Calls(lambda layer, _: take_selected(layer, torch.ones(H, layer.num_slots // H))), f"take_selected: {MARKS}"
    ),
    "nothing kept": (Calls(lambda *_: None), rf"{HERE}:Calls: compress\(\) must give a LayerCache, got None"),
    "positions behind": (
        Calls(lambda layer, _: shifted(layer, 1)), r"positions reach from 1 to (40|44), the prompt's from 0 to (39|43)"
    ),
    "positions before": (Calls(lambda layer, _: shifted(layer, -1)), r"positions reach from -1 to"),
    "positions behind, acted on": (
        H2ODecode(Calls(lambda layer, _: shifted(layer, 10**6)), recent=4), "positions reach from 1000000 to"
    ),
    "a counter NaN": (Calls(lambda layer, _: counted(layer, torch.nan)), f"{HERE}:Calls: its counter 'mean_share' is nan"),
    "a counter infinite": (Calls(lambda layer, _: counted(layer, torch.inf)), "its counter 'mean_share' is inf"),
    "counters of too many heads": (
        Calls(lambda layer, _: layer.counting({"num_seen": PerHead(torch.ones(2 * H))})),
        rf"counter 'num_seen' must have a number for each of {H} heads, as a tensor \({H},\), got \(4,\)",
    ),
    "weights of one head": (
        Calls(lambda layer, _: layer.counting({"mean_share": PerHead(torch.ones(H), torch.ones(1))})), r"got \(1,\)"
    ),
    "no budgets": (Allocates(lambda _: None), f"{BUDGETS}, got None"),
    "budgets of some layers": (Allocates(lambda it: it[1:]), f"{BUDGETS}, got {NUM_LAYERS - 1} of them"),
    "budgets as numbers": (Allocates(lambda it: [9] * len(it)), BUDGETS),
    "budgets of one head": (Allocates(lambda it: [Budget((9,), 0.5)] * len(it)), rf"{BUDGETS}.*layer 0 has \(9,\)"),
    "budgets in halves": (Allocates(lambda it: [Budget((9.5,) * H, 0.5)] * len(it)), rf"{BUDGETS}.*\(9\.5, 9\.5\)"),
    "budgets NaN": (Allocates(lambda it: [Budget((9,) * H, torch.nan)] * len(it)), f"{BUDGETS}.*layer 0 has nan"),
}  # fmt: skip
DECODING: dict[str, tuple[Policy, str]] = {
    "worth NaN": (
        Acts(Rule(worths=lambda it: it * torch.nan)), "its decode rule's worth is NaN for slots that are held, at"
    ),
    "worth of the newest NaN": (
        Acts(Rule(worths=lambda it: torch.where(it == it.amax(), torch.nan, it.float()))), "its decode rule's worth is NaN"
    ),
    "worth whole": (Acts(Rule(worths=lambda it: it)), r"worth must be a tensor of floats .*, got torch\.int32"),
    "no worth": (Acts(Rule(worths=lambda _: None)), "worth must be a tensor of floats .*, got None"),
    "heirs as text": (Acts(Rule(heirs_of=lambda _: "next")), r"heirs\(\) must give Heirs or None, got 'next'"),
    "heirs without a dimension": (
        Acts(Rule(heirs_of=lambda it: Heirs(it, torch.ones(it.shape)))), r"heirs need columns .* both \(L, H, M\)"
    ),
    "heirs NaN": (
        Acts(Rule(heirs_of=lambda it: Heirs((it[..., None] + 1) % 9, torch.full((*it.shape, 1), torch.nan)))),
        "gives logits that are NaN or infinite",
    ),
}  # fmt: skip
PHASES = {"heirs NaN": "fidelity"}


@pytest.fixture(scope="module")
def model(seed: int) -> TinyModel:
    return tiny_model(seed, num_layers=NUM_LAYERS)


@pytest.mark.parametrize("mistakes", [COMPRESSING, DECODING], ids=["compress", "decode"])
def test_a_value_nobody_can_believe_costs_its_own_rows_only(
    mistakes: dict[str, tuple[Policy, str]], model: TinyModel, seed: int
) -> None:
    bad, sound = (
        [Variant(name, policy, KeptRatio(0.5)) for name, policy in policies.items()]
        for policies in ({name: policy for name, (policy, _) in mistakes.items()}, dict.fromkeys(mistakes, KeepsAll()))
    )  # fmt: skip
    with poisoned_memory():
        (found,) = run(model, prompts_of(seed)[:1], [*good(), *bad], "run")
    (expected,) = run(model, prompts_of(seed)[:1], [*good(), *sound], "run")
    for name, (_, message) in mistakes.items():
        failure = found.pop((name, 0))
        assert isinstance(failure, VariantFailure), name
        assert failure.phase == PHASES.get(name, "compress" if mistakes is COMPRESSING else "decode"), name
        assert re.search(message, failure.message), (name, failure.message)
        del expected[name, 0]
    assert all(isinstance(row, Generation) for row in found.values())
    assert found == expected, "other rows are what they are beside sound ones"


def test_an_heir_before_the_first_column_is_nobody(model: TinyModel, seed: int) -> None:
    def heirs(before: int) -> Callable[[Any], Heirs]:
        return lambda it: Heirs(torch.full((*it.shape, 1), before), torch.ones(*it.shape, 1))

    nobody = [
        Variant(f"{it}", Acts(Rule(heirs_of=heirs(it))), KeptRatio(0.5)) for it in (-1, -(10**9), 10**9)
    ]
    dropped = [Variant(f"{it}", Acts(Rule()), KeptRatio(0.5)) for it in range(len(nobody))]
    given, expected = (run(model, prompts_of(seed)[:1], variants, "run")[0] for variants in (nobody, dropped))
    for ours, theirs in zip(nobody, dropped, strict=True):
        row, other = given[ours.label, 0], expected[theirs.label, 0]
        assert isinstance(row, Generation) and isinstance(other, Generation)
        assert (row.token_ids, row.answer_nll) == (other.token_ids, other.answer_nll)


@pytest.mark.parametrize("is_stacked", [True, False])
def test_looking_for_nan_waits_no_more(is_stacked: bool, seed: int) -> None:
    policy = Scores(lambda it: it, is_stacked)
    prefilled = random_prefill(seed, torch.bfloat16, policy)
    with OpCounter() as counter:
        compression = compress_all(prefilled, [Variant("it", policy, KeptRatio(0.5))])
    assert not compression.failed
    # Whether all that was kept is sound; and each stack's counters, which a CPU holds anyway.
    assert counter.waits["_local_scalar_dense"] == 1, counter.waits

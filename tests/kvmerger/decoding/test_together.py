"""Several prompts at once: each row once, with the bits it has alone wherever a joint step has no part in them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from kvmerger.building import build_variant
from kvmerger.decoding.batch import Batch
from kvmerger.decoding.step_graphs import StepGraphs
from kvmerger.decoding.together import Party, Together
from kvmerger.engine import Engine
from kvmerger.generation import Generation, Prompt, Question, VariantFailure
from kvmerger.limits import Limits
from kvmerger.variants import FULL, FULL_AA, REFERENCE_LABELS, parse_policies
from tests.fakes.tiny_models import VOCAB_SIZE, TinyModel, tiny_model
from tests.kvmerger.decoding.test_acting_rows import OTHERS, POLICIES
from tests.kvmerger.decoding.test_step_graphs import Calls, make_rows, with_ends

# Prompts that answered apart because something is broken would pass every test of equality.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
SEED, NUM_LAYERS = 5, 3
LENGTHS = (48, 31, 60)
ALL_TOGETHER = Limits(max_rows=3 * 12)
CHOSEN = [
    *OTHERS,
    {"name": "random", "budget": {"like": "ragged"}, "label": "like_ragged"},
    {"name": "snapkv", "budget": 10, "label": "impossible"},
]
ACTING = [POLICIES[2], {"name": "random", "budget": {"like": "h2o"}, "label": "like_h2o"}]
Results = dict[tuple[str, int], Generation | VariantFailure]
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
loops = pytest.mark.parametrize("with_graphs", [False, True], ids=["eager", "recorded"])


def prompts_of(seed: int, lengths: Sequence[int] = LENGTHS) -> list[Prompt]:
    """Random tokens; two questions of unequal tails, limits and stop tokens."""
    rng = random.Random(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCAB_SIZE) for _ in range(count))

    return [
        Prompt(
            tokens(num_tokens),
            tuple(
                Question(tokens(rng.randrange(1, 6)), tokens(4), max_new, tokens(num_stops))
                for max_new, num_stops in ((7, 0), (4, 9))
            ),
        )
        for num_tokens in lengths
    ]


def built(policies: Sequence[dict]) -> list:
    return [build_variant(spec) for spec in parse_policies(policies)]


def engine_of(model: TinyModel, with_graphs: bool = False, limits: Limits | None = None) -> Engine:
    engine = Engine(model.ours, limits or ALL_TOGETHER)
    if with_graphs:
        engine._graphs = StepGraphs(model.ours, Calls())
    return engine


def by_key(
    results: Sequence[Generation | VariantFailure], prompt: Prompt, policies: Sequence[dict]
) -> Results:
    """Without what clocks measured and how many shared it; every row must be there once."""
    found = {(result.label, result.question_index): _bare(result) for result in results}
    labels = [*REFERENCE_LABELS, *(variant.label for variant in built(policies))]
    assert len(found) == len(results), "a row came twice"
    assert set(found) == {(label, question) for label in labels for question in range(len(prompt.questions))}
    return found


def _bare(result: Generation | VariantFailure) -> Generation | VariantFailure:
    if isinstance(result, VariantFailure):
        return replace(result, traceback="")
    counters = {name: value for name, value in result.counters.items() if name != "num_prompts_together"}
    return replace(result, seconds={}, counters=counters)


def run_many(engine: Engine, prompts: Sequence[Prompt], policies: Sequence[dict]) -> list[Results]:
    found = engine.run_many(prompts, built(policies), seed=SEED)
    return [by_key(results, prompt, policies) for results, prompt in zip(found, prompts, strict=True)]


def check_as_alone(together: Results, alone: Results, num_apart: int = 0) -> None:
    """All numbers are those of the prompt alone, bit for bit, unless a joint step said another token: in few rows."""
    parted = set()
    for key, own in alone.items():
        other = together[key]
        if isinstance(own, Generation) and isinstance(other, Generation):
            assert other.answer_nll == own.answer_nll, (
                "gold answers are forced in the shapes of the prompt alone"
            )
            assert other.slots_LH == own.slots_LH
            full_is_same = _tokens(together, FULL, key[1]) == _tokens(alone, FULL, key[1])
            assert not full_is_same or other.kl_mean == own.kl_mean, "along the same tokens nothing is joint"
            if other.token_ids != own.token_ids:
                parted.add(key)
            elif full_is_same:
                assert other == own
        else:
            assert other == own
    assert len(parted) <= num_apart, parted


def _tokens(results: Results, label: str, question: int) -> tuple[int, ...]:
    result = results[label, question]
    assert isinstance(result, Generation)
    return result.token_ids


@loops
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prompts_together_say_what_each_says_alone(dtype: torch.dtype, with_graphs: bool, seed: int) -> None:
    model, prompts = tiny_model(seed, dtype, num_layers=NUM_LAYERS), prompts_of(seed)
    policies = [*CHOSEN[:3], *ACTING]
    engine = engine_of(model, with_graphs, Limits(max_rows=len(prompts) * 16))
    found = engine.run_many(prompts, built(policies), seed=SEED)
    for prompt, results in zip(prompts, found, strict=True):
        together = by_key(results, prompt, policies)
        alone = by_key(engine.run(prompt, built(policies), seed=SEED), prompt, policies)
        # In fp32 another shape moves logits by 1e-5: a token may turn, but hardly ever. bf16 turns some.
        check_as_alone(together, alone, num_apart=1 if dtype == torch.float32 else len(alone) // 2)
        shared = {
            result.label: result.counters.get("num_prompts_together")
            for result in results
            if isinstance(result, Generation)
        }
        acting = {policy["label"] for policy in ACTING}
        assert all(shared[label] == (None if label in acting else len(prompts)) for label in shared), shared
        assert shared[FULL_AA] == len(prompts)


def test_every_row_has_the_bucket_and_the_place_that_it_has_alone(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a product's bits depend on both; rows whose policies act decode in a batch of their own, and keep them."""
    model, prompts, policies = tiny_model(seed, num_layers=NUM_LAYERS), prompts_of(seed), [*OTHERS, *ACTING]
    engine = engine_of(model, limits=Limits(max_rows=len(prompts) * 16))
    places: dict[Prompt, set] = {}
    place_rows = Batch.__init__

    def note(
        batch: Batch, model: Any, prompt: Prompt, rows: dict, bucket: int, *others: Any, **more: Any
    ) -> None:
        # Every batch has full rows to be compared with.
        places.setdefault(prompt, set()).update(
            (row.label, row.question_index, index, bucket) for index, row in rows.items() if row.label != FULL
        )
        place_rows(batch, model, prompt, rows, bucket, *others, **more)

    monkeypatch.setattr(Batch, "__init__", note)
    engine.run_many(prompts, built(policies), seed=SEED)
    together, places = places, {}
    for prompt in prompts:
        engine.run(prompt, built(policies), seed=SEED)
    assert together == places


@loops
@dtypes
def test_what_stands_beside_a_prompt_changes_no_bit(dtype: torch.dtype, with_graphs: bool, seed: int) -> None:
    """Other prompts with as many rows, and prompts that fail, leave the others as they are."""
    model, prompts = tiny_model(seed, dtype, num_layers=NUM_LAYERS), prompts_of(seed)
    others = prompts_of(seed + 1, LENGTHS[::-1])
    engine = engine_of(model, with_graphs)
    expected = run_many(engine, prompts, CHOSEN)
    mixed = run_many(engine, [others[0], prompts[1], others[2]], CHOSEN)
    assert mixed[1] == expected[1]
    assert mixed[0] != expected[0]


@loops
@dtypes
def test_rows_keep_their_bits_when_their_neighbours_are_dummies(
    dtype: torch.dtype, with_graphs: bool, seed: int
) -> None:
    model, prompts = tiny_model(seed, dtype, num_layers=NUM_LAYERS), prompts_of(seed)
    rows = [make_rows(model, prompt, OTHERS) for prompt in prompts]
    model = with_ends(model, prompts[0], rows[0])
    graphs = StepGraphs(model.ours, Calls()) if with_graphs else None
    parties = [Party(it, own, 12, start) for it, own, start in zip(prompts, rows, (0, 12, 24), strict=True)]
    expected = Together(model.ours, parties, 48, graphs).decode()
    for number in (2, 0, 1):
        alone = Together(model.ours, parties[number : number + 1], 48, graphs)
        for _ in range(2):
            assert alone.decode() == [expected[number]]
    assert len({len(answer.token_ids) for answers in expected for answer in answers.values()}) > 1


@dtypes
def test_forced_tokens_have_the_bits_of_the_prompts_own_batch(dtype: torch.dtype, seed: int) -> None:
    model, prompts = tiny_model(seed, dtype, num_layers=NUM_LAYERS), prompts_of(seed)
    rows = [make_rows(model, prompt, OTHERS) for prompt in prompts]
    parties = [Party(it, own, 12, start) for it, own, start in zip(prompts, rows, (0, 12, 24), strict=True)]
    joint = Together(model.ours, parties, 48)
    for _ in range(2):
        for prompt, own, batch in zip(prompts, rows, joint.batches, strict=True):
            alone = Batch(model.ours, prompt, own, 12)
            assert batch.first_tokens() == alone.first_tokens()
            gold = {index: prompt.questions[row.question_index].gold_ids for index, row in own.items()}
            expected, hidden = alone.force(gold, 4), batch.force(gold, 4)
            assert all(torch.equal(hidden[index], expected[index]) for index in own)
            assert batch.cache.tail_capacity == prompt.most_tail_tokens
        joint.decode()
        assert all(batch.num_prompts == 3 for batch in joint.batches)


def test_more_rows_than_one_batch_holds_answer_in_turn(seed: int) -> None:
    """Groups of a prompt's variants, prompts_together of prompts, and one too large for any together."""
    model, prompts = tiny_model(seed, num_layers=NUM_LAYERS), prompts_of(seed)
    expected = run_many(engine_of(model), prompts, CHOSEN)
    for max_rows in (3, 12, 24):
        results = run_many(engine_of(model, limits=Limits(max_rows=max_rows)), prompts, CHOSEN)
        for mine, theirs in zip(results, expected, strict=True):
            for key, row in theirs.items():
                if isinstance(row, Generation):
                    assert mine[key].kl_mean == pytest.approx(row.kl_mean, abs=1e-3)
                    assert mine[key].answer_nll == pytest.approx(row.answer_nll, abs=1e-4)


def test_no_prompt_gives_nothing(seed: int) -> None:
    model = tiny_model(seed, num_layers=NUM_LAYERS)
    assert Engine(model.ours).run_many([], built(CHOSEN)) == []
    (prompt,) = prompts_of(seed, (40,))
    (one,) = run_many(engine_of(model), [prompt], CHOSEN)
    assert one == by_key(Engine(model.ours).run(prompt, built(CHOSEN), seed=SEED), prompt, CHOSEN)

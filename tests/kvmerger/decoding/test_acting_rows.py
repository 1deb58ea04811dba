"""Policies that act while they answer, in a whole batch: against a slow loop, alone, forced, and beside other rows."""

from __future__ import annotations

import random

import pytest
import torch

from kvmerger.building import build_variant
from kvmerger.decoding.batch import Batch, Row
from kvmerger.engine.compress import compress_all
from kvmerger.generation import Prompt, Question
from kvmerger.prefill.prefill import prefill, prompt_seed
from kvmerger.variants import parse_policies
from tests.fakes.tiny_models import TIE_LOGITS, VOCAB_SIZE, TinyModel, tiny_model
from tests.slow.decoding import (
    Rule,
    SlowDecoder,
    handed_on,
    least_attended_leaves,
    lowest_score_leaves,
    oldest_leaves,
)

NUM_TOKENS, NUM_NEW_TOKENS, NUM_LAYERS, BUCKET = 48, 9, 3, 16
SEED = 5
TAILS = (3, 1)
POLICIES = [
    {"name": "streaming_llm_decode", "budget": 12, "label": "streaming"},
    {"name": "knorm+streaming_llm_decode", "budget": 12, "sinks": 2, "label": "streaming_knorm"},
    {"name": "h2o_decode", "budget": 0.3, "recent": 5, "label": "h2o"},
    {"name": "snapkv+adakv+h2o_decode", "budget": 20, "recent": 4, "window_size": 4, "label": "h2o_ragged"},
    {"name": "tova_decode", "budget": 0.3, "label": "tova"},
    {"name": "cam", "budget": 18, "num_heirs": 6, "label": "cam"},
    {"name": "knorm+cam", "budget": 18, "evict": "h2o", "recent": 5, "num_heirs": 4, "seed": 7, "label": "cam_h2o"},
]  # fmt: skip
LABELS = [policy["label"] for policy in POLICIES]
OTHERS = [
    {"name": "knorm", "budget": 0.5},
    {"name": "snapkv+adakv", "budget": 20, "window_size": 4, "label": "ragged"},
]
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def slow_rule(label: str, prompt: Prompt) -> Rule:
    """The rule of one of `POLICIES`, written naively."""
    draws = prompt_seed(prompt.context_ids, SEED) << 16
    return {
        "streaming": oldest_leaves(4),
        "streaming_knorm": oldest_leaves(2),
        "h2o": lowest_score_leaves(5),
        "h2o_ragged": lowest_score_leaves(4),
        "tova": least_attended_leaves,
        "cam": handed_on(oldest_leaves(4), 6, draws),
        "cam_h2o": handed_on(lowest_score_leaves(5), 4, draws + 7),
    }[label]


def make_prompt(seed: int) -> Prompt:
    """Random tokens; two questions of unequal tails."""
    rng = random.Random(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCAB_SIZE) for _ in range(count))

    questions = tuple(Question(tokens(tail), tokens(6), NUM_NEW_TOKENS) for tail in TAILS)
    return Prompt(tokens(NUM_TOKENS), questions)


def make_rows(model: TinyModel, prompt: Prompt, policies: list[dict]) -> list[Row]:
    """A row per variant and question."""
    variants = [build_variant(spec) for spec in parse_policies(policies)]
    needs = frozenset(need for variant in variants for need in variant.policy.needs())
    compression = compress_all(prefill(model.ours, prompt.context_ids, needs, SEED), variants)
    assert not compression.failed, compression.failed
    return [
        Row(variant.label, question, done.prefix, done.rule)
        for variant in variants
        for done in [compression.done[variant.label]]
        for question in range(len(prompt.questions))
    ]


def positions_of(row: Row) -> list[list[list[int]]]:
    """What a row kept of the prompt, by layer and head."""
    return [[part.tolist() for part in layer.position_S.split(layer.num_slots_H)] for layer in row.prefix]


def slow_hidden(model: TinyModel, prompt: Prompt, row: Row, answer: tuple[int, ...]) -> torch.Tensor:
    """Hidden states (T, E) that predict each token of ``answer``, in float64, by the slow loop."""
    rule = slow_rule(row.label, prompt)
    with torch.inference_mode():
        decoder = SlowDecoder(model.plain, prompt.context_ids, positions_of(row))
        position = len(prompt.context_ids)
        for token in prompt.questions[row.question_index].tail_ids:
            hidden = [decoder.read(token, position)]
            position += 1
        for step, token in enumerate(answer[:-1]):
            hidden.append(decoder.read(token, position, rule, step))
            position += 1
    return torch.stack(hidden)


@pytest.mark.parametrize("label", LABELS)
def test_answers_are_those_of_the_slow_loop(label: str, seed: int) -> None:
    model = tiny_model(seed, num_layers=NUM_LAYERS)
    prompt = make_prompt(seed)
    rows = make_rows(model, prompt, [policy for policy in POLICIES if policy["label"] == label])
    batch = Batch(model.ours, prompt, dict(enumerate(rows)), BUCKET)
    answers = batch.decode()
    forced = batch.force({index: answer.token_ids for index, answer in answers.items()}, NUM_NEW_TOKENS)
    for index, row in enumerate(rows):
        expected_TE = slow_hidden(model, prompt, row, answers[index].token_ids)
        torch.testing.assert_close(forced[index].double(), expected_TE, atol=2e-3, rtol=1e-3)
        logits_TV = expected_TE @ model.plain.lm_head.weight.double().T
        chosen_T = logits_TV.gather(1, torch.tensor(answers[index].token_ids)[:, None]).squeeze(1)
        assert bool((logits_TV.amax(dim=1) - chosen_T < TIE_LOGITS).all()), "not greedy"


def test_bf16_follows_the_slow_loop_where_no_choice_hangs_on_rounding(seed: int) -> None:
    """Choices by attention flip in bf16; a window slides all the same. They are tested bit by bit in `test_own_slots`."""
    model = tiny_model(seed, torch.bfloat16, num_layers=NUM_LAYERS)
    prompt = make_prompt(seed)
    rows = make_rows(
        model, prompt, [policy for policy in POLICIES if policy["label"].startswith("streaming")]
    )
    batch = Batch(model.ours, prompt, dict(enumerate(rows)), BUCKET)
    answers = batch.decode()
    forced = batch.force({index: answer.token_ids for index, answer in answers.items()}, NUM_NEW_TOKENS)
    for index, row in enumerate(rows):
        expected_TE = slow_hidden(model, prompt, row, answers[index].token_ids)
        error = (forced[index].double() - expected_TE).norm() / expected_TE.norm()
        assert error < 0.1, (row.label, error)


@dtypes
def test_fused_equals_alone_and_forcing_its_own_answer_repeats_it(dtype: torch.dtype, seed: int) -> None:
    model = tiny_model(seed, dtype, num_layers=NUM_LAYERS)
    prompt = make_prompt(seed)
    rows = dict(enumerate(make_rows(model, prompt, POLICIES)))
    together = Batch(model.ours, prompt, rows, BUCKET)
    answers = together.decode()
    own = {index: answer.token_ids for index, answer in answers.items()}
    hidden = together.force(own, NUM_NEW_TOKENS)
    for index, row in rows.items():
        alone = Batch(model.ours, prompt, {index: row}, BUCKET)
        assert alone.decode()[index] == answers[index], row.label
        assert torch.equal(alone.force({index: own[index]}, NUM_NEW_TOKENS)[index], hidden[index]), row.label
        greedy_T = model.ours.logits(hidden[index]).argmax(dim=-1)
        if dtype == torch.float32:
            assert greedy_T.tolist() == list(own[index]), row.label
    together.force(dict.fromkeys(rows, (1, 2, 3, 4)), 4)  # other tokens in between must leave no trace
    again = together.force(own, NUM_NEW_TOKENS)
    assert all(torch.equal(again[index], hidden[index]) for index in rows)
    assert together.decode() == answers
    together.cache.check_integrity()


@dtypes
def test_rows_beside_a_decode_policy_keep_every_bit(dtype: torch.dtype, seed: int) -> None:
    model = tiny_model(seed, dtype, num_layers=NUM_LAYERS)
    prompt = make_prompt(seed)
    others = dict(enumerate(make_rows(model, prompt, OTHERS)))
    acting = make_rows(model, prompt, POLICIES[2:6])
    beside = {**others, **{len(others) + index: row for index, row in enumerate(acting)}}
    gold = {index: prompt.questions[row.question_index].gold_ids for index, row in beside.items()}
    without, with_acting = (Batch(model.ours, prompt, rows, BUCKET) for rows in (others, beside))
    answers = without.decode()
    answers_beside = with_acting.decode()
    assert {index: answers_beside[index] for index in others} == answers
    hidden = without.force({index: gold[index] for index in others}, 6)
    hidden_beside = with_acting.force(gold, 6)
    assert all(torch.equal(hidden_beside[index], hidden[index]) for index in others)


@dtypes
@pytest.mark.parametrize("label", ["streaming", "h2o_ragged", "cam"])
def test_with_room_for_the_whole_answer_nothing_differs_from_the_policy_in_front(
    label: str, dtype: torch.dtype, seed: int
) -> None:
    """Not by a bit: until the first slot leaves, the row is on its shared prefix like any other."""
    model = tiny_model(seed, dtype, num_layers=NUM_LAYERS)
    prompt = make_prompt(seed)
    policy = next(policy for policy in POLICIES if policy["label"] == label)
    front = {"streaming": "streaming_llm", "h2o_ragged": "snapkv+adakv", "cam": "streaming_llm"}[label]
    window = {key: policy[key] for key in ("window_size",) if key in policy}
    policies = [{"name": front, "budget": policy["budget"], "label": "plain", **window}]
    policies += [
        {**policy, "room": room, "label": f"room{room}"} for room in (NUM_NEW_TOKENS - 1, NUM_NEW_TOKENS - 3)
    ]
    rows = make_rows(model, prompt, policies)
    batches = {
        label: Batch(model.ours, prompt, dict(enumerate(row for row in rows if row.label == label)), BUCKET)
        for label in ("plain", f"room{NUM_NEW_TOKENS - 1}", f"room{NUM_NEW_TOKENS - 3}")
    }
    plain, roomy, tight = batches.values()
    assert roomy.decode() == plain.decode()
    assert not roomy.has_acted(0)
    tight.decode()
    assert tight.has_acted(0)
    tight_tokens, plain_tokens = tight.decode()[0].token_ids, plain.decode()[0].token_ids
    assert tight_tokens[: NUM_NEW_TOKENS - 2] == plain_tokens[: NUM_NEW_TOKENS - 2]

"""Questions that follow on others: each row hears the answers that it gave itself, and no other's."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch

from kvmerger.decoding.decode_rule import DecodeRule
from kvmerger.engine import Engine
from kvmerger.generation import (
    EarlierTurn,
    Generation,
    InvalidPromptError,
    Prompt,
    Question,
    VariantFailure,
)
from kvmerger.policies.base import Policy
from kvmerger.policies.decoding.streaming_llm_decode import OldestLeaves
from tests.fakes.tiny_models import TIE_LOGITS, VOCAB_SIZE, TinyModel, tiny_model
from tests.kvmerger.engine.test_acting_runs import NUM_HEADS, NUM_LAYERS, built, by_key
from tests.slow.decoding import SlowDecoder

NUM_TOKENS, NUM_NEW_TOKENS, LENGTHS, BUDGET = 24, (5, 3, 4), (3, 2, 4), 10
POLICIES = [
    {"name": "streaming_llm", "budget": BUDGET, "label": "streaming"},
    {"name": "snapkv+h2o_decode", "budget": 14, "recent": 4, "window_size": 4, "label": "acting"},
]
KEPT = {
    "full": list(range(NUM_TOKENS)),
    "full_aa": list(range(NUM_TOKENS)),
    "no_context": [],
    "streaming": [*range(4), *range(NUM_TOKENS - BUDGET + 4, NUM_TOKENS)],
}


def conversation(seed: int, stop_ids: tuple[int, ...] = ()) -> Prompt:
    """Three questions, the second and third of which follow on those before."""
    rng = random.Random(seed)
    context = tuple(rng.randrange(VOCAB_SIZE) for _ in range(NUM_TOKENS))
    turns = [
        EarlierTurn(tuple(rng.randrange(VOCAB_SIZE) for _ in range(length)), num_new)
        for length, num_new in zip(LENGTHS, NUM_NEW_TOKENS, strict=True)
    ]
    questions = tuple(
        Question(turn.tail_ids, (1, 2), turn.max_new_tokens, stop_ids, tuple(turns[:index]))
        for index, turn in enumerate(turns)
    )
    return Prompt(context, questions)


@pytest.fixture(scope="module")
def model(seed: int) -> TinyModel:
    # In float64: a near tie that a batch's rounding decides would give two rows other histories for good.
    return tiny_model(seed, torch.float64, num_layers=NUM_LAYERS)


@pytest.fixture(scope="module")
def rows(model: TinyModel, seed: int) -> dict[tuple[str, int], Generation]:
    return by_key(Engine(model.ours).run(conversation(seed), built(*POLICIES)))


def check_greedy(model: TinyModel, prompt: Prompt, rows: dict[tuple[str, int], Generation]) -> None:
    """Every row's answer is what a slow loop says behind the row's own answers to what was asked before."""
    for label, kept in KEPT.items():
        slow = SlowDecoder(model.plain, prompt.context_ids, [[kept] * NUM_HEADS] * NUM_LAYERS)
        position = NUM_TOKENS
        with torch.inference_mode():
            for index, question in enumerate(prompt.questions):
                said = rows[label, index].token_ids
                # The next question stands behind what was said, without what ended it.
                heard = said[:-1] if said[-1] in question.stop_ids else said
                for token in question.tail_ids:
                    hidden_E, position = slow.read(token, position), position + 1
                for place, token in enumerate(said):
                    logits_V = model.plain.lm_head.weight.double() @ hidden_E
                    if not place and question.stop_ids:
                        logits_V[list(question.stop_ids)] = -torch.inf
                    assert logits_V.max() - logits_V[token] < TIE_LOGITS, (label, index, place)
                    if place < len(heard):
                        hidden_E, position = slow.read(token, position), position + 1


def test_answers_are_those_of_a_slow_loop_that_hears_itself(model: TinyModel, rows, seed: int) -> None:
    assert (
        len({rows["streaming", 0].token_ids, rows["full", 0].token_ids, rows["no_context", 0].token_ids}) > 1
    )
    check_greedy(model, conversation(seed), rows)


def test_what_ended_an_answer_is_not_heard(model: TinyModel, rows, seed: int) -> None:
    prompt = conversation(seed, stop_ids=(rows["full", 0].token_ids[2],))
    stopped = by_key(Engine(model.ours).run(prompt, built(*POLICIES)))
    assert stopped["full", 0].stop_reason == "stop" and len(stopped["full", 0].token_ids) <= 3
    check_greedy(model, prompt, stopped)


def test_a_later_question_asked_alone_is_answered_as_in_its_conversation(
    model: TinyModel, rows, seed: int
) -> None:
    prompt = conversation(seed)
    alone = by_key(Engine(model.ours).run(replace(prompt, questions=prompt.questions[2:]), built(*POLICIES)))
    assert {label for label, _ in alone} == {label for label, _ in rows}
    for (label, question), row in alone.items():
        assert question == 0
        assert row.token_ids == rows[label, 2].token_ids
        assert row.kl_mean == pytest.approx(rows[label, 2].kl_mean, abs=1e-6)
        assert row.answer_nll == pytest.approx(rows[label, 2].answer_nll, abs=1e-6)


def test_isolated_and_joined_runs_say_the_same(model: TinyModel, rows, seed: int) -> None:
    prompt, variants = conversation(seed), built(*POLICIES)
    other = replace(conversation(seed + 1), questions=(Question((7, 8), (), 3),))
    isolated = by_key(Engine(model.ours).run(prompt, variants, execution="isolated"))
    joined, plain = map(by_key, Engine(model.ours).run_many([prompt, other], variants))
    for found in (isolated, joined):
        assert found.keys() == rows.keys()
        for key, row in rows.items():
            assert found[key].token_ids == row.token_ids
            assert found[key].kl_mean == pytest.approx(row.kl_mean, abs=1e-6)
    assert len(plain) == len(rows) // 3


def test_the_full_cache_is_compared_with_itself_however_long_the_conversation(rows) -> None:
    for index in range(3):
        assert rows["full", index].kl_mean == 0
        assert rows["full_aa", index].kl_mean == pytest.approx(0, abs=1e-9)
        assert rows["streaming", index].kl_mean > 0
        trace = rows["streaming", index].trace
        heard = sum(len(rows["streaming", it].token_ids) + LENGTHS[it] for it in range(index))
        tail_bytes = trace[1].live_bytes - rows["streaming", index].kv_bytes
        # A tail has no positions: it is where it is.
        token_bytes = (rows["full", 0].kv_bytes - rows["full", 0].position_bytes) // NUM_TOKENS
        assert tail_bytes == (heard + LENGTHS[index]) * token_bytes


@dataclass(frozen=True)
class BreaksAtOnce(OldestLeaves):
    def worth(self, step):
        raise RuntimeError("this rule is broken")


@dataclass(frozen=True)
class Breaking(Policy):
    def compress(self, layer, evidence, budget):
        return layer

    def decode_rule(self, prompt_seed: int) -> DecodeRule:
        return BreaksAtOnce(4)


def test_rows_that_gave_no_answer_are_asked_nothing_more(model: TinyModel, rows, seed: int) -> None:
    bad = {"name": f"{__name__}:Breaking", "budget": 0.5, "label": "bad"}
    found = Engine(model.ours).run(conversation(seed), built(bad, POLICIES[0]))
    failures = {it.question_index: it for it in found if it.label == "bad"}
    assert all(isinstance(it, VariantFailure) for it in failures.values())
    assert [failures[index].error_type for index in range(3)] == [
        "RuntimeError", "EarlierAnswerError", "EarlierAnswerError",
    ]  # fmt: skip
    others = by_key([it for it in found if it.label != "bad"])
    assert others["streaming", 2].token_ids == rows["streaming", 2].token_ids


def test_what_is_compressed_nowhere_and_what_is_too_long_are_refused(model: TinyModel, seed: int) -> None:
    prompt = conversation(seed)
    with pytest.raises(InvalidPromptError, match="follows on others"):
        Engine(model.ours).run(replace(prompt, is_context_free=True), built(*POLICIES))
    last = prompt.questions[2]
    long = replace(last, earlier=(replace_new(last.earlier[0], 5000), last.earlier[1]))
    with pytest.raises(InvalidPromptError, match=r"question 0 needs 50\d\d positions"):
        Engine(model.ours).run(replace(prompt, questions=(long,)), built(*POLICIES))


def replace_new(turn: EarlierTurn, max_new_tokens: int) -> EarlierTurn:
    return turn._replace(max_new_tokens=max_new_tokens)

"""A question's own stop tokens end its answer, but never as its first token, and leave other questions alone."""

from dataclasses import replace

import pytest
import torch

from kvmerger.engine import Engine
from kvmerger.generation import Generation, InvalidPromptError, Prompt, Question
from tests.fakes.tiny_models import VOCAB_SIZE, TinyModel, tiny_model

NUM_NEW_TOKENS = 12


def prompt_of(seed: int, *stop_ids: tuple[int, ...]) -> Prompt:
    draw = torch.Generator().manual_seed(seed)
    context_ids = tuple(torch.randint(VOCAB_SIZE, (60,), generator=draw).tolist())
    tails = [tuple(torch.randint(VOCAB_SIZE, (4,), generator=draw).tolist()) for _ in stop_ids]
    questions = [
        Question(tail, (5, 6), NUM_NEW_TOKENS, stop) for tail, stop in zip(tails, stop_ids, strict=True)
    ]
    return Prompt(context_ids, tuple(questions))


def full_rows(model: TinyModel, prompt: Prompt) -> list[Generation]:
    found = [row for row in Engine(model.ours).run(prompt, []) if row.label == "full"]
    assert all(isinstance(row, Generation) for row in found)
    return sorted(found, key=lambda row: row.question_index)  # type: ignore[return-value]


def greedy(model: TinyModel, ids: tuple[int, ...], stop_ids: set[int]) -> tuple[int, ...]:
    """The slow reference: a whole forward pass a token, as transformers' min_length and end tokens have it."""
    answer: list[int] = []
    while len(answer) < NUM_NEW_TOKENS and (not answer or answer[-1] not in stop_ids):
        logits_V = model.plain(torch.tensor([[*ids, *answer]])).logits[0, -1]
        if not answer:
            logits_V[sorted(stop_ids)] = -torch.inf
        answer.append(int(logits_V.argmax()))
    return tuple(answer)


@torch.no_grad()
def test_answers_end_where_transformers_would_end_them(seed: int) -> None:
    model = tiny_model(seed)
    free = full_rows(model, prompt_of(seed, (), ()))
    first, later = free[0].token_ids[0], free[0].token_ids[NUM_NEW_TOKENS // 2]
    prompt = prompt_of(seed, (first, later), ())
    stopped, other = full_rows(model, prompt)
    ids = prompt.context_ids + prompt.questions[0].tail_ids
    assert stopped.token_ids == greedy(model, ids, {first, later})
    assert stopped.token_ids[0] not in {first, later}
    assert (stopped.stop_reason == "stop") == (stopped.token_ids[-1] in {first, later})
    assert other.token_ids == free[1].token_ids


def test_a_later_stop_token_ends_the_answer(seed: int) -> None:
    model = tiny_model(seed)
    (free,) = full_rows(model, prompt_of(seed, ()))
    # The last token that does not occur earlier, so that it ends nothing before its place.
    place = max(index for index, token in enumerate(free.token_ids) if token not in free.token_ids[:index])
    (stopped,) = full_rows(model, prompt_of(seed, (free.token_ids[place],)))
    if place:
        assert (stopped.token_ids, stopped.stop_reason) == (free.token_ids[: place + 1], "stop")
    else:  # one token over and over: it may not come first
        assert stopped.token_ids[0] != free.token_ids[0]


def test_without_stop_tokens_the_first_token_may_end_the_answer(seed: int) -> None:
    model = tiny_model(seed)
    (free,) = full_rows(model, prompt_of(seed, ()))
    ends_at_once = replace(model.ours, eos_ids=frozenset({free.token_ids[0]}))
    (stopped,) = full_rows(model._replace(ours=ends_at_once), prompt_of(seed, ()))
    assert (stopped.token_ids, stopped.stop_reason) == (free.token_ids[:1], "eos")


def test_a_stop_token_outside_the_vocabulary_is_refused(seed: int) -> None:
    with pytest.raises(InvalidPromptError, match=f"token {VOCAB_SIZE} is outside"):
        Engine(tiny_model(seed).ours).run(prompt_of(seed, (VOCAB_SIZE,)), [])

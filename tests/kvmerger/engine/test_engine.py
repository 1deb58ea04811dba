"""The engine's promises, on prompts of several lengths, for short tails (query-aware) and long ones (query-agnostic)."""

import random

import pytest
import torch

from kvmerger.building import build_variant
from kvmerger.cache.slot_table import storage_addresses, storage_bytes
from kvmerger.decoding.batch import Batch, Row
from kvmerger.decoding.extend import extend, pad_tokens
from kvmerger.engine import Engine
from kvmerger.engine.compress import compress_all, empty_prefix
from kvmerger.generation import Prompt, Question
from kvmerger.limits import bucket_for
from kvmerger.prefill.prefill import prefill
from kvmerger.variants import FULL, NO_CONTEXT, parse_policies
from tests.fakes.tiny_models import VOCAB_SIZE, TinyModel, assert_same_greedy_tokens, tiny_model

NUM_NEW_TOKENS = 33
TAIL_TOKENS = {"query_aware": (1, 1), "query_agnostic": (37, 21)}
DTYPES = (torch.float32, torch.bfloat16)
POLICIES = [
    {"name": "kvmerger", "budget": 0.5, "skip_layers": []},
    {
        "name": "kvmerger",
        "budget": 0.35,
        "mode": "threshold",
        "eps": 0.2,
        "skip_layers": [0],
        "label": "ragged",
    },
    {"name": "kvmerger", "budget": 0.5, "skip_layers": [], "log_mass": "attention", "label": "with_log_mass"},
    {"name": "snapkv", "budget": 0.4, "window_size": 16},
    {"name": "streaming_llm", "budget": 64},
    {"name": "knorm", "budget": 0.5},
    {"name": "random", "budget": {"like": "ragged"}, "label": "random_ragged"},
]
lengths = pytest.mark.parametrize("num_tokens", [300, 1000, 2000])
modes = pytest.mark.parametrize("mode", TAIL_TOKENS)
# Every length, mode and dtype, each beside others; not all twelve.
shapes = pytest.mark.parametrize(
    ("num_tokens", "mode", "dtype"),
    [
        (300, "query_aware", torch.bfloat16),
        (1000, "query_agnostic", torch.float32),
        (2000, "query_aware", torch.float32),
        (2000, "query_agnostic", torch.bfloat16),
    ],
    ids=str,
)


def variants():
    return [build_variant(spec) for spec in parse_policies(POLICIES)]


def make_prompt(seed: int, num_tokens: int, mode: str, num_questions: int = 2) -> Prompt:
    """Random tokens with repeats, so that some neighbouring keys are alike; two questions of unequal tails."""
    rng = random.Random(seed + num_tokens)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCAB_SIZE) for _ in range(count))

    context: list[int] = []
    while len(context) < num_tokens:
        context += [rng.randrange(VOCAB_SIZE)] * rng.choice([1, 1, 1, 3, 6])
    questions = tuple(
        Question(tokens(TAIL_TOKENS[mode][index]), tokens(5 + index), NUM_NEW_TOKENS)
        for index in range(num_questions)
    )
    return Prompt(tuple(context[:num_tokens]), questions)


def make_rows(
    model: TinyModel, prompt: Prompt, policies: list[dict] = POLICIES, ragged_label: str = "ragged"
) -> list[Row]:
    """A row per variant (full and no-context rows too) and question, from one prefill."""
    built = [build_variant(spec) for spec in parse_policies(policies)]
    needs = frozenset(need for variant in built for need in variant.policy.needs())
    prefilled = prefill(model.ours, prompt.context_ids, needs)
    compression = compress_all(prefilled, built)
    assert not compression.failed
    prefixes = {label: done.prefix for label, done in compression.done.items()}
    prefixes[NO_CONTEXT] = empty_prefix(prefilled)
    assert any(not layer.is_uniform for layer in prefixes[ragged_label]), (
        "no head differs in length: nothing ragged is tested"
    )
    return [
        Row(label, question, prefix)
        for label, prefix in prefixes.items()
        for question in range(len(prompt.questions))
    ]


@lengths
@modes
def test_full_row_decodes_as_generate_does(num_tokens: int, mode: str, seed: int) -> None:
    model = tiny_model(seed)
    prompt = make_prompt(seed, num_tokens, mode)
    generations = Engine(model.ours).run(prompt, variants())
    full = [generation for generation in generations if generation.label == FULL]
    for question, generation in zip(prompt.questions, full, strict=True):
        ids_1T = torch.tensor([[*prompt.context_ids, *question.tail_ids]])
        expected = model.plain.generate(
            ids_1T, max_new_tokens=NUM_NEW_TOKENS, do_sample=False, use_cache=True
        )
        assert_same_greedy_tokens(model.plain, ids_1T, generation.token_ids, expected)
        assert generation.stop_reason == "length"


@lengths
@modes
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_forced_logits_of_the_full_row_equal_a_plain_forward(
    num_tokens: int, mode: str, model_type: str, seed: int
) -> None:
    model = tiny_model(seed, model_type=model_type)
    prompt = make_prompt(seed, num_tokens, mode)
    rows = [row for row in make_rows(model, prompt) if row.label == FULL]
    batch = Batch(model.ours, prompt, dict(enumerate(rows)), bucket=4)
    rng = random.Random(seed)
    forced_ids = {row: tuple(rng.randrange(VOCAB_SIZE) for _ in range(NUM_NEW_TOKENS)) for row in (0, 1)}
    for row, hidden_TE in batch.force(forced_ids, NUM_NEW_TOKENS).items():
        ids = [*prompt.context_ids, *prompt.questions[row].tail_ids, *forced_ids[row]]
        with torch.inference_mode():
            plain_TV = model.plain(torch.tensor([ids])).logits[0, -NUM_NEW_TOKENS - 1 : -1]
        torch.testing.assert_close(model.ours.logits(hidden_TE), plain_TV, atol=1e-4, rtol=0)


@shapes
def test_every_row_alone_has_the_bits_it_has_in_the_batch(
    num_tokens: int, mode: str, dtype: torch.dtype, seed: int
) -> None:
    model = tiny_model(seed, dtype)
    prompt = make_prompt(seed, num_tokens, mode)
    rows = dict(enumerate(make_rows(model, prompt)))
    bucket = bucket_for(len(rows))
    together = Batch(model.ours, prompt, rows, bucket)
    answers = together.decode()
    longest = max(len(question.gold_ids) for question in prompt.questions)
    gold = {index: prompt.questions[row.question_index].gold_ids for index, row in rows.items()}
    hidden = together.force(gold, longest)
    for index, row in rows.items():
        alone = Batch(model.ours, prompt, {index: row}, bucket)
        assert alone.decode()[index] == answers[index], row.label
        assert torch.equal(alone.force({index: gold[index]}, longest)[index], hidden[index]), row.label


@shapes
def test_neighbours_content_changes_no_bit(num_tokens: int, mode: str, dtype: torch.dtype, seed: int) -> None:
    model = tiny_model(seed, dtype)
    prompt = make_prompt(seed, num_tokens, mode)
    rows = make_rows(model, prompt)
    watched = next(index for index, row in enumerate(rows) if row.label == "ragged")
    shuffled = rows[:watched] + rows[watched + 1 :]
    random.Random(seed).shuffle(shuffled)
    shuffled.insert(watched, rows[watched])
    assert shuffled != rows
    answers, hidden = [], []
    for arrangement in (rows, shuffled):
        batch = Batch(model.ours, prompt, dict(enumerate(arrangement)), bucket_for(len(rows)))
        answers.append(batch.decode()[watched])
        hidden.append(
            batch.force(dict.fromkeys(range(len(rows)), answers[0].token_ids), NUM_NEW_TOKENS)[watched]
        )
    assert answers[0] == answers[1]
    assert torch.equal(hidden[0], hidden[1])


@shapes
def test_rewinding_and_extending_again_gives_the_same_bits(
    num_tokens: int, mode: str, dtype: torch.dtype, seed: int
) -> None:
    model = tiny_model(seed, dtype)
    prompt = make_prompt(seed, num_tokens, mode)
    rows = make_rows(model, prompt)
    batch = Batch(model.ours, prompt, dict(enumerate(rows)), bucket_for(len(rows)))
    before = batch.cache.tail_length_R
    feed_RT = pad_tokens(
        [[7 + index % 3] * (3 + index % 4) for index in range(batch.cache.num_rows)], 6, model.ours.device
    )
    num_new_R = [3 + index % 4 if index < len(rows) else 0 for index in range(batch.cache.num_rows)]
    first = extend(model.ours, batch.cache, feed_RT, num_new_R).hidden_RTE.clone()
    batch.cache.rewind(before)
    # Other tokens in between must leave no trace.
    extend(model.ours, batch.cache, feed_RT.flip(1) + 1, num_new_R)
    batch.cache.rewind(before)
    again = extend(model.ours, batch.cache, feed_RT, num_new_R).hidden_RTE
    for row, num_new in enumerate(num_new_R):
        assert torch.equal(first[row, :num_new], again[row, :num_new])


@shapes
def test_bytes_are_those_of_distinct_storages_and_none_is_the_full_rows(
    num_tokens: int, mode: str, dtype: torch.dtype, seed: int
) -> None:
    model = tiny_model(seed, dtype)
    prompt = make_prompt(seed, num_tokens, mode, num_questions=1)
    built = variants()
    prefilled = prefill(
        model.ours, prompt.context_ids, frozenset(need for v in built for need in v.policy.needs())
    )
    compression = compress_all(prefilled, built)
    owned_by_full = storage_addresses(tensor for layer in prefilled.layers for tensor in layer.tensors())
    for done in compression.done.values():
        tensors = [tensor for layer in done.prefix for tensor in layer.tensors()]
        # Head size 16: a slot is a key, a value, an int32 position and, with log mass, one fp32 number.
        slot_bytes = 2 * 16 * dtype.itemsize + 4 + (4 if done.label == "with_log_mass" else 0)
        assert done.nbytes == slot_bytes * sum(layer.num_slots for layer in done.prefix)
        assert done.label == FULL or not storage_addresses(tensors) & owned_by_full
        assert storage_bytes(tensors) == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    rows = {
        0: Row("ragged", 0, compression.done["ragged"].prefix),
        1: Row("again", 0, compression.done["ragged"].prefix),
    }
    batch = Batch(model.ours, prompt, rows, bucket=2)
    assert batch.cache.prefix_bytes == compression.done["ragged"].nbytes, "a shared prefix counts once"


@shapes
def test_kept_slots_of_evicting_policies_are_prefills_own(
    num_tokens: int, mode: str, dtype: torch.dtype, seed: int
) -> None:
    model = tiny_model(seed, dtype)
    prompt = make_prompt(seed, num_tokens, mode)
    built = variants()
    prefilled = prefill(
        model.ours, prompt.context_ids, frozenset(need for v in built for need in v.policy.needs())
    )
    compression = compress_all(prefilled, built)
    evicting = [variant for variant in built if variant.policy.keeps_slots_unchanged]
    assert len(evicting) >= 4
    for variant in evicting:
        for kept, whole in zip(compression.done[variant.label].prefix, prefilled.layers, strict=True):
            for head, (start, length) in enumerate(zip(kept.head_starts, kept.num_slots_H, strict=True)):
                position_S = kept.position_S[start : start + length].long()
                assert torch.equal(kept.k_SD[start : start + length], whole.k_HND[head, position_S])
                assert torch.equal(kept.v_SD[start : start + length], whole.v_HND[head, position_S])

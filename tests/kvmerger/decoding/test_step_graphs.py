"""Recorded steps say what the eager loop says, bit for bit, whatever ends when, and serve one prompt after another.

Here a record is a call: all that the device keeps by itself is checked, with the reference kernel. `tests/gpu` has graphs.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from kvmerger.building import build_variant
from kvmerger.decoding.batch import Batch, Row
from kvmerger.decoding.decode_rule import DecodeRule
from kvmerger.decoding.step_graphs import MOST_GRAPHS, StepGraphs, rounded_up
from kvmerger.engine.compress import compress_all
from kvmerger.generation import Prompt, Question
from kvmerger.prefill.prefill import prefill
from kvmerger.variants import parse_policies
from tests.fakes.tiny_models import VOCAB_SIZE, TinyModel, tiny_model
from tests.kvmerger.decoding.test_acting_rows import OTHERS, POLICIES

NUM_LAYERS, BUCKET = 3, 24
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


class Calls:
    """A recorder without a device: what it records is run twice at once, and then called."""

    def __init__(self) -> None:
        self.num_repeats = 0

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        for _ in range(2):
            step()

        def repeat() -> None:
            self.num_repeats += 1
            step()

        return repeat

    def read_later(self, number: torch.Tensor) -> Callable[[], int]:
        now = int(number)
        return lambda: now


def make_prompt(rng: random.Random, num_tokens: int) -> Prompt:
    """Random tokens; three questions of unequal tails, limits and stop tokens: as many of those with every ``rng``."""

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCAB_SIZE) for _ in range(count))

    questions = tuple(
        Question(
            tokens(rng.randrange(1, 6)), tokens(4), max_new, tuple(rng.sample(range(VOCAB_SIZE), num_stops))
        )
        for max_new, num_stops in ((14, 0), (1, 3), (9, 40))
    )
    return Prompt(tokens(num_tokens), questions)


def make_rows(model: TinyModel, prompt: Prompt, policies: list[dict], seed: int = 5) -> dict[int, Row]:
    variants = [build_variant(spec) for spec in parse_policies(policies)]
    needs = frozenset(need for variant in variants for need in variant.policy.needs())
    compression = compress_all(prefill(model.ours, prompt.context_ids, needs, seed), variants)
    assert not compression.failed, compression.failed
    rows = [
        Row(label, question, done.prefix, done.rule)
        for label, done in compression.done.items()
        for question in range(len(prompt.questions))
    ]
    return dict(enumerate(rows))


def state_of(batch: Batch) -> tuple:
    """What is left behind by a decode: lengths, what rules did, memory over time."""
    traces = [batch.trace_of(index, 3, 0, 0)[1:] for index, row in batch.rows.items() if row.rule is not None]
    acted = [batch.has_acted(index) for index in batch.rows]
    live = [[point.live_bytes for point in trace] for trace in traces]
    return batch.cache.tail_length_R, batch.cache.next_position_R, acted, live, batch.counters_by_row


def check_same(model: TinyModel, prompt: Prompt, rows: dict[int, Row], graphs: StepGraphs) -> Batch:
    """Both loops give the same answers and leave the same behind; then the same tokens are forced bit for bit."""
    eager, recorded = (Batch(model.ours, prompt, rows, BUCKET, each) for each in (None, graphs))
    for _ in range(2):
        expected, answers = eager.decode(), recorded.decode()
        assert answers == expected
        assert state_of(recorded) == state_of(eager)
    gold = {index: prompt.questions[row.question_index].gold_ids for index, row in rows.items()}
    expected_TE, hidden_TE = (batch.force(gold, 4) for batch in (eager, recorded))
    assert all(torch.equal(hidden_TE[index], expected_TE[index]) for index in rows)
    recorded.cache.check_integrity()
    return recorded


def with_ends(model: TinyModel, prompt: Prompt, rows: dict[int, Row]) -> TinyModel:
    """The model with two end tokens that its answers have in the middle, so that rows end at different times."""
    answers = Batch(model.ours, prompt, rows, BUCKET).decode()
    said = [token for answer in answers.values() for token in answer.token_ids[2:]]
    return model._replace(ours=replace(model.ours, eos_ids=frozenset(random.Random(0).sample(said, 2))))


@pytest.mark.parametrize(
    ("check_every", "dtype"), [(1, torch.float32), (3, torch.bfloat16), (16, torch.bfloat16)], ids=str
)
def test_answers_and_all_that_is_left_are_the_eager_loops(
    check_every: int, dtype: torch.dtype, seed: int
) -> None:
    rng = random.Random(seed)
    model = tiny_model(seed, dtype, num_layers=NUM_LAYERS)
    calls = Calls()
    graphs = StepGraphs(model.ours, calls, check_every)
    for num_tokens in (48, 31, 70):
        prompt = make_prompt(rng, num_tokens)
        rows = make_rows(model, prompt, OTHERS)
        check_same(model, prompt, rows, graphs)
        with_end = with_ends(model, prompt, rows)
        graphs_with_end = StepGraphs(with_end.ours, Calls(), check_every)
        ended = check_same(with_end, prompt, rows, graphs_with_end)
        assert len({len(answer.token_ids) for answer in ended.decode().values()}) > 1
    assert graphs.num_recorded == 1, "one record served three prompts"
    assert calls.num_repeats == 3 * 2 * 13, "no step more than the longest answer needs"


@pytest.mark.parametrize("check_every", [1, 2, 5])
def test_repeating_stops_soon_after_the_last_answer(check_every: int, seed: int) -> None:
    model = tiny_model(seed, num_layers=NUM_LAYERS)
    prompt = make_prompt(random.Random(seed), 40)
    prompt = replace(prompt, questions=(replace(prompt.questions[0], max_new_tokens=40, stop_ids=()),))
    rows = make_rows(model, prompt, [])
    (free,) = Batch(model.ours, prompt, rows, BUCKET).decode().values()
    last = max(at for at, token in enumerate(free.token_ids[:12]) if token not in free.token_ids[:at])
    model = model._replace(ours=replace(model.ours, eos_ids=frozenset({free.token_ids[last]})))
    calls = Calls()
    batch = Batch(model.ours, prompt, rows, BUCKET, StepGraphs(model.ours, calls, check_every))
    (answer,) = batch.decode().values()
    assert answer.is_complete and len(answer.token_ids) == last + 1
    assert last <= calls.num_repeats <= last + 2 * check_every


@pytest.mark.parametrize(("room", "dtype"), [(0, torch.bfloat16), (4, torch.float32)], ids=str)
def test_rows_whose_policies_act_do_so_inside_the_record(room: int, dtype: torch.dtype, seed: int) -> None:
    rng = random.Random(seed)
    model = tiny_model(seed, dtype, num_layers=NUM_LAYERS)
    policies = [*OTHERS, *({**policy, "room": room} for policy in POLICIES[::2])]
    for num_tokens in (48, 60):
        prompt = make_prompt(rng, num_tokens)
        rows = make_rows(model, prompt, policies)
        ends = with_ends(model, prompt, rows)
        for each in (model, ends):
            calls = Calls()
            batch = check_same(each, prompt, rows, StepGraphs(each.ours, calls))
            assert batch.rules_s is None, "a record cannot be timed in parts"
            assert calls.num_repeats > 0
    one_too_many = [{**policy, "room": room} for policy in POLICIES[1::2]]
    prompt = make_prompt(rng, 48)
    check_same(model, prompt, make_rows(model, prompt, one_too_many), StepGraphs(model.ours, Calls()))


def test_the_tails_memory_goes_from_batch_to_batch(seed: int) -> None:
    rng = random.Random(seed)
    model = tiny_model(seed, num_layers=NUM_LAYERS)
    graphs = StepGraphs(model.ours, Calls())
    places = set()
    for num_tokens in (48, 31, 40):
        prompt = make_prompt(rng, num_tokens)
        rows = make_rows(model, prompt, [])
        batch = check_same(model, prompt, rows, graphs)
        places.add(batch.cache._tail_k[0].data_ptr())
    assert len(places) == 1
    stale = batch
    Batch(model.ours, prompt, rows, BUCKET, graphs)
    with pytest.raises(AssertionError, match="another batch"):
        stale.decode()


def test_longer_tails_begin_anew_and_records_are_bounded(seed: int) -> None:
    rng = random.Random(seed)
    model = tiny_model(seed, num_layers=1)
    graphs = StepGraphs(model.ours, Calls())
    prompt = make_prompt(rng, 30)
    longer = replace(
        prompt, questions=(replace(prompt.questions[0], tail_ids=tuple(range(90)), max_new_tokens=3),)
    )
    for each in (prompt, longer, prompt):
        check_same(model, each, make_rows(model, each, []), graphs)
    for bucket in range(4, 4 + 2 * MOST_GRAPHS):
        Batch(model.ours, longer, make_rows(model, longer, []), bucket, graphs).decode()
    assert len(graphs._by_key) == MOST_GRAPHS


@dataclass(frozen=True)
class LooksAtNumbers(DecodeRule):
    """Works on the host, as no rule should."""

    def worth(self, step):
        if step.position_LHX.is_meta or RECORDING[0]:
            raise RuntimeError("operation not permitted when stream is capturing")
        return step.position_LHX.float()


RECORDING = [False]


class Strict(Calls):
    """Refuses what `LooksAtNumbers` does, as a capturing stream would."""

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        RECORDING[0] = True
        try:
            return super().record(step)
        finally:
            RECORDING[0] = False


def test_what_cannot_be_recorded_answers_eagerly_with_one_warning(seed: int) -> None:
    model = tiny_model(seed, num_layers=NUM_LAYERS)
    prompt = make_prompt(random.Random(seed), 48)
    plain = make_rows(model, prompt, OTHERS)
    acting = {index: replace(row, rule=LooksAtNumbers()) for index, row in plain.items()}
    graphs = StepGraphs(model.ours, Strict())
    # Its first batch, which may have met a passing failure, says nothing yet; `check_same` decodes two.
    with pytest.warns(RuntimeWarning, match="LooksAtNumbers.*not permitted when stream is capturing"):
        check_same(model, prompt, acting, graphs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_same(model, prompt, acting, graphs)
        check_same(model, prompt, plain, graphs)
    assert graphs.num_recorded == 1, "other rows are recorded all the same"


class OutOfMemory(Calls):
    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        super().record(step)
        raise torch.OutOfMemoryError("no room for a record")


def test_no_memory_for_a_record_is_no_reason_to_fail(seed: int) -> None:
    model = tiny_model(seed, num_layers=NUM_LAYERS)
    prompt = make_prompt(random.Random(seed), 48)
    rows = make_rows(model, prompt, [*OTHERS, *POLICIES[:4]])
    check_same(model, prompt, rows, StepGraphs(model.ours, OutOfMemory()))


def test_sizes_are_few_and_not_much_too_large() -> None:
    sizes = [rounded_up(count, 64) for count in range(1, 5000)]
    assert all(size >= count for count, size in enumerate(sizes, start=1))
    assert all(size <= max(64, 1.25 * count) for count, size in enumerate(sizes, start=1))
    assert len(set(sizes)) < 30
    assert {rounded_up(count, 1024, finer=1) for count in range(1, 9000)} == {1024, 2048, 4096, 8192, 16384}

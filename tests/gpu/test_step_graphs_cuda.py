"""Decode steps as CUDA graphs: the eager loop's bits, one graph for many prompts, and memory that stays flat."""

import gc
import random
from dataclasses import dataclass, replace

import pytest
import torch

from kvmerger.building import build_variant
from kvmerger.decoding.batch import Batch
from kvmerger.decoding.decode_rule import DecodeRule
from kvmerger.decoding.step_graphs import StepGraphs, graphs_for
from kvmerger.engine import Engine, fused
from kvmerger.models.loading import LoadedModel, probed
from kvmerger.variants import parse_policies
from tests.fakes.tiny_models import TinyModel, tiny_model
from tests.gpu.little_memory import at_most, bytes_for
from tests.gpu.test_engine_cuda import on_cuda
from tests.kvmerger.decoding.test_acting_rows import OTHERS, POLICIES
from tests.kvmerger.decoding.test_step_graphs import BUCKET, check_same, make_prompt, make_rows, with_ends

# What falls back to the eager loop would equal it, and test nothing.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("error::RuntimeWarning")]
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
MIB = 2**20
NUM_ITEMS, NUM_WARM_UP_ITEMS = 100, 20


def graphs_of(model) -> StepGraphs:
    graphs = graphs_for(model.ours)
    assert graphs is not None, "there is a GPU, and Triton takes heads of this size"
    return graphs


@dtypes
def test_one_graph_gives_the_eager_loops_bits_on_prompts_of_any_length(dtype: torch.dtype, seed: int) -> None:
    rng, model = random.Random(seed), on_cuda(seed, dtype)
    graphs = graphs_of(model)
    for num_tokens in (48, 700, 31, 1000):
        prompt = make_prompt(rng, num_tokens)
        check_same(model, prompt, make_rows(model, prompt, OTHERS), graphs)
    assert graphs.num_recorded == 1
    prompt = make_prompt(rng, 1500)
    check_same(model, prompt, make_rows(model, prompt, OTHERS), graphs)
    assert graphs.num_recorded == 2, "longer prefixes want a larger grid"


@dtypes
def test_answers_end_where_the_eager_loop_ends_them(dtype: torch.dtype, seed: int) -> None:
    rng, model = random.Random(seed), on_cuda(seed, dtype)
    for num_tokens in (48, 700):
        prompt = make_prompt(rng, num_tokens)
        rows = make_rows(model, prompt, OTHERS)
        ending = with_ends(model, prompt, rows)
        check_same(ending, prompt, rows, graphs_of(ending))


@dtypes
@pytest.mark.parametrize("room", [0, 4])
@pytest.mark.parametrize("policies", [POLICIES[::2], POLICIES[1::2]], ids=["even", "odd"])
def test_decode_policies_act_inside_the_graph(
    policies: list[dict], room: int, dtype: torch.dtype, seed: int
) -> None:
    rng, model = random.Random(seed), on_cuda(seed, dtype)
    graphs = graphs_of(model)
    for num_tokens in (48, 60, 48):
        prompt = make_prompt(rng, num_tokens)
        rows = make_rows(model, prompt, [*OTHERS, *({**policy, "room": room} for policy in policies)])
        check_same(model, prompt, rows, graphs)
        ending = with_ends(model, prompt, rows)
        check_same(ending, prompt, rows, graphs_of(ending))
    assert graphs.num_recorded > 0


@dtypes
def test_fused_equals_alone_inside_graphs(dtype: torch.dtype, seed: int) -> None:
    rng, model = random.Random(seed), on_cuda(seed, dtype)
    prompt = make_prompt(rng, 300)
    rows = make_rows(model, prompt, [*OTHERS, *POLICIES[2:4]])
    answers = Batch(model.ours, prompt, rows, BUCKET, graphs_of(model)).decode()
    graphs = graphs_of(model)
    for index, row in rows.items():
        assert Batch(model.ours, prompt, {index: row}, BUCKET, graphs).decode()[index] == answers[index], (
            row.label
        )


@dataclass(frozen=True)
class WaitsForTheDevice(DecodeRule):
    """Reads a number on the host, which no graph can hold."""

    def worth(self, step):
        return step.position_LHX.float() + float(step.position_LHX.max().item() < 0)


def test_a_rule_that_waits_for_the_device_answers_eagerly(seed: int) -> None:
    model = on_cuda(seed, torch.float32)
    prompt = make_prompt(random.Random(seed), 48)
    plain = make_rows(model, prompt, OTHERS)
    acting = {index: replace(row, rule=WaitsForTheDevice()) for index, row in plain.items()}
    graphs = graphs_of(model)
    with pytest.warns(RuntimeWarning, match="WaitsForTheDevice"):
        check_same(model, prompt, acting, graphs)
    check_same(model, prompt, plain, graphs)
    assert graphs.num_recorded == 1, "a failed recording spoils no other"


def test_transformers_own_layers_are_recorded_too_those_with_a_window_among_them(seed: int) -> None:
    model = tiny_model(seed, torch.float32, model_type="mistral", sliding_window=3000)
    with pytest.warns(RuntimeWarning, match="sliding window"):
        ours = probed(LoadedModel(model.ours.module.to("cuda"), model.ours.info, frozenset()))
    model, prompt = TinyModel(ours, model.plain), make_prompt(random.Random(seed), 700)
    graphs = graphs_of(model)
    check_same(model, prompt, make_rows(model, prompt, OTHERS), graphs)
    assert graphs.num_recorded == 1


def test_a_recording_that_breaks_off_leaves_memory_and_random_numbers_to_others(seed: int) -> None:
    """Torch 2.11 takes it for unfinished: no memory would go back to the driver any more, and every draw would raise."""
    model = on_cuda(seed, torch.float32)
    prompt = make_prompt(random.Random(seed), 48)
    rows = make_rows(model, prompt, OTHERS)
    acting = {index: replace(row, rule=WaitsForTheDevice()) for index, row in rows.items()}
    with pytest.warns(RuntimeWarning, match="WaitsForTheDevice"):
        check_same(model, prompt, acting, graphs_of(model))
    torch.rand(1, device="cuda")
    torch.cuda.empty_cache()
    before_bytes = torch.cuda.memory_reserved()
    torch.empty(100 * MIB, dtype=torch.uint8, device="cuda")
    assert torch.cuda.memory_reserved() >= before_bytes + 100 * MIB
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == before_bytes


def test_memory_is_flat_over_a_hundred_items(seed: int) -> None:
    """After `NUM_WARM_UP_ITEMS` nothing more stays allocated, and at most two segments of 20 MiB more reserved."""
    rng, model = random.Random(seed), on_cuda(seed, torch.bfloat16)
    variants = [build_variant(spec) for spec in parse_policies([*OTHERS, *POLICIES[2:4]])]
    engine = Engine(model.ours)
    allocated, reserved = [], []
    for item in range(NUM_ITEMS):
        # The longest come first, so that every graph there will be is recorded while it warms up.
        num_tokens = (2000, 900, 60)[item] if item < 3 else rng.randrange(50, 2000)
        results = engine.run(make_prompt(rng, num_tokens), variants)
        assert len(results) == 3 * (len(variants) + 3)
        del results
        gc.collect()
        torch.cuda.synchronize()
        allocated.append(torch.cuda.memory_allocated())
        reserved.append(torch.cuda.memory_reserved())
    print(f"allocated {allocated[::10]}, reserved {reserved[::10]}")
    assert max(allocated[NUM_WARM_UP_ITEMS:]) - max(allocated[:NUM_WARM_UP_ITEMS]) < MIB
    assert max(reserved[NUM_WARM_UP_ITEMS:]) - max(reserved[:NUM_WARM_UP_ITEMS]) <= 40 * MIB


@pytest.mark.parametrize("is_foreseen", [False, True])
def test_a_device_that_is_too_small_halves_the_group_and_loses_no_row(
    is_foreseen: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator is held to 60 % of what the whole group took; every row still comes, and says the same."""
    rng, model = random.Random(seed), on_cuda(seed, torch.float32)
    prompt = replace(make_prompt(rng, 3900), questions=make_prompt(rng, 10).questions[:1])
    entries = [
        {"name": "knorm", "budget": round(0.5 + index / 50, 2), "label": f"v{index}"} for index in range(20)
    ]
    variants = [build_variant(spec) for spec in parse_policies(entries)]
    engine = Engine(model.ours)
    engine.run(prompt, variants)  # compiles kernels, records graphs
    expected = without_seconds(engine.run(prompt, variants))
    limit_bytes = bytes_for(0.6, lambda: engine.run(prompt, variants))
    num_halved = []
    make_room = fused.make_room
    monkeypatch.setattr(fused, "make_room", lambda *others: (num_halved.append(1), make_room(*others))[1])
    with at_most(limit_bytes, is_foreseen=is_foreseen):
        results = without_seconds(engine.run(prompt, variants))
    assert num_halved or is_foreseen
    assert results == expected


def without_seconds(results: list) -> dict:
    assert len(results) == len({result.label for result in results})
    return {result.label: replace(result, seconds={}) for result in results}

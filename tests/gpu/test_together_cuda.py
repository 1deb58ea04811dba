"""Several prompts in one decoding batch on CUDA: graphs say what the eager loop says, and no neighbour changes a bit."""

import random

import pytest
import torch

from kvmerger.decoding.batch import Batch
from kvmerger.decoding.together import Party, Together
from kvmerger.engine import Engine, fused_many, fused_members
from kvmerger.generation import Generation
from kvmerger.limits import Limits
from tests.gpu.little_memory import at_most, bytes_for
from tests.gpu.test_engine_cuda import on_cuda
from tests.gpu.test_step_graphs_cuda import graphs_of
from tests.kvmerger.decoding.test_acting_rows import OTHERS, POLICIES
from tests.kvmerger.decoding.test_step_graphs import make_prompt, make_rows, with_ends
from tests.kvmerger.decoding.test_together import SEED, _bare, built, by_key, check_as_alone, prompts_of

# What falls back to the eager loop, or to prompts alone, would equal it, and test nothing.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("error::RuntimeWarning")]
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
LENGTHS = (300, 48, 1000)


@dtypes
def test_graphs_neighbours_and_dummies_change_no_bit(dtype: torch.dtype, seed: int) -> None:
    rng, model = random.Random(seed), on_cuda(seed, dtype)
    prompts = [make_prompt(rng, num_tokens) for num_tokens in LENGTHS]
    rows = [make_rows(model, prompt, OTHERS) for prompt in prompts]
    model = with_ends(model, prompts[0], rows[0])
    parties = [Party(it, own, 12, start) for it, own, start in zip(prompts, rows, (0, 12, 24), strict=True)]
    expected = Together(model.ours, parties, 48).decode()
    graphs = graphs_of(model)
    for chosen in ((0, 1, 2), (2,), (0,), (1, 2)):
        joint = Together(model.ours, [parties[number] for number in chosen], 48, graphs)
        for _ in range(2):
            assert joint.decode() == [expected[number] for number in chosen]
        for number, batch in zip(chosen, joint.batches, strict=True):
            alone = Batch(model.ours, prompts[number], rows[number], 12)
            gold = {
                index: prompts[number].questions[row.question_index].gold_ids
                for index, row in rows[number].items()
            }
            own_TE, hidden_TE = alone.force(gold, 4), batch.force(gold, 4)
            assert all(torch.equal(hidden_TE[index], own_TE[index]) for index in gold)
    assert graphs.num_recorded == 1, "one graph for all of them"


@dtypes
def test_prompts_together_say_what_each_says_alone(dtype: torch.dtype, seed: int) -> None:
    model, prompts = on_cuda(seed, dtype), prompts_of(seed, LENGTHS)
    policies = [*OTHERS, POLICIES[2]]
    engine = Engine(model.ours, Limits(max_rows=len(prompts) * 16))
    for _ in range(2):
        found = engine.run_many(prompts, built(policies), seed=SEED)
        for prompt, results in zip(prompts, found, strict=True):
            alone = by_key(engine.run(prompt, built(policies), seed=SEED), prompt, policies)
            num_apart = 1 if dtype == torch.float32 else len(alone) // 2
            check_as_alone(by_key(results, prompt, policies), alone, num_apart)
            shared = {it.counters.get("num_prompts_together") for it in results if isinstance(it, Generation)}
            assert shared == {3.0, None}


@pytest.mark.parametrize("is_foreseen", [False, True])
def test_a_device_that_is_too_small_parts_prompts_and_loses_no_row(
    is_foreseen: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator is held to 70 % of what all together took; every row still comes, and says the same."""
    model = on_cuda(seed, torch.float32)
    prompts = prompts_of(seed, (3800,) * 6)
    variants = built([{"name": "knorm", "budget": 0.5 + 0.02 * n, "label": f"v{n}"} for n in range(4)])
    engine = Engine(model.ours, Limits(max_rows=72))

    def run() -> list:
        return [
            sorted(map(_bare, results), key=lambda it: (it.label, it.question_index))
            for results in engine.run_many(prompts, variants, seed=SEED)
        ]

    run()  # compiles kernels, records graphs
    expected = run()
    limit_bytes = bytes_for(0.7, run)
    num_parted = []
    make_room = fused_members.make_room
    for module in (fused_many, fused_members):
        monkeypatch.setattr(
            module, "make_room", lambda *others: (num_parted.append(1), make_room(*others))[1]
        )
    with at_most(limit_bytes, is_foreseen=is_foreseen):
        results = run()
    assert num_parted or is_foreseen
    assert results == expected

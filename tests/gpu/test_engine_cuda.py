"""The engine's promises on CUDA: equal bits in the same bucket, real bytes, and the plain model's own numbers."""

import gc

import pytest
import torch

from kvmerger.building import build_variant
from kvmerger.decoding.batch import Batch
from kvmerger.engine import Engine
from kvmerger.engine.compress import compress_all
from kvmerger.limits import bucket_for
from kvmerger.models.loading import LoadedModel, probed
from kvmerger.policies.decoding.cam import uniform
from kvmerger.prefill.prefill import prefill
from kvmerger.variants import FULL, parse_policies
from tests.fakes.tiny_models import TinyModel, assert_same_greedy_tokens, tiny_model
from tests.kvmerger.decoding import test_acting_rows
from tests.kvmerger.engine.test_engine import NUM_NEW_TOKENS, POLICIES, make_prompt, make_rows

pytestmark = pytest.mark.gpu
# The allocator rounds every tensor up to 512 bytes; the caches here are large enough for that to be noise.
ALLOCATOR_TOLERANCE = 0.02


def on_cuda(seed: int, dtype: torch.dtype, device: str = "cuda") -> TinyModel:
    model = tiny_model(seed, dtype)
    ours = probed(LoadedModel(model.ours.module.to(device), model.ours.info, frozenset()))
    assert ours.fast_decoder is not None
    return TinyModel(ours, model.plain.to(device))


@pytest.mark.parametrize("num_tokens", [300, 2000])
@pytest.mark.parametrize("mode", ["query_aware", "query_agnostic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_row_alone_has_the_bits_it_has_in_the_batch(
    num_tokens: int, mode: str, dtype: torch.dtype, seed: int
) -> None:
    model = on_cuda(seed, dtype)
    prompt = make_prompt(seed, num_tokens, mode)
    rows = dict(enumerate(make_rows(model, prompt)))
    together = Batch(model.ours, prompt, rows, bucket_for(len(rows)))
    answers = together.decode()
    hidden = together.force(dict.fromkeys(rows, answers[0].token_ids), NUM_NEW_TOKENS)
    for index, row in rows.items():
        alone = Batch(model.ours, prompt, {index: row}, bucket_for(len(rows)))
        assert alone.decode()[index] == answers[index], row.label
        assert torch.equal(
            alone.force({index: answers[0].token_ids}, NUM_NEW_TOKENS)[index], hidden[index]
        ), row.label


@pytest.mark.parametrize("mode", ["query_aware", "query_agnostic"])
def test_full_row_decodes_as_generate_does(mode: str, seed: int) -> None:
    model = on_cuda(seed, torch.float32)
    prompt = make_prompt(seed, 1000, mode)
    variants = [build_variant(spec) for spec in parse_policies(POLICIES)]
    full = [g for g in Engine(model.ours).run(prompt, variants) if g.label == FULL]
    for question, generation in zip(prompt.questions, full, strict=True):
        ids_1T = torch.tensor([[*prompt.context_ids, *question.tail_ids]], device="cuda")
        expected = model.plain.generate(ids_1T, max_new_tokens=NUM_NEW_TOKENS, do_sample=False)
        assert_same_greedy_tokens(model.plain, ids_1T, generation.token_ids, expected)


@pytest.mark.parametrize("label", ["kvmerger@0.5", "ragged", "streaming_llm@64"])
def test_reported_bytes_are_the_allocators(label: str, seed: int) -> None:
    model = on_cuda(seed, torch.bfloat16)
    prompt = make_prompt(seed, 3900, "query_aware", num_questions=1)
    variants = [build_variant(spec) for spec in parse_policies(POLICIES)]
    (variant,) = (variant for variant in variants if variant.label == label)
    with torch.inference_mode():
        prefilled = prefill(model.ours, prompt.context_ids, variant.policy.needs())
        # The first call leaves every piece of evidence computed, so that the second adds the cache alone.
        compress_all(prefilled, [variant])
        before_bytes = _allocated_bytes()
        compression = compress_all(prefilled, [variant])
        held_bytes = _allocated_bytes() - before_bytes
    assert held_bytes == pytest.approx(compression.done[label].nbytes, rel=ALLOCATOR_TOLERANCE)


def _allocated_bytes() -> int:
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def test_isolated_rows_have_a_peak_of_their_own(seed: int) -> None:
    model = on_cuda(seed, torch.bfloat16)
    prompt = make_prompt(seed, 2000, "query_aware", num_questions=1)
    variants = [build_variant(spec) for spec in parse_policies(POLICIES)]
    generations = Engine(model.ours).run(prompt, variants, execution="isolated")
    for generation in generations:
        assert generation.peak_bytes is not None
        assert generation.peak_bytes >= generation.full_kv_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_whose_policies_act_have_the_same_bits_alone_and_again(dtype: torch.dtype, seed: int) -> None:
    model, prompt = on_cuda(seed, dtype), test_acting_rows.make_prompt(seed)
    rows = dict(enumerate(test_acting_rows.make_rows(model, prompt, test_acting_rows.POLICIES)))
    together = Batch(model.ours, prompt, rows, test_acting_rows.BUCKET)
    answers = together.decode()
    own = {index: answer.token_ids for index, answer in answers.items()}
    hidden = together.force(own, test_acting_rows.NUM_NEW_TOKENS)
    for index, row in rows.items():
        alone = Batch(model.ours, prompt, {index: row}, test_acting_rows.BUCKET)
        assert alone.decode()[index] == answers[index], row.label
        forced = alone.force({index: own[index]}, test_acting_rows.NUM_NEW_TOKENS)[index]
        assert torch.equal(forced, hidden[index]), row.label
    assert together.decode() == answers


def test_draws_are_those_of_the_cpu(seed: int) -> None:
    on_cpu, on_gpu = (uniform(seed, (32, 8), torch.tensor(5, device=device)) for device in ("cpu", "cuda"))
    assert torch.equal(on_cpu, on_gpu.cpu())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_on_another_device_than_the_current_one_says_the_same(dtype: torch.dtype, seed: int) -> None:
    variants = [build_variant(spec) for spec in parse_policies([*POLICIES, *test_acting_rows.POLICIES[:2]])]
    prompts = [make_prompt(seed, num_tokens, "query_aware") for num_tokens in (300, 900)]

    def said(device: str) -> list:
        engine = Engine(on_cuda(seed, dtype, device).ours)
        isolated = engine.run(prompts[0], variants, execution="isolated")
        together = [it for rows in engine.run_many(prompts, variants) for it in rows]
        return [(it.label, it.token_ids, it.kl_mean, it.answer_nll) for it in (*isolated, *together)]

    assert torch.cuda.current_device() == 0
    assert said("cuda:1") == said("cuda:0")

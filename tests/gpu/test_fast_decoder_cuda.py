"""The fast decoder with Triton's kernels against transformers' own layers on CUDA, eagerly and inside a CUDA graph."""

import copy
import random
import warnings
from dataclasses import replace

import pytest
import torch

from kvmerger.decoding.cuda_recorder import CudaRecorder
from kvmerger.decoding.extend import extend, pad_tokens
from kvmerger.decoding.ragged_cache import RaggedCache
from kvmerger.models import fast_decoder
from kvmerger.models.loading import LoadedModel, probed
from kvmerger.prefill.prefill import prefill
from tests.fakes.tiny_models import VOCAB_SIZE, tiny_model
from tests.kvmerger.prefill.test_prefill import UNROTATED_QUERIES

pytestmark = pytest.mark.gpu
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
KINDS = {
    "llama": {},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
}
kinds = pytest.mark.parametrize("kind", KINDS)
# Of a tensor's norm: bf16 rounds differently wherever a norm's sum does, and layers carry it on.
MOST_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1}
NUM_TOKENS = 150


def both(seed: int, dtype: torch.dtype, kind: str) -> tuple[LoadedModel, LoadedModel]:
    """A model that goes through the fast decoder, and the same weights untouched."""
    model = tiny_model(seed, dtype, model_type=kind.split()[0], num_layers=3, **KINDS[kind]).ours
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.module.named_parameters():
        if parameter.dim() == 1:
            drawn = torch.randn(parameter.shape, generator=generator) * 0.3 + ("norm" in name)
            parameter.data.copy_(drawn)
    untouched = replace(model, module=copy.deepcopy(model.module).to("cuda"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        fast = probed(replace(model, module=model.module.to("cuda")))
    assert fast.fast_decoder is not None
    return fast, untouched


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    difference = (found.float() - expected.float()).norm() / expected.float().norm()
    assert float(difference) <= MOST_DIFFERENCE[expected.dtype]


def random_ids(seed: int, num_tokens: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCAB_SIZE) for _ in range(num_tokens)]


@kinds
@dtypes
def test_prefill_sees_transformers_numbers_and_the_same_bits_when_watched(
    dtype: torch.dtype, kind: str, seed: int
) -> None:
    fast, untouched = both(seed, dtype, kind)
    ids, needs = random_ids(seed, NUM_TOKENS), frozenset({UNROTATED_QUERIES})
    found, alone, expected = (
        prefill(fast, ids, needs),
        prefill(fast, ids, frozenset()),
        prefill(untouched, ids, needs),
    )
    for ours, unwatched, theirs in zip(found.layers, alone.layers, expected.layers, strict=True):
        assert_near(ours.k_SD, theirs.k_SD)
        assert_near(ours.v_SD, theirs.v_SD)
        assert torch.equal(ours.k_SD, unwatched.k_SD) and torch.equal(ours.v_SD, unwatched.v_SD)
    for ours, theirs in zip(found.evidence, expected.evidence, strict=True):
        assert_near(ours.get(UNROTATED_QUERIES), theirs.get(UNROTATED_QUERIES))


@dtypes
def test_few_tokens_at_a_time_give_the_same_numbers(
    dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, untouched = both(seed, dtype, "llama with biases")
    ids = random_ids(seed, NUM_TOKENS)
    expected = prefill(untouched, ids, frozenset())
    monkeypatch.setattr(fast_decoder, "MOST_TOKENS_AT_ONCE", 64)
    for ours, theirs in zip(prefill(fast, ids, frozenset()).layers, expected.layers, strict=True):
        assert_near(ours.k_SD, theirs.k_SD)
        assert_near(ours.v_SD, theirs.v_SD)


@kinds
@dtypes
@pytest.mark.parametrize("num_tokens", [1, 8])
def test_extend_is_transformers_on_ragged_rows(
    num_tokens: int, dtype: torch.dtype, kind: str, seed: int
) -> None:
    fast, untouched = both(seed, dtype, kind)
    num_new_R = [num_tokens, 1, 0, (num_tokens + 1) // 2, 0]
    tokens_RT = pad_tokens(
        [random_ids(seed + row, count) for row, count in enumerate(num_new_R)], num_tokens, fast.device
    )
    found, expected = (_extended_twice(model, tokens_RT, num_new_R, seed) for model in (fast, untouched))
    for row, num_new in enumerate(num_new_R):
        if num_new:
            assert_near(found[row, :num_new], expected[row, :num_new])


def _extended_twice(
    model: LoadedModel, tokens_RT: torch.Tensor, num_new_R: list[int], seed: int
) -> torch.Tensor:
    prefix = prefill(model, random_ids(seed, NUM_TOKENS), frozenset()).layers
    cache = RaggedCache([*[prefix] * 4, None], [NUM_TOKENS] * 4 + [0], tail_capacity=20)
    for _ in range(2):
        hidden_RTE = extend(model, cache, tokens_RT, num_new_R).hidden_RTE
    return hidden_RTE


@dtypes
def test_a_recorded_pass_gives_the_eager_ones_bits(dtype: torch.dtype, seed: int) -> None:
    class Keeping:
        """Keys stand in for attention: all that matters is that everything else is recorded."""

        def attend(self, layer_index, q_BQTD, k_BHTD, v_BHTD, scaling):
            out_BQTD = q_BQTD * scaling + (k_BHTD + v_BHTD).repeat_interleave(2, dim=1)
            return out_BQTD.transpose(1, 2).contiguous()

    fast, untouched = both(seed, dtype, "qwen3")
    ids_R1 = torch.tensor(random_ids(seed, 16), device="cuda")[:, None]
    position_R1 = ids_R1 * 3
    out_R1E = torch.zeros(16, 1, 64, dtype=dtype, device="cuda")
    repeat = CudaRecorder(fast.device).record(
        lambda: out_R1E.copy_(fast.hidden_states(ids_R1, position_R1, Keeping()))
    )
    for _ in range(2):
        ids_R1.copy_((ids_R1 * 7 + 5) % VOCAB_SIZE)
        position_R1.copy_(position_R1 + 11)
        repeat()
        assert torch.equal(out_R1E, fast.hidden_states(ids_R1, position_R1, Keeping()))
        assert_near(out_R1E, untouched.hidden_states(ids_R1, position_R1, Keeping()))

"""The fast decoder is transformers' decoder: the same numbers, the same weights in the same place, for whoever looks on.

Its kernels are their references here, so that all of it runs on a CPU; tests/gpu/test_fast_decoder_cuda.py has Triton's.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from kvmerger.decoding.extend import extend, pad_tokens
from kvmerger.decoding.ragged_cache import RaggedCache
from kvmerger.kernels.reference import layer as layer_reference
from kvmerger.models import fast_decoder
from kvmerger.models.loading import LoadedModel, probed
from kvmerger.prefill.prefill import prefill
from tests.fakes.tiny_models import VOCAB_SIZE, TinyModel, tiny_model
from tests.kvmerger.models.test_joined_weights import _hook
from tests.kvmerger.prefill.test_prefill import UNROTATED_QUERIES

NUM_TOKENS = 37
KINDS = {
    "llama": {},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "llama with tied embeddings": {"tie_word_embeddings": True},
    "llama with yarn": {
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "attention_factor": 1.3}
    },
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
}
kinds = pytest.mark.parametrize("kind", KINDS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
TOLERANCES = {torch.float32: {"atol": 1e-4, "rtol": 1e-4}, torch.bfloat16: {"atol": 0.2, "rtol": 0.05}}


def both(seed: int, dtype: torch.dtype, kind: str) -> tuple[LoadedModel, TinyModel]:
    """A model that goes through the fast decoder, and the same weights untouched. All parameters are random."""
    model = tiny_model(seed, dtype, model_type=kind.split()[0], num_layers=3, **KINDS[kind])
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.ours.module.named_parameters():
        if parameter.dim() == 1:  # norms start as ones and biases as zeros, which tell nothing apart
            drawn = torch.randn(parameter.shape, generator=generator) * 0.3 + ("norm" in name)
            parameter.data.copy_(drawn)
    model.plain.load_state_dict(model.ours.module.state_dict())
    untouched = replace(model.ours, module=copy.deepcopy(model.ours.module))
    fast = probed(model.ours, layer_reference)
    assert fast.fast_decoder is not None and fast.layers == "fused"
    return fast, TinyModel(untouched, model.plain)


@kinds
@dtypes
def test_hidden_states_are_transformers(dtype: torch.dtype, kind: str, seed: int) -> None:
    fast, model = both(seed, dtype, kind)
    prefix = prefill(model.ours, range(NUM_TOKENS), frozenset()).layers
    num_new_R = [3, 1, 2, 0]
    tokens_RT = pad_tokens([[11] * num_new for num_new in num_new_R], 3, fast.device)
    hidden = []
    for loaded in (fast, model.ours):
        cache = RaggedCache([prefix, prefix, prefix, None], [NUM_TOKENS, 90, NUM_TOKENS, 0], tail_capacity=6)
        for _ in range(2):
            hidden_RTE = extend(loaded, cache, tokens_RT, num_new_R).hidden_RTE
        hidden.append(hidden_RTE)
    for row, num_new in enumerate(num_new_R):
        torch.testing.assert_close(hidden[0][row, :num_new], hidden[1][row, :num_new], **TOLERANCES[dtype])


@kinds
@dtypes
def test_prefill_sees_what_it_sees_behind_transformers_own_layers(
    dtype: torch.dtype, kind: str, seed: int
) -> None:
    fast, model = both(seed, dtype, kind)
    ids = torch.randint(VOCAB_SIZE, (NUM_TOKENS,), generator=torch.Generator().manual_seed(seed)).tolist()
    needs = frozenset({UNROTATED_QUERIES})
    found, unwatched, expected = (
        prefill(loaded, ids, needs)
        for loaded, needs in ((fast, needs), (fast, frozenset()), (model.ours, needs))
    )
    assert len(found.layers) == len(expected.layers) == 3
    for index, (ours, alone, theirs) in enumerate(
        zip(found.layers, unwatched.layers, expected.layers, strict=True)
    ):
        torch.testing.assert_close(ours.k_SD, theirs.k_SD, **TOLERANCES[dtype])
        torch.testing.assert_close(ours.v_SD, theirs.v_SD, **TOLERANCES[dtype])
        assert torch.equal(ours.k_SD, alone.k_SD) and torch.equal(ours.v_SD, alone.v_SD)
        queries_NX, expected_NX = (each.evidence[index].get(UNROTATED_QUERIES) for each in (found, expected))
        torch.testing.assert_close(queries_NX, expected_NX, **TOLERANCES[dtype])


def test_behind_the_last_attention_prefill_computes_nothing(seed: int) -> None:
    class Counted:
        num_gated = 0

        def __getattr__(self, name: str):
            return getattr(layer_reference, name)

        def gated(self, gate_up_XJ: torch.Tensor) -> torch.Tensor:
            self.num_gated += 1
            return layer_reference.gated(gate_up_XJ)

    counted = Counted()
    fast = probed(tiny_model(seed, num_layers=3).ours, counted)
    counted.num_gated = 0
    prefill(fast, [1, 2, 3], frozenset())
    assert counted.num_gated == 2


def test_few_tokens_at_a_time_give_the_same_numbers(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, model = both(seed, torch.float32, "llama with biases")
    ids = list(range(NUM_TOKENS))
    expected = prefill(model.ours, ids, frozenset())
    monkeypatch.setattr(fast_decoder, "MOST_TOKENS_AT_ONCE", 5)
    for ours, theirs in zip(prefill(fast, ids, frozenset()).layers, expected.layers, strict=True):
        torch.testing.assert_close(ours.k_SD, theirs.k_SD, **TOLERANCES[torch.float32])
        torch.testing.assert_close(ours.v_SD, theirs.v_SD, **TOLERANCES[torch.float32])


@kinds
def test_joined_weights_are_the_modules_own(kind: str, seed: int) -> None:
    fast, model = both(seed, torch.float32, kind)
    state, expected = fast.module.state_dict(), model.plain.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    storages = {
        parameter.untyped_storage().data_ptr(): parameter.untyped_storage().nbytes()
        for parameter in fast.module.parameters()
    }
    assert sum(storages.values()) == sum(parameter.nbytes for parameter in model.plain.parameters())
    assert fast.fast_decoder is not None
    for layer, module in zip(fast.fast_decoder.layers, fast.module.get_decoder().layers, strict=True):
        assert layer.qkv.weight.data_ptr() == module.self_attn.q_proj.weight.data_ptr()
        assert layer.gate_up.weight.data_ptr() == module.mlp.gate_proj.weight.data_ptr()
    ids_1T = torch.arange(NUM_TOKENS)[None]
    fast.module.set_attn_implementation("sdpa")
    with torch.inference_mode():
        torch.testing.assert_close(
            fast.module(ids_1T).logits, model.plain(ids_1T).logits, **TOLERANCES[torch.float32]
        )


def _twice_the_rotation(qkv_XF: torch.Tensor, *arguments) -> None:
    for _ in range(2):
        layer_reference.rotate(qkv_XF, *arguments)


def _norm_of_gemma(x_XE, weight_E, *arguments, **named) -> torch.Tensor:
    return layer_reference.rms_norm(x_XE, weight_E + 1, *arguments, **named)


def _gelu(gate_up_XJ: torch.Tensor) -> torch.Tensor:
    gate_XI, up_XI = gate_up_XJ.chunk(2, dim=1)
    return F.gelu(gate_XI) * up_XI


def _nan(gate_up_XJ: torch.Tensor) -> torch.Tensor:
    return layer_reference.gated(gate_up_XJ) * float("nan")


def _does_not_compile(gate_up_XJ: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no such instruction")


@dtypes
@pytest.mark.parametrize(
    "wrong",
    [
        {"rotate": _twice_the_rotation},
        {"rms_norm": _norm_of_gemma},
        {"gated": _gelu},
        {"gated": _nan},
        {"gated": _does_not_compile},
    ],
    ids=lambda wrong: next(iter(wrong.values())).__name__,
)
def test_a_decoder_with_other_numbers_is_not_used(wrong: dict, dtype: torch.dtype, seed: int) -> None:
    model = tiny_model(seed, dtype, num_layers=2)
    right = {name: getattr(layer_reference, name) for name in ("rotate", "rms_norm", "gated")}
    with pytest.warns(RuntimeWarning, match="'tiny' runs through transformers' own layers"):
        loaded = probed(model.ours, SimpleNamespace(**{**right, **wrong}))
    assert (loaded.fast_decoder, loaded.layers) == (None, "transformers")


def test_a_decoder_we_do_not_know_is_not_used_and_said_so(seed: int) -> None:
    unknown = tiny_model(seed)
    _hook(unknown.ours.module.get_decoder().layers[0])
    windowed = tiny_model(seed, model_type="mistral")
    windowed.ours.module.config.sliding_window = 100
    for model, why in ((unknown, "a structure we do not know"), (windowed, "a sliding window")):
        sentence = f"'tiny' runs through transformers' own layers, not through fused ones: it has {why}"
        with pytest.warns(RuntimeWarning, match=sentence):
            loaded = probed(model.ours, layer_reference)
        assert loaded.fast_decoder is None


def test_a_model_is_a_key_with_a_fast_decoder_or_without(seed: int) -> None:
    fast, model = both(seed, torch.float32, "llama")
    assert {fast: 1, model.ours: 2}[fast] == 1
    assert replace(fast) == fast != replace(fast, fast_decoder=None)


def test_without_kernels_transformers_layers_are_used(seed: int) -> None:
    assert probed(tiny_model(seed).ours).fast_decoder is None

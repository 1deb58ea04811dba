"""How massive a token is, against sorted lists, read from the stream that transformers' layers start from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvmerger.kernels.reference import layer as layer_reference
from kvmerger.models.loading import probed
from kvmerger.prefill import massive
from kvmerger.prefill.evidence import LayerStates
from kvmerger.prefill.massive import MASSIVE, times_median
from kvmerger.prefill.prefill import prefill
from tests.fakes.random_layers import DTYPES, random_states
from tests.fakes.tiny_models import tiny_model
from tests.slow import massive as slow

NUM_TOKENS, HIDDEN_SIZE = 37, 6


def states_of(residual_NE: torch.Tensor) -> LayerStates:
    return replace(random_states(0), residual_NE=residual_NE)


def random_stream(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    residual_NE = torch.randn(NUM_TOKENS, HIDDEN_SIZE, generator=generator)
    residual_NE[seed % NUM_TOKENS, seed % HIDDEN_SIZE] = -3000.0
    return residual_NE.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distance", [1, 2, 5])
def test_equals_sorted_lists(
    distance: int, dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    residual_NE = random_stream(seed, dtype)
    monkeypatch.setattr(massive, "_MOST_SAMPLED", -(-residual_NE.numel() // distance))
    found_N = times_median(states_of(residual_NE))
    stream = residual_NE.double().tolist()
    assert found_N.dtype == torch.float32 and found_N.shape == (NUM_TOKENS,)
    assert found_N.tolist() == pytest.approx(slow.times_median(stream, stream[::distance]), rel=1e-6)
    assert (found_N > massive.TIMES_MEDIAN).nonzero().tolist() == [[seed % NUM_TOKENS]]


def test_it_has_no_scale(seed: int) -> None:
    residual_NE = random_stream(seed)
    # A power of two: only exponents change.
    assert torch.equal(times_median(states_of(residual_NE * 2**-20)), times_median(states_of(residual_NE)))


def test_a_stream_of_zeros_has_no_massive_token_and_finite_numbers() -> None:
    residual_NE = torch.zeros(NUM_TOKENS, HIDDEN_SIZE)
    assert not times_median(states_of(residual_NE)).any()
    residual_NE[3, 2] = 1e30
    found_N = times_median(states_of(residual_NE))
    assert found_N.isfinite().all() and found_N.nonzero().tolist() == [[3]]


@pytest.mark.parametrize("is_fused", [False, True])
def test_the_stream_is_read_before_any_norm(is_fused: bool, seed: int) -> None:
    model = tiny_model(seed, num_layers=3)
    ids = list(range(50))
    ours = probed(model.ours, layer_reference) if is_fused else model.ours
    assert (ours.fast_decoder is not None) == is_fused
    prefilled = prefill(ours, ids, frozenset({MASSIVE}))
    with torch.inference_mode():
        stream_L1NE = model.plain(torch.tensor([ids]), output_hidden_states=True).hidden_states
    for evidence, stream_1NE in zip(prefilled.evidence, stream_L1NE[:-1], strict=True):
        expected = slow.times_median(stream_1NE[0].tolist(), stream_1NE[0].tolist())
        assert evidence.get(MASSIVE).tolist() == pytest.approx(expected, rel=1e-3)

"""The diagnosis of a model: each layer's largest tokens, against the streams that transformers tells."""

from __future__ import annotations

import pytest
import torch

from kvmerger.kernels.reference import layer as layer_reference
from kvmerger.models.loading import probed
from kvmerger.prefill.massive import MASSIVE, TIMES_MEDIAN
from kvmerger.prefill.massive_layers import NUM_LARGEST, layer_magnitudes, magnitudes_of
from kvmerger.prefill.prefill import prefill
from tests.fakes.tiny_models import tiny_model
from tests.slow import massive as slow

NUM_TOKENS, HIDDEN_SIZE = 37, 6


@pytest.mark.parametrize("is_fused", [False, True])
def test_every_layers_largest_are_those_of_its_stream(is_fused: bool, seed: int) -> None:
    model = tiny_model(seed, num_layers=3)
    ours = probed(model.ours, layer_reference) if is_fused else model.ours
    ids = list(range(40))
    found = layer_magnitudes(ours, ids)
    evidence = prefill(ours, ids, frozenset({MASSIVE})).evidence
    with torch.inference_mode():
        stream_L1NE = model.plain(torch.tensor([ids]), output_hidden_states=True).hidden_states
    assert len(found) == len(evidence) == 3
    for layer, of_layer, stream_1NE in zip(found, evidence, stream_L1NE, strict=False):
        stream = stream_1NE[0].tolist()
        largest = sorted((max(map(abs, token)) for token in stream), reverse=True)[:NUM_LARGEST]
        assert [it.magnitude for it in layer.largest] == pytest.approx(largest, rel=1e-3)
        times = slow.times_median(stream, stream)
        for it in layer.largest:
            assert abs(stream[it.token][it.channel]) == pytest.approx(it.magnitude, rel=1e-3)
            assert it.times_median == pytest.approx(times[it.token], rel=1e-3)
            assert it.times_median == float(of_layer.get(MASSIVE)[it.token]), "the policies' own number"


def test_all_massive_tokens_are_told_however_many(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    residual_NE = torch.randn(NUM_TOKENS, HIDDEN_SIZE, generator=generator)
    massive = torch.randperm(NUM_TOKENS, generator=generator)[: NUM_LARGEST + 3]
    residual_NE[massive, 4] = -2000.0 - massive
    layer = magnitudes_of(residual_NE)
    assert [it.token for it in layer.massive] == sorted(massive.tolist(), reverse=True)
    assert all(it.channel == 4 and it.times_median > TIMES_MEDIAN for it in layer.massive)
    assert layer.median == pytest.approx(float(residual_NE.abs().median()))


def test_one_token_is_enough() -> None:
    (only,) = magnitudes_of(torch.tensor([[0.0, -3.0, 1.0]])).largest
    assert (only.token, only.channel, only.magnitude, only.times_median) == (0, 1, 3.0, 3.0)
    assert not only.is_massive

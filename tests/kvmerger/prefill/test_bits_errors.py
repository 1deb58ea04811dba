"""What fewer bits cost a layer is what attention, written out number by number, differs by."""

from __future__ import annotations

import pytest
import torch

from kvmerger.cache.forms.bits_search import PAIRS
from kvmerger.cache.forms.shipped import TokenWise
from kvmerger.prefill.bits_errors import bits_errors, layer_errors
from tests.fakes.tiny_models import tiny_model
from tests.slow.forms import attention_error


def test_a_layers_errors_are_those_of_attention_written_out(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q_QWD = torch.randn(4, 3, 8, generator=generator)
    k_HND, v_HND = (torch.randn(2, 17, 8, generator=generator) for _ in range(2))
    found = layer_errors(q_QWD, k_HND, v_HND, 0.4)
    assert tuple(found) == PAIRS
    for bits_k, bits_v in PAIRS:
        form, num_slots_H = TokenWise(bits_k, bits_v), (17, 17)
        parts = form.encode(k_HND.flatten(0, 1), v_HND.flatten(0, 1), num_slots_H)
        stored = [x_SD.view_as(k_HND).tolist() for x_SD in form.decode(parts, num_slots_H, 8)]
        expected = attention_error(
            q_QWD.tolist(), (k_HND.tolist(), v_HND.tolist()), (stored[0], stored[1]), 0.4
        )
        assert found[bits_k, bits_v] == pytest.approx(expected, rel=1e-3)


def test_of_a_model_every_layer_has_errors_that_fewer_bits_raise(seed: int) -> None:
    model = tiny_model(seed).ours
    ids = torch.randint(
        0, model.info.vocab_size, (100,), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    errors_L = bits_errors(model, ids)
    assert len(errors_L) == model.info.num_layers
    for errors in errors_L:
        assert errors[8, 8] < errors[4, 4] < errors[2, 2] and errors[8, 8] > 0
    assert bits_errors(model, ids) == errors_L

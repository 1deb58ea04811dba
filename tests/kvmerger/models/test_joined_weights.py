"""Only a decoder known in every part is fusable; one changed part, another model type or a window leaves it as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from kvmerger.models import joined_weights
from kvmerger.models.joined_weights import is_fusable
from tests.fakes.tiny_models import VOCAB_SIZE, tiny_model


class _Quantised(nn.Linear):
    """A stranger's linear layer, whose weight may be anything."""


def _quantise(layer: nn.Module) -> None:
    layer.mlp.up_proj = _Quantised(64, 96, bias=False)


def _tie(layer: nn.Module) -> None:
    layer.self_attn.k_proj.weight = layer.self_attn.v_proj.weight


def _give_one_a_bias(layer: nn.Module) -> None:
    layer.self_attn.k_proj.bias = nn.Parameter(torch.zeros(32))


def _hook(layer: nn.Module) -> None:
    layer.mlp.register_forward_hook(lambda module, args, output: output * 2)


def _patch(layer: nn.Module) -> None:
    layer.mlp.forward = lambda x: x


def _add_a_part(layer: nn.Module) -> None:
    layer.post_feedforward_layernorm = nn.Identity()


def _gate_otherwise(layer: nn.Module) -> None:
    layer.mlp.act_fn = nn.GELU()


def _norm_otherwise(layer: nn.Module) -> None:
    layer.input_layernorm = nn.LayerNorm(64)


def _mix_dtypes(layer: nn.Module) -> None:
    layer.mlp.down_proj.to(torch.bfloat16)


@pytest.mark.parametrize(
    "change",
    [
        _quantise,
        _tie,
        _give_one_a_bias,
        _hook,
        _patch,
        _add_a_part,
        _gate_otherwise,
        _norm_otherwise,
        _mix_dtypes,
    ],
    ids=lambda change: change.__name__,
)
def test_what_is_not_known_stays_as_it_is(change, seed: int) -> None:
    module = tiny_model(seed).ours.module
    assert is_fusable(module)
    change(module.get_decoder().layers[3])
    assert not is_fusable(module)


def _scaled_between(model_type: str, **scaling: Any) -> nn.Module:
    """A decoder of Llama's children, by name and by kind, that computes something else between them."""
    config = AutoConfig.for_model(
        model_type, vocab_size=VOCAB_SIZE, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, eos_token_id=None, bos_token_id=None, pad_token_id=None, **scaling,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("model_type", "scaling"), [("granite", {"residual_multiplier": 0.9}), ("ministral3", {"head_dim": 16})]
)
def test_other_model_types_stay_as_they_are(
    model_type: str, scaling: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    module = _scaled_between(model_type, **scaling)
    assert not is_fusable(module)
    monkeypatch.setattr(joined_weights, "SUPPORTED_MODEL_TYPES", (model_type,))
    assert is_fusable(module)  # so nothing but the type tells


def test_a_window_stays_transformers_affair(seed: int) -> None:
    module = tiny_model(seed, model_type="mistral").ours.module
    assert is_fusable(module)
    module.get_decoder().config.sliding_window = 100
    assert not is_fusable(module)

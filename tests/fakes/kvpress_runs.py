"""kvpress's own run of a press on a tiny model, and the weights that some presses would download.

Its context manager wants `cache_position`, which transformers no longer hands to attention: a hook of ours adds it.

Shapes: H KV heads, N tokens, D head size, K kept slots of a head.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from kvmerger.policies.adapters.presses import imported

VERSION = "0.5.5"
_LAYERS = 8  # as many as any tiny model has


def require_kvpress() -> Any:
    """The package, or a skipped test."""
    missing = [name for name in ("kvpress", "datasets", "fire") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: `make install`")
    if (found := importlib.metadata.version("kvpress")) != VERSION:
        pytest.skip(f"presses are compared at kvpress {VERSION}, and {found} is installed")
    return imported("kvpress")


class OwnRun(NamedTuple):
    """What kvpress leaves of a layer: keys and values (H, K, D) in its order, heads and places of those it masks."""

    k_HKD: Tensor
    v_HKD: Tensor
    masked: tuple[Tensor, Tensor] | None


def own_run(press: Any, plain: Any, ids: Sequence[int], seed_L: Sequence[int]) -> list[OwnRun]:
    """Every layer under ``with press(model)``; ``seed_L`` is what torch draws from in each layer."""
    from transformers import DynamicCache

    cache = DynamicCache()
    modules = [layer.self_attn for layer in plain.model.layers]

    def before(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        module.masked_key_indices = None
        torch.manual_seed(seed_L[module.layer_idx] % 2**63)
        return args, {**kwargs, "cache_position": torch.arange(len(ids))}

    with ExitStack() as stack, torch.inference_mode():
        for module in modules:
            hook = module.register_forward_pre_hook(before, with_kwargs=True)
            stack.callback(hook.remove)
        with press(plain):
            plain.model(torch.tensor([ids]), past_key_values=cache)
    return [
        OwnRun(layer.keys[0], layer.values[0], _masked(module))
        for layer, module in zip(cache.layers, modules, strict=True)
    ]


def _masked(module: Any) -> tuple[Tensor, Tensor] | None:
    indices = module.masked_key_indices
    return None if indices is None else (torch.as_tensor(indices[1]), torch.as_tensor(indices[2]))


def load_no_weights(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype = torch.float32) -> None:
    """Let presses that would download weights, statistics or patterns draw them instead, for `tiny_model`."""
    require_kvpress()
    duo, stats, fast, zap, curves, filters = (
        importlib.import_module(f"kvpress.presses.{name}")
        for name in (
            "duo_attention_press", "expected_attention_with_stats", "fastkvzip_press", "kvzap_press", "lukv_press",
            "qfilter_press",
        )
    )  # fmt: skip
    torch.manual_seed(2)
    model = zap.KVzapModel(zap.KVzapConfig(input_dim=64, output_dim=2, hidden_dim=16, n_modules=_LAYERS))
    gates = [fast.FastKVzipGate(index, 64, 2, 2, dtype).to(dtype) for index in range(_LAYERS)]
    directions = torch.randn(_LAYERS, 2, 16)
    pattern = (4, 8, np.random.default_rng(4).uniform(size=(3, 2)))
    shares = np.random.default_rng(3).uniform(0.1, 0.9, (99, _LAYERS, 2))
    for owner, name, found in (
        (filters.QFilterPress, "load_q_filters", staticmethod(lambda name: directions)),
        (zap.KVzapModel, "from_pretrained", classmethod(lambda cls, name: model)),
        (stats.ExpectedAttentionStatsPress, "_maybe_load_stats_from_hub", _query_statistics),
        (fast, "load_fastkvzip", lambda model_name, device: gates),
        (curves.LUKVPress, "_load_budget_curves", lambda self, model: shares),
        (duo.DuoAttentionPress, "load_attention_pattern", staticmethod(lambda model: pattern)),
    ):
        monkeypatch.setattr(owner, name, found)


def _query_statistics(press: Any, model: Any) -> Any:
    config, generator = model.config, torch.Generator().manual_seed(5)
    shape = (config.num_hidden_layers, config.num_attention_heads, config.head_dim)
    mean = torch.randn(*shape, generator=generator)
    root = torch.randn(*shape, config.head_dim, generator=generator)
    return SimpleNamespace(
        query_mean=SimpleNamespace(data=mean), query_cov=SimpleNamespace(data=root @ root.mT)
    )

"""Which decoders `fast_decoder` can compute, and their weights joined: one matrix for products of the same input.

The parameters become slices of the joined matrices, so that transformers computes the same numbers with them as before, and
nothing is held twice. Only the model's type and structure are looked at here; whether the numbers are right is for
`loading.probed` to see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kvmerger.kernels.reference.layer import HeadNorms, LayerKernels
from kvmerger.models.fast_decoder import FastDecoder, FastLayer, Norm, Product
from kvmerger.models.source import DTYPES, SUPPORTED_MODEL_TYPES, sliding_window

_DECODER = {"embed_tokens", "layers", "norm", "rotary_emb"}
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
# Where the package `kernels` is installed, transformers hangs its function for RoPE there.
_ROTARY_FUNCTIONS = {"rotary_fn", "apply_rotary_pos_emb"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def is_fusable(module: nn.Module) -> bool:
    """Whether ``module`` (a transformers causal model) is a plain Llama-like decoder with plain weights of its own.

    Anything unknown says no: another model type, which may have the same children and scale what is between them (Granite); a
    child, a subclass of `nn.Linear` (quantised weights), a hook, a tied weight, a window.
    """
    config: Any = module.config
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        return False
    decoder: Any = module.get_decoder()  # type: ignore[operator]
    if _children(decoder) != _DECODER or sliding_window(decoder.config) is not None:
        return False
    embedding = decoder.embed_tokens
    if type(embedding) is not nn.Embedding or embedding.max_norm is not None or not _is_norm(decoder.norm):
        return False
    return (
        len(decoder.layers) == decoder.config.num_hidden_layers > 0
        and all(_is_known_layer(layer, index) for index, layer in enumerate(decoder.layers))
        and all(_is_untouched(part) for part in decoder.modules())
        and all(_has_known_shapes(layer.self_attn, decoder.config) for layer in decoder.layers)
        and _are_weights_plain(module, decoder)
    )


def join(module: nn.Module, kernels: LayerKernels) -> FastDecoder:
    """Join a fusable model's weights, layer by layer, and return what computes with them.

    Changes where the model's parameters lie, and none of their numbers.
    """
    decoder: Any = module.get_decoder()  # type: ignore[operator]
    config = decoder.config
    # Whoever calls may be in inference mode, and weights made there could not be used outside of it.
    with torch.inference_mode(False), torch.no_grad():
        layers = tuple(_joined_layer(layer) for layer in decoder.layers)
    return FastDecoder(
        decoder.embed_tokens,
        decoder.rotary_emb,
        layers,
        _norm(decoder.norm),
        config.num_attention_heads,
        config.num_key_value_heads,
        kernels,
    )


def _joined_layer(layer: Any) -> FastLayer:
    attention, mlp = layer.self_attn, layer.mlp
    joined = FastLayer(
        attention=attention,
        scaling=float(attention.scaling),
        input_norm=_norm(layer.input_layernorm),
        qkv=_joined((attention.q_proj, attention.k_proj, attention.v_proj)),
        head_norms=_head_norms(attention),
        attention_out=Product(attention.o_proj.weight, attention.o_proj.bias),
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate_up=_joined((mlp.gate_proj, mlp.up_proj)),
        down=Product(mlp.down_proj.weight, mlp.down_proj.bias),
    )
    if joined.qkv.weight.is_cuda:
        # The parts just freed fit no joined matrix to come: kept, they would add up to the model's size.
        torch.cuda.empty_cache()
    return joined


def _joined(linears: Sequence[nn.Linear]) -> Product:
    sizes = [linear.out_features for linear in linears]
    weight = torch.cat([linear.weight.detach() for linear in linears])
    # `.data`, so that the parameters stay the same objects: whoever holds them sees the joined memory.
    for linear, part in zip(linears, weight.split(sizes), strict=True):
        linear.weight.data = part
    biases = [linear.bias for linear in linears if linear.bias is not None]
    if not biases:
        return Product(weight, None)
    bias = torch.cat([old.detach() for old in biases])
    for old, part in zip(biases, bias.split(sizes), strict=True):
        old.data = part
    return Product(weight, bias)


def _norm(norm: Any) -> Norm:
    return Norm(norm.weight, float(norm.variance_epsilon))


def _head_norms(attention: Any) -> HeadNorms | None:
    if not hasattr(attention, "q_norm"):
        return None
    return HeadNorms(attention.q_norm.weight, attention.k_norm.weight, _norm(attention.q_norm).eps)


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _is_known_layer(layer: Any, index: int) -> bool:
    if _children(layer) != _LAYER or _children(layer.mlp) != _MLP:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    parts = _children(attention) - _ROTARY_FUNCTIONS
    if parts == _ATTENTION | _HEAD_NORMS:
        norms += [attention.q_norm, attention.k_norm]
    elif parts != _ATTENTION:
        return False
    together = ((attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj))
    return (
        attention.layer_idx == index
        and all(map(_is_norm, norms))
        and len({norm.variance_epsilon for norm in norms[2:]}) <= 1
        and all(type(linear) is nn.Linear for linear in _linears(layer))
        and all(len({linear.bias is None for linear in linears}) == 1 for linears in together)
        and _is_silu(mlp.act_fn)
    )


def _linears(layer: Any) -> list[nn.Linear]:
    attention, mlp = layer.self_attn, layer.mlp
    return [
        attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
        mlp.gate_proj, mlp.up_proj, mlp.down_proj,
    ]  # fmt: skip


def _is_norm(norm: Any) -> bool:
    # By name: every model's file has an RMSNorm class of its own. The probe finds one that computes something else.
    return (
        type(norm).__name__.endswith("RMSNorm")
        and [name for name, _ in norm.named_parameters()] == ["weight"]
        and isinstance(getattr(norm, "variance_epsilon", None), float)
    )


def _is_silu(activation: nn.Module) -> bool:
    # By its numbers: transformers has several classes for it.
    x = torch.linspace(-4, 4, 9)
    return torch.equal(activation(x), F.silu(x))


def _is_untouched(module: nn.Module) -> bool:
    """Whether calling the module would do what its class says and nothing else."""
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _has_known_shapes(attention: Any, config: Any) -> bool:
    num_query_heads, num_heads = config.num_attention_heads, config.num_key_value_heads
    shapes = [attention.head_dim * count for count in (num_query_heads, num_heads, num_heads)]
    linears = (attention.q_proj, attention.k_proj, attention.v_proj)
    return attention.head_dim % 2 == 0 and [linear.out_features for linear in linears] == shapes


def _are_weights_plain(module: nn.Module, decoder: Any) -> bool:
    """One dtype and device, each contiguous, and none of those that are joined is also another's."""
    first = decoder.embed_tokens.weight
    plain = all(
        weight.dtype == first.dtype and weight.device == first.device and weight.is_contiguous()
        for weight in decoder.parameters()
    )
    # Duplicates counted: a tied weight that is joined would move away from its twin.
    times = Counter(weight.data_ptr() for _, weight in module.named_parameters(remove_duplicate=False))
    joined = chain.from_iterable(_parameters(layer) for layer in decoder.layers)
    return (
        plain and first.dtype in DTYPES.values() and all(times[weight.data_ptr()] == 1 for weight in joined)
    )


def _parameters(layer: Any) -> list[Tensor]:
    return [parameter for linear in _linears(layer) for parameter in linear.parameters()]

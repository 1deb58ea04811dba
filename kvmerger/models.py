"""Load a model behind the seam.

A one-token probe at load must see every layer call our attention: a model that ignores the seam would silently evaluate
nothing.

Shapes: B rows, T tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kvmerger.attention import ATTENTION_NAME, SESSION_KEYWORD, Session, register_attention
from kvmerger.model_source import DTYPES, ModelError, ModelInfo, load_info, model_source, readable_errors


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model behind the seam. Read-only: forward passes never change it."""

    module: nn.Module
    info: ModelInfo
    eos_ids: frozenset[int]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def attention_modules(self) -> list[nn.Module]:
        """Each layer's attention module, in order."""
        return [layer.self_attn for layer in self.module.get_decoder().layers]  # type: ignore[operator]

    @property
    def rotary(self) -> nn.Module:
        """The rotary embedding all layers share: ``rotary(x, position_ids)`` gives cos and sin in the dtype of ``x``."""
        return self.module.get_decoder().rotary_emb  # type: ignore[operator]

    @torch.inference_mode()
    def hidden_states(self, ids_BT: Tensor, position_ids_BT: Tensor, session: Session) -> Tensor:
        """Last hidden states (B, T, E); every layer's attention is answered by ``session``."""
        decoder = self.module.get_decoder()  # type: ignore[operator]
        output = decoder(
            input_ids=ids_BT, position_ids=position_ids_BT, use_cache=False, **{SESSION_KEYWORD: session}
        )
        return output.last_hidden_state

    @torch.inference_mode()
    def logits(self, hidden_XE: Tensor) -> Tensor:
        """fp32 logits (…, V) of hidden states."""
        return self.module.get_output_embeddings()(hidden_XE).float()  # type: ignore[operator]


def load_model(
    name: str, *, revision: str | None = None, dtype: str = "auto", device: str = "auto"
) -> LoadedModel:
    """Load ``name`` — a hub id, a local folder, or ``demo`` for the packaged model — and probe it.

    Args:
        revision: hub revision; only for hub ids.
        dtype: ``auto`` (bfloat16 on CUDA, float32 on the CPU), ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto`` (CUDA when there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ModelError: not found, without weights, or unsupported; the message has the remedy.
    """
    from transformers import AutoModelForCausalLM

    info = load_info(name, revision=revision, dtype=dtype, device=device)
    register_attention()
    with readable_errors(name):
        module = AutoModelForCausalLM.from_pretrained(
            model_source(name, with_weights=True),
            revision=revision,
            dtype=DTYPES[info.dtype],
            attn_implementation=ATTENTION_NAME,
        )
    module = module.to(info.device).eval().requires_grad_(False)
    loaded = LoadedModel(module, info, _eos_ids((module.generation_config, module.config)))
    _probe(loaded)
    return loaded


def num_parameters(name: str, *, revision: str | None = None) -> int:
    """Weights of ``name``, counted from its configuration alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with readable_errors(name), torch.device("meta"):
        config = AutoConfig.from_pretrained(model_source(name, with_weights=False), revision=revision)
        return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())


def load_end_ids(name: str, *, revision: str | None = None) -> frozenset[int]:
    """Token ids that end an answer of ``name``, known without its weights."""
    from transformers import AutoConfig, GenerationConfig

    source = model_source(name, with_weights=False)
    with readable_errors(name):
        configs: list[Any] = [AutoConfig.from_pretrained(source, revision=revision)]
        with suppress(OSError):  # many models come without a generation_config.json
            configs.append(GenerationConfig.from_pretrained(source, revision=revision))
    return _eos_ids(configs)


def load_tokenizer(name: str, *, revision: str | None = None) -> Any:
    """The fast tokenizer of ``name``, from wherever `load_model` takes the model."""
    from transformers import AutoTokenizer

    with readable_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(model_source(name, with_weights=False), revision=revision)
    if not tokenizer.is_fast:
        raise ModelError(f"model {name!r} has no fast tokenizer, and prompts are split at character offsets")
    return tokenizer


def _eos_ids(configs: Iterable[Any]) -> frozenset[int]:
    ids: set[int] = set()
    for config in configs:
        eos = getattr(config, "eos_token_id", None)
        ids.update(eos if isinstance(eos, list | tuple) else [] if eos is None else [eos])
    return frozenset(ids)


class _ProbeSession:
    """Answers attention for a single token, which attends to itself, and remembers who asked."""

    def __init__(self) -> None:
        self.layer_indices: list[int] = []

    def attend(
        self, layer_index: int, q_BQTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scaling: float
    ) -> Tensor:
        self.layer_indices.append(layer_index)
        out_BQTD = F.scaled_dot_product_attention(
            q_BQTD, k_BHTD, v_BHTD, scale=scaling, enable_gqa=q_BQTD.shape[1] != k_BHTD.shape[1]
        )
        return out_BQTD.transpose(1, 2).contiguous()


def _probe(model: LoadedModel) -> None:
    session = _ProbeSession()
    zero_11 = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    model.hidden_states(zero_11, zero_11, session)
    if session.layer_indices != list(range(model.info.num_layers)):
        raise ModelError(
            f"model {model.info.name!r} has {model.info.num_layers} layers, but attention was called for "
            f"{session.layer_indices}: this transformers version does not route it through the attention interface"
        )

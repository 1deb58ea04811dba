"""One pass over the compressed part: the whole cache of every layer, and the evidence the policies declared.

Runs once per prompt, whatever the number of variants. No logits are computed: the tail goes through extend.

Shapes: N tokens, Q query heads, H KV heads, D head size, T = N here, B = 1.
"""

from __future__ import annotations

import traceback
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kvmerger.cache.layer_cache import LayerCache, room_for
from kvmerger.device import upload
from kvmerger.kernels.prompt_attention import causal_attention
from kvmerger.models.loading import LoadedModel
from kvmerger.prefill.evidence import (
    Evidence,
    EvidenceError,
    LayerStates,
    Need,
    PromptStates,
    needs_hidden_states,
)
from kvmerger.prefill.token_classes import TOKEN_CLASSES


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The full row's cache, layer by layer, and what was learnt on the way."""

    layers: tuple[LayerCache, ...]
    evidence: tuple[Evidence, ...]


class PrefillAttention:
    """Causal attention of one prompt on itself; keeps each layer's K/V and captures evidence."""

    def __init__(
        self,
        num_layers: int,
        needs: frozenset[Need],
        prompt_seed: int,
        *,
        is_last_try: bool = True,
        module: nn.Module | None = None,
        rotary: nn.Module | None = None,
    ) -> None:
        self._num_layers = num_layers
        self._needs = needs
        self._prompt_seed = prompt_seed
        self._is_last_try = is_last_try
        self._prompt = PromptStates(module)
        self._rotary = rotary
        self._attention_input: tuple[Tensor, nn.Module, Tensor] | tuple[None, None, None] = (None, None, None)
        self._room: tuple[LayerCache, ...] = ()
        self.layers: list[LayerCache] = []
        self.evidence: list[Evidence] = []

    def attend(
        self, layer_index: int, q_BQTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scaling: float
    ) -> Tensor:
        """Causal attention (B, T, Q, D); stores the layer's K/V as the full row's cache."""
        out_BTQD, lse_QN = causal_attention(q_BQTD, k_BHTD, v_BHTD, scaling)
        hidden_NE, attention, residual_NE = self._attention_input
        states = LayerStates(
            q_BQTD[0], k_BHTD[0], v_BHTD[0], scaling, hidden_NE, attention, self._rotary, lse_QN
        )
        states = replace(states, prompt=self._prompt, residual_NE=residual_NE)
        evidence = Evidence(states, layer_index, self._num_layers, self._prompt_seed)
        evidence.capture(self._needs, is_last_try=self._is_last_try)
        if not self._room:
            self._room = room_for(self._num_layers, k_BHTD[0])
        # Copied: they may be views of one product with the queries, all of which they would keep alive.
        layer = self._room[layer_index]
        layer.k_HND.copy_(k_BHTD[0])
        layer.v_HND.copy_(v_BHTD[0])
        # Until here evidence read the decoder's own tensors; they go now, or every key would be held twice.
        evidence.point_at(layer.k_HND, layer.v_HND)
        self.layers.append(layer)
        self.evidence.append(evidence)
        return out_BTQD

    def see_input(self, hidden_1NE: Tensor, attention: nn.Module, residual_1NE: Tensor) -> None:
        """Note what goes into the attention module that asks next; see `LayerStates`."""
        self._attention_input = (hidden_1NE[0], attention, residual_1NE[0])


def prefill(
    model: LoadedModel,
    context_ids: Sequence[int],
    needs: frozenset[Need],
    seed: int = 0,
    *,
    is_last_try: bool = True,
) -> Prefilled:
    """Run the model over ``context_ids`` (at least one token) and keep every layer's cache and evidence.

    ``seed`` is the sweep's: with the tokens it decides what random policies draw.

    Raises:
        torch.OutOfMemoryError: the prompt does not fit, or, unless it ``is_last_try``, its evidence does not
            (see `Evidence.capture`).
    """
    ids_1T = torch.tensor([context_ids], device=model.device)
    position_1T = torch.arange(ids_1T.shape[1], device=model.device)[None]
    handler = PrefillAttention(
        model.info.num_layers,
        needs,
        prompt_seed(context_ids, seed),
        is_last_try=is_last_try,
        module=model.module,
        rotary=model.rotary,
    )
    watch = handler.see_input if needs_hidden_states(needs) else None
    model.visit_layers(ids_1T, position_1T, handler, watch)
    if TOKEN_CLASSES in needs:
        found = _token_classes(model, context_ids)
        for evidence in handler.evidence:
            evidence.put(TOKEN_CLASSES, found)
    return Prefilled(tuple(handler.layers), tuple(handler.evidence))


def _token_classes(model: LoadedModel, context_ids: Sequence[int]) -> Tensor | Exception:
    """The class of each token: uint8 (N,); or why nobody knows, an error of the policies that ask for it."""
    if model.token_classes is None:
        return EvidenceError(
            f"model {model.info.name!r} has no tokenizer here to ask which tokens are special; load it with load_model, or "
            f"give LoadedModel.token_classes"
        )
    try:
        return upload(model.token_classes(context_ids), model.device).to(torch.uint8)
    # Reading a tokenizer can raise anything; policies that do not ask for it are not to pay.
    except Exception as error:  # noqa: BLE001
        error.add_note(f"raised while the tokenizer was asked:\n{traceback.format_exc()}")
        return error


def prompt_seed(context_ids: Sequence[int], seed: int) -> int:
    """A 32-bit number that depends on the tokens and the sweep's seed alone, not on where or when the item runs."""
    # Not `hash`, whose values are Python's own affair and may change with its version.
    return zlib.crc32(",".join(map(str, (seed, *context_ids))).encode())

"""Calling a press inside prefill: its own hook on one layer, as kvpress's hooks call it, and never a pass of its own.

The press works on copies and on a view of the attention module, so that neither the shared prefill nor the model changes.

Shapes: N tokens, Q query heads, H KV heads, D head size, K kept slots of a head.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kvmerger.budget import BudgetError
from kvmerger.policies.adapters.kinds import facts_of
from kvmerger.policies.adapters.presses import fresh, made, nested_in
from kvmerger.prefill.evidence import LayerStates

# Presses of a model, by text: what `post_init_from_model` loads is loaded once.
_OF_MODEL: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()
_MOST_SEED = 2**63


class Layer:
    """One layer as a press is shown it: keys and values of its own, and a view of the attention module."""

    def __init__(self, states: LayerStates, text: str) -> None:
        assert states.hidden_NE is not None and states.attention is not None and states.rotary is not None, (
            "registered as reading hidden states"
        )
        self.module = _view_of(states.attention, states.rotary)
        self.hidden_1NE = states.hidden_NE[None]
        # Presses write into what they are given, and sums over keys depend on how they lie in memory.
        self._held = SimpleNamespace(keys=_copied(states.k_HND), values=_copied(states.v_HND))
        self._seed = states.seed % _MOST_SEED
        index = int(self.module.layer_idx)  # type: ignore[arg-type]
        position_N = torch.arange(self.hidden_1NE.shape[1], device=self.hidden_1NE.device)
        self.kwargs = {
            "hidden_states": self.hidden_1NE,
            "position_embeddings": states.rotary(self.hidden_1NE, position_N[None]),
            "position_ids": position_N[None],
            "cache_position": position_N,
            "past_key_values": SimpleNamespace(layers={index: self._held}),
        }
        self._attentions = _attention_of(states) if facts_of(text).wants_attention else None

    @property
    def keys_HKD(self) -> Tensor:
        """What it holds now."""
        return self._held.keys[0]

    @property
    def values_HKD(self) -> Tensor:
        """What it holds now."""
        return self._held.values[0]

    def score(self, press: Any) -> Tensor:
        """The press's scores: (H, N), in the dtype that it gives."""
        with self._drawing(press):
            args = (self.module, self.hidden_1NE, self._held.keys, self._held.values, self._attentions)
            return press.score(*args, self.kwargs)[0]

    def hook(self, press: Any) -> None:
        """Let the press's hook change what the layer holds, and mark keys that are not to be seen."""
        with self._drawing(press):
            press.forward_hook(self.module, [], self.kwargs, (None, self._attentions))

    def masked(self) -> tuple[Tensor, Tensor] | None:
        """Heads and places of the keys that are marked not to be seen (int64, as many of each); None where none are."""
        indices = getattr(self.module, "masked_key_indices", None)
        if indices is None:
            return None
        _, head_M, place_M = (torch.as_tensor(it).to(self.hidden_1NE.device) for it in indices)
        return head_M, place_M

    @contextmanager
    def _drawing(self, press: Any) -> Iterator[None]:
        """Inside, torch draws by prompt and layer; an assertion of the press's is a refusal of this prompt."""
        device = self.hidden_1NE.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self._seed)
            try:
                yield
            except AssertionError as error:
                why = str(error) or "an assertion failed"
                raise BudgetError(
                    f"{type(press).__name__} refuses a compressed part of {self.hidden_1NE.shape[1]} tokens: {why}"
                ) from error


def press_for(states: LayerStates, text: str, at: tuple[int, float]) -> Any:
    """The press that works on this prompt at one budget, layer after layer: the same one in all of them."""
    assert states.prompt is not None, "registered as reading hidden states"
    key = ("press", text, at)
    if key not in states.prompt.notes:
        press = fresh(_prototype(text, states.prompt.model))
        if hasattr(press, "compress_post"):
            press.score_val = [None] * num_layers(states)
        states.prompt.notes[key] = press
    return states.prompt.notes[key]


def num_layers(states: LayerStates) -> int:
    """Of the model."""
    assert states.attention is not None, "registered as reading hidden states"
    return int(states.attention.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]


def _prototype(text: str, model: nn.Module | None) -> Any:
    if model is None:
        return made(text)
    of_model = _OF_MODEL.setdefault(model, {})
    if text not in of_model:
        press = made(text)
        # Of nested ones too: not every wrapper passes it on, and to be told twice does a press no harm.
        for it in (press, *nested_in(press)):
            it.post_init_from_model(model)
        of_model[text] = press
    return of_model[text]


def _view_of(attention: nn.Module, rotary: nn.Module) -> nn.Module:
    """The module with the same parameters, class and children, and attributes of its own: what is set on it stays there."""
    view = copy.copy(attention)
    view._modules = {**attention._modules, "rotary_emb": rotary}
    view.__dict__["masked_key_indices"] = None
    return view


def _copied(x_HND: Tensor) -> Tensor:
    return x_HND[None].clone(memory_format=torch.contiguous_format)


def _attention_of(states: LayerStates) -> Tensor:
    """Causal weights (1, Q, N, N), softmax in fp32 and rounded to the model's dtype, as transformers' eager attention."""
    num_tokens = states.k_HND.shape[1]
    group = states.q_QND.shape[0] // states.k_HND.shape[0]
    logits_QNN = states.q_QND @ states.k_HND.repeat_interleave(group, dim=0).transpose(1, 2) * states.scaling
    is_later_NN = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=logits_QNN.device).triu(1)
    masked_QNN = logits_QNN.masked_fill(is_later_NN, torch.finfo(logits_QNN.dtype).min)
    return masked_QNN.softmax(dim=-1, dtype=torch.float32).to(states.q_QND.dtype)[None]


class Places(NamedTuple):
    """Which of the rows before each row after is: place_HK (int64), and whether every one was found."""

    place_HK: Tensor
    is_found: bool


def places_of(after: tuple[Tensor, ...], before: tuple[Tensor, ...]) -> Places:
    """Find rows again, bit by bit: tensors ``after`` (H, K, D) and ``before`` (H, N, D), rows of all of them together.

    Of rows that are equal the earlier one is found first, each once.
    """
    code_HK, code_HN = (sum(_row_codes(it, salt) for salt, it in enumerate(rows)) for rows in (after, before))
    assert isinstance(code_HK, Tensor) and isinstance(code_HN, Tensor), "one tensor at least"
    sorted_HN, order_HN = code_HN.sort(dim=1, stable=True)
    sorted_HK, order_HK = code_HK.sort(dim=1, stable=True)
    first_HK = torch.searchsorted(sorted_HN, sorted_HK)
    # Rows with one code are numbered from its first: where two are equal, both are found.
    rank_HK = torch.arange(sorted_HK.shape[1], device=sorted_HK.device) - torch.searchsorted(
        sorted_HK, sorted_HK
    )
    found_HK = order_HN.gather(1, (first_HK + rank_HK).clamp_max(code_HN.shape[1] - 1))
    place_HK = torch.empty_like(found_HK).scatter_(1, order_HK, found_HK)
    # Codes may meet by chance, and a row that is not there gets any place.
    is_found = all(
        torch.equal(rows, old.gather(1, place_HK[..., None].expand(*place_HK.shape, old.shape[2])))
        for rows, old in zip(after, before, strict=True)
    )
    return Places(place_HK, is_found)


def _row_codes(x_HND: Tensor, salt: int) -> Tensor:
    """A number for each row, equal for equal bits: int64 (H, N)."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x_HND.element_size()]
    generator = torch.Generator().manual_seed(salt)
    factor_D = torch.randint(-(2**62), 2**62, (x_HND.shape[2],), generator=generator) * 2 + 1
    return (x_HND.contiguous().view(whole).long() * factor_D.to(x_HND.device)).sum(dim=2)

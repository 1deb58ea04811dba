"""What presses tell of a layer, as evidence: their scores, the tokens that they keep, or the slots that they leave.

Evidence is asked for by the press's text (`presses.text_of`), and by what it may keep where that matters: slots per head, and
the share that was asked for.

Shapes: N tokens, H KV heads, D head size, K kept slots of a head.
"""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from kvmerger.policies.adapters.calling import Layer, num_layers, places_of, press_for
from kvmerger.policies.adapters.kinds import facts_of, rerotates
from kvmerger.policies.adapters.presses import is_a
from kvmerger.policies.base import PolicyError
from kvmerger.prefill.evidence import LayerStates, Need, register_evidence

_NUDGE = 2.0**-10
"""Of a slot: so that ``int(n * (1 - r))`` gives the wanted number whatever floats make of the ratio."""


def scores_need(text: str) -> Need:
    """A press's scores: fp32 (H, N)."""
    return Need("press_scores", (text,))


def kept_need(text: str, num_slots: int, asked_ratio: float) -> Need:
    """Which tokens a press keeps at so many slots per head: bool (H, N)."""
    return Need("press_kept", (text, num_slots, asked_ratio))


def slots_needs(text: str, num_slots: int, asked_ratio: float) -> tuple[Need, Need]:
    """Keys and values (2, H, K, D) that a press leaves at so many slots per head, and their positions: int32 (H, K)."""
    params = (text, num_slots, asked_ratio)
    return Need("press_slots", params), Need("press_positions", params)


def ratio_for(num_slots: int, num_tokens: int, asked_ratio: float) -> float:
    """The compression ratio at which kvpress keeps ``num_slots``: the user's own where its rounding gives them."""
    written = float(1 - Fraction(str(asked_ratio)))
    if max(1, int(num_tokens * (1 - written))) == num_slots:
        return written
    return 1 - (num_slots + _NUDGE) / num_tokens if num_slots < num_tokens else 0.0


@register_evidence("press_scores", reads_queries=True, reads_hidden_states=True)
def _press_scores(states: LayerStates, text: str) -> Tensor:
    return Layer(states, text).score(press_for(states, text, (0, 0.0))).float()


@register_evidence("press_kept", reads_queries=True, reads_hidden_states=True)
def _press_kept(states: LayerStates, text: str, num_slots: int, asked_ratio: float) -> Tensor:
    press, layer = _ready(states, text, num_slots, asked_ratio), Layer(states, text)
    layer.hook(press)
    if hasattr(press, "compress_post"):
        return _kept_behind_the_last(states, press, layer)
    before = (states.k_HND, states.v_HND)
    after = (layer.keys_HKD, layer.values_HKD)
    is_kept_HN = torch.ones(states.k_HND.shape[:2], dtype=torch.bool, device=states.k_HND.device)
    if not all(map(torch.equal, before, after)):
        place_HK, is_found = places_of(after, before)
        if not is_found:
            raise PolicyError(
                f"{type(press).__name__} leaves keys or values that are not the prompt's: a press that changes them says so "
                f"by an attribute of its class, changes_slots = True"
            )
        is_kept_HN = torch.zeros_like(is_kept_HN).scatter_(1, place_HK, True)
        if (masked := layer.masked()) is not None:
            masked_H, place_M = masked
            is_kept_HN[masked_H, place_HK[masked_H, place_M]] = False
        return is_kept_HN
    return _without_masked(is_kept_HN, layer)


@register_evidence("press_slots", reads_queries=True, reads_hidden_states=True)
def _press_slots(states: LayerStates, text: str, num_slots: int, asked_ratio: float) -> Tensor:
    return _changed(states, text, num_slots, asked_ratio)[0]


@register_evidence("press_positions", reads_queries=True, reads_hidden_states=True)
def _press_positions(states: LayerStates, text: str, num_slots: int, asked_ratio: float) -> Tensor:
    return _changed(states, text, num_slots, asked_ratio)[1]


def _ready(states: LayerStates, text: str, num_slots: int, asked_ratio: float) -> Any:
    """The press of this prompt and budget, with the ratio set."""
    press = press_for(states, text, (num_slots, asked_ratio))
    if facts_of(text).has_budget:
        press.compression_ratio = ratio_for(num_slots, states.k_HND.shape[1], asked_ratio)
    return press


def _without_masked(is_kept_HN: Tensor, layer: Layer) -> Tensor:
    if (masked := layer.masked()) is not None:
        is_kept_HN[masked] = False
    return is_kept_HN


def _kept_behind_the_last(states: LayerStates, press: Any, layer: Layer) -> Tensor:
    """Of a press that chooses once it has seen all layers: each layer's marks are filled in behind the last one."""
    assert states.prompt is not None, "registered as reading hidden states"
    seen = states.prompt.notes.setdefault(("seen", id(press)), [])
    seen.append((layer, torch.ones(states.k_HND.shape[:2], dtype=torch.bool, device=states.k_HND.device)))
    if len(seen) == num_layers(states):
        attentions = [SimpleNamespace(self_attn=it.module) for it, _ in seen]
        press.compress_post(SimpleNamespace(model=SimpleNamespace(layers=attentions)))
        for it, is_kept_HN in seen:
            _without_masked(is_kept_HN, it)
    return seen[-1][1]


def _changed(states: LayerStates, text: str, num_slots: int, asked_ratio: float) -> tuple[Tensor, Tensor]:
    """Slots and positions, computed once for the two pieces of evidence."""
    assert states.prompt is not None, "registered as reading hidden states"
    key = ("slots", text, num_slots, asked_ratio, states.seed)
    if key in states.prompt.notes:
        return states.prompt.notes.pop(key)
    press, layer = _ready(states, text, num_slots, asked_ratio), Layer(states, text)
    num_heads, num_tokens, _ = states.k_HND.shape
    position_HK = torch.arange(num_tokens, device=states.k_HND.device).expand(num_heads, -1)
    for stage in _stages(press):
        position_HK = _positions_behind(stage, layer, position_HK)
    if layer.masked() is not None:
        raise PolicyError(
            f"{type(press).__name__} marks keys that are not to be seen and changes others: do one of both"
        )
    order_HK = position_HK.argsort(dim=1)
    slots_2HKD = torch.stack([_taken(it, order_HK) for it in (layer.keys_HKD, layer.values_HKD)])
    found = slots_2HKD, position_HK.gather(1, order_HK).int()
    states.prompt.notes[key] = found
    return found


def _stages(press: Any) -> list[Any]:
    """Presses whose hooks are called one after the other, as the hooks of those that hold them do."""
    if is_a(press, "PrefillDecodingPress"):
        return _stages(press.prefilling_press)
    return (
        [it for inner in press.presses for it in _stages(inner)] if is_a(press, "ComposedPress") else [press]
    )


def _positions_behind(stage: Any, layer: Layer, position_HK: Tensor) -> Tensor:
    """Call the hook of ``stage``; the positions of what it leaves, in its order."""
    keys, values = layer.keys_HKD, layer.values_HKD
    layer.hook(stage)
    num_slots = layer.keys_HKD.shape[1]
    if rerotates(stage):
        return torch.arange(num_slots, device=position_HK.device).expand(position_HK.shape[0], -1)
    # Values are told apart less well, since tokens alike have equal ones in the first layer.
    for after, before in ((layer.keys_HKD, keys), (layer.values_HKD, values)):
        places = places_of((after,), (before,))
        if places.is_found:
            return position_HK.gather(1, places.place_HK)
    if num_slots == position_HK.shape[1]:
        return position_HK
    raise PolicyError(
        f"{type(stage).__name__} changes keys and values alike: which tokens it keeps, and where they stand, cannot be told"
    )


def _taken(x_HKD: Tensor, order_HK: Tensor) -> Tensor:
    return x_HKD.gather(1, order_HK[..., None].expand(-1, -1, x_HKD.shape[2]))

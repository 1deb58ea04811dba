"""A decode rule tried out on random queries, keys and values, beside a row that has nothing to do with it.

No model is needed: the cache, the attention and the row are those of a real batch.

Shapes: H KV heads, Q query heads, D head size, T new tokens; R = 2 rows, the one that acts and its neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.contract.layers import rotary
from kvmerger.decoding.acting_row import DecodingRow
from kvmerger.decoding.decode_rule import AnswerRule, DecodeRule, DecodeRuleError, DecodeStep, Heirs
from kvmerger.decoding.periodic_row import PeriodicRow
from kvmerger.decoding.periodic_rule import NewQueries, PeriodicRule
from kvmerger.decoding.ragged_cache import Prefix, RaggedCache
from kvmerger.kernels.reference.ragged import SlotMass, ragged_attention

NUM_TAIL, NUM_STEPS = 3, 12
MOST_PERIOD = 5
"""Tokens between two cuts at which there is more than one."""
_ACTING, _NEIGHBOUR = 0, 1


class Decoded(NamedTuple):
    """What `decode_at_random` found.

    layers: the acting row's slots at the end. num_slots: of them, after each step. neighbour: the other row's attention
    outputs, in order.
    """

    layers: tuple[LayerCache, ...]
    num_slots: list[int]
    neighbour: list[Tensor]


@dataclass(frozen=True)
class _Watched(DecodeRule):
    """Passes a rule's answers on and raises `DecodeRuleError` for those that have no meaning."""

    rule: DecodeRule

    def worth(self, step: DecodeStep) -> Tensor:
        worth_LHX = self.rule.worth(step)
        # Where no slot is held, numbers mean nothing and may be NaN.
        if bool(worth_LHX[step.is_held_LHX].isnan().any()):
            raise DecodeRuleError("worth is NaN for slots that are held")
        return worth_LHX

    def heirs(self, step: DecodeStep, leaving_LH: Tensor) -> Heirs | None:
        heirs = self.rule.heirs(step, leaving_LH)
        # In a sweep none of this is checked: it would wait for the device at every token.
        if heirs is not None:
            is_leaving_LHM = heirs.column_LHM == leaving_LH[:, :, None]
            is_held_LHM = step.is_held_LHX.gather(2, heirs.column_LHM)
            if bool(((is_leaving_LHM | ~is_held_LHM) & (heirs.weight_LHM != 0)).any()):
                raise DecodeRuleError("an heir is the slot that leaves, or no slot at all")
        return heirs


def decode_at_random(
    prefix: Prefix,
    neighbour: Prefix,
    rule: AnswerRule | None,
    num_query_heads: int,
    num_tokens: int,
    seed: int,
) -> Decoded:
    """Read a tail, then ``rule.room`` and `NUM_STEPS` tokens, all random, letting ``rule`` act; None lets nothing act.

    Raises:
        DecodeRuleError: the rule says something that has no meaning.
    """
    generator = torch.Generator().manual_seed(seed)
    room = 0 if rule is None else rule.room
    cache = RaggedCache([prefix, neighbour], [num_tokens] * 2, NUM_TAIL + room + NUM_STEPS)
    # Asked of the rule itself: `_Watched` is of another class and has another `reads_attention`.
    mass_rows = {_ACTING} if rule is not None and rule.reads_attention else set()
    outs, mass_L, q_L = _read(cache, prefix, NUM_TAIL, mass_rows, num_query_heads, generator)
    row = None if rule is None else _row(rule, cache, mass_L, q_L)
    if row is not None:
        row.restart()
    num_slots = []
    for _ in range(room + NUM_STEPS):
        new_outs, mass_L, q_L = _read(cache, prefix, 1, mass_rows, num_query_heads, generator)
        outs += new_outs
        if isinstance(row, PeriodicRow):
            row.settle(_queries(q_L, row.rule))
        elif row is not None:
            row.settle(mass_L or None)
        num_slots.append(sum(layer.num_slots for layer in cache.prefix_of(_ACTING)))
    if row is not None and int(row.num_nan):
        raise DecodeRuleError("scores are NaN for slots that are held")
    cache.check_integrity()
    return Decoded(tuple(layer.plain() for layer in cache.prefix_of(_ACTING)), num_slots, outs)


def _row(
    rule: AnswerRule, cache: RaggedCache, mass_L: list[SlotMass], q_L: list[Tensor]
) -> DecodingRow | PeriodicRow:
    if isinstance(rule, PeriodicRule):
        return PeriodicRow(rule, cache, _ACTING, _queries(q_L, rule), rotary())
    assert isinstance(rule, DecodeRule), "a rule is of one kind or the other"
    return DecodingRow(_Watched(rule, room=rule.room), cache, _ACTING, mass_L or None)


def _queries(q_L: list[Tensor], rule: PeriodicRule) -> list[NewQueries]:
    """As many of the newest queries as the rule reads."""
    count = rule.num_queries
    return [NewQueries(q_QTD[:, -count:], q_QTD.shape[2] ** -0.5) for q_QTD in q_L] if count else []


def _read(
    cache: RaggedCache,
    prefix: Prefix,
    num_new: int,
    mass_rows: set[int],
    num_query_heads: int,
    generator: torch.Generator,
) -> tuple[list[Tensor], list[SlotMass], list[Tensor]]:
    """Let both rows read ``num_new`` random tokens: the neighbour's outputs, the acting row's masses and queries."""
    num_heads, dtype, head_dim = prefix[0].num_heads, prefix[0].dtype, prefix[0].head_dim
    outs: list[Tensor] = []
    mass_L: list[SlotMass] = []
    q_L: list[Tensor] = []
    for layer_index in range(len(prefix)):
        q_RQTD, k_RHTD, v_RHTD = (
            torch.randn(2, heads, num_new, head_dim, generator=generator).to(dtype)
            for heads in (num_query_heads, num_heads, num_heads)
        )
        layer = cache.append(layer_index, k_RHTD, v_RHTD, (num_new, num_new))
        attended = ragged_attention(q_RQTD, layer, head_dim**-0.5, mass_rows)
        outs.append(attended.out_RTQD[_NEIGHBOUR])
        mass_L += attended.mass_by_row.values()
        q_L.append(q_RQTD[_ACTING])
    cache.advance((num_new, num_new))
    return outs, mass_L, q_L

"""One row whose policy acts while it answers: when it gets slots of its own, and how it starts again.

A row starts as any other, on its variant's shared prefix. When the rule's room is used up, prefix and tail are copied into
slots of its own (`OwnSlots`), whose number is constant from then on: for each token read one slot leaves. To start again is
to go back to the shared prefix and the tail as it was read, both of which are kept for that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvmerger.cache.slot_table import storage_bytes
from kvmerger.decoding.decode_rule import DecodeRule
from kvmerger.decoding.own_slots import NewToken, OwnSlots, Scores
from kvmerger.decoding.ragged_cache import RaggedCache
from kvmerger.kernels.reference.ragged import SlotMass


class DecodingRow:
    """Keeps one row of a `RaggedCache` under a decode rule; the batch calls `settle` after each token the row reads."""

    def __init__(
        self, rule: DecodeRule, cache: RaggedCache, row: int, tail_mass_L: Sequence[SlotMass] | None
    ) -> None:
        """Take over ``row``, which has just read its tail and nothing else; `restart` makes it ready to answer.

        ``tail_mass_L``: attention the tail paid, layer by layer; None unless the rule reads attention.
        """
        self.rule = rule
        self.has_acted = False
        """Whether a slot ever left, in the row's own answer or in one forced on it."""
        # Not put back by `restart`: whichever answer it was, the row's numbers mean nothing.
        self.num_nan = torch.zeros((), dtype=torch.int64, device=cache.prefix_of(row)[0].device)
        """Tokens, in all answers, at which a slot's worth was NaN; on the device."""
        self._cache = cache
        self._row = row
        self._prefix = cache.prefix_of(row)
        # A copy: the row's answer overwrites the tail once its slots are lent.
        self._tail_LHTD = cache.tail_of(row)
        self._tail_position = cache.next_position_R[row] - cache.tail_length_R[row]
        self._scores_after_tail = self._first_scores(tail_mass_L)
        self._num_own_slots = sum(
            layer.num_slots + layer.num_heads * (cache.tail_length_R[row] + rule.room)
            for layer in self._prefix
        )
        self._scores: Scores | None
        self._reset()

    @property
    def counters(self) -> dict[str, float]:
        """What happened since the last `restart`, over all layers and heads, and that the prompt was not streamed."""
        return {
            "num_decode_evicted": float(self._num_evicted),
            "num_decode_merged": float(self._num_merged),
            "num_decode_slots": float(self._num_own_slots),
            "is_prompt_streamed": 0.0,
        }

    @property
    def live_bytes(self) -> int:
        """Bytes that answering needs at this moment: slots, what is noted of them, the tail."""
        if self._own is not None:
            return self._own_bytes[0]
        tail_bytes = self._cache.tail_bytes_of(self._cache.tail_length_R[self._row])
        return storage_bytes(self._held()) + tail_bytes

    @property
    def reserved_bytes(self) -> int:
        """Bytes held for this row in all: with room for its tail, and with what starting again needs."""
        return self._reserved_bytes() if self._own is None else self._own_bytes[1]

    def _reserved_bytes(self) -> int:
        scores = self._scores_after_tail
        to_start_again = [
            *(tensor for layer in self._prefix for tensor in layer.tensors()),
            *self._tail_LHTD,
            *([] if scores is None else [*scores.prefix_L, scores.tail_LHT]),
        ]
        return storage_bytes([*to_start_again, *self._held()]) + self._cache.tail_bytes_of(
            self._cache.tail_capacity
        )

    def restart(self) -> None:
        """Put the row back to where it had just read its tail."""
        # In this order: `_reset` takes the next position from the cache.
        self._cache.restore(self._row, self._prefix, *self._tail_LHTD)
        self._reset()
        self._move_once_room_is_used_up()

    def settle(self, mass_L: Sequence[SlotMass] | None) -> None:
        """Act on the one token the row has just read; ``mass_L`` is the attention it paid, layer by layer."""
        if self._own is None:
            self._room_left -= 1
            if self._scores is not None and mass_L is not None:
                self._scores = self._scores.plus(mass_L)
        else:
            # Lending emptied the tail, and each newest token is forgotten again: it holds this one token.
            k_LHTD, v_LHTD = self._cache.tail_of(self._row)
            new = NewToken(k_LHTD[:, :, 0], v_LHTD[:, :, 0], self._newest_position, self._num_read)
            self._num_merged += self._own.replace(self.rule, new, mass_L)
            self._num_evicted += sum(layer.num_heads for layer in self._prefix)
            self.has_acted = True
            self._cache.forget_newest(self._row)
        self._num_read += 1
        self._newest_position += 1
        self._move_once_room_is_used_up()

    @property
    def token(self) -> object:
        """Equal as long as what a recorded step writes for this row lies where it lay."""
        return id(self._own)

    @property
    def has_own_slots(self) -> bool:
        """Whether every further token puts one slot out: from here on nothing changes its shape."""
        return self._own is not None

    def settle_on_device(self, mass_L: Sequence[SlotMass] | None, is_read: Tensor) -> None:
        """`settle` for a row with slots of its own that may have read nothing, which only the device knows.

        All of it is device work of fixed shapes, so that it can be repeated without Python. `count_settled` then tells the
        host how often it counted.

        Args:
            mass_L: zeros where nothing was read.
            is_read: bool of no dimension.
        """
        assert self._own is not None, "the room is used up first"
        k_LHD, v_LHD = self._cache.newest_of(self._row)
        new = NewToken(k_LHD, v_LHD, self._newest_position, self._num_read)
        # In place: a recorded step goes on counting in these very tensors.
        self._num_merged += self._own.replace(self.rule, new, mass_L, is_read) * is_read
        self._num_read += is_read
        self._newest_position += is_read

    def count_settled(self, num_read: int) -> None:
        """Note that `settle_on_device` met ``num_read`` tokens."""
        self._num_evicted += num_read * sum(layer.num_heads for layer in self._prefix)
        self.has_acted = self.has_acted or num_read > 0

    def _reset(self) -> None:
        device = self._prefix[0].device
        self._own: OwnSlots | None = None
        self._own_bytes = (0, 0)
        self._scores = self._scores_after_tail
        self._room_left: int = self.rule.room
        self._num_evicted: int = 0
        # On the device: a rule may compute with them, and nothing has to wait for them.
        self._num_merged: Tensor = torch.zeros((), dtype=torch.int64, device=device)
        self._num_read: Tensor = torch.zeros((), dtype=torch.int64, device=device)
        self._newest_position: Tensor = torch.tensor(self._cache.next_position_R[self._row], device=device)

    def _move_once_room_is_used_up(self) -> None:
        if self._own is None and self._room_left == 0:
            tail_LHTD = self._cache.tail_of(self._row)
            self._own = OwnSlots(self._prefix, *tail_LHTD, self._tail_position, self._scores, self.num_nan)
            self._scores = None
            self._cache.lend_slots(self._row, self._own.layers)
            # Once: nothing of them changes any more, and they are asked for at every token of the answer.
            self._own_bytes = (storage_bytes(self._held()), self._reserved_bytes())

    def _first_scores(self, tail_mass_L: Sequence[SlotMass] | None) -> Scores | None:
        prefix_L = [layer.score_S for layer in self._prefix if layer.score_S is not None]
        if tail_mass_L is None or len(prefix_L) < len(self._prefix):
            return None
        nothing_LHT = prefix_L[0].new_zeros(*self._tail_LHTD[0].shape[:2], 0)
        return Scores(prefix_L, nothing_LHT).plus(tail_mass_L)

    def _held(self) -> list[Tensor]:
        if self._own is not None:
            return self._own.tensors()
        noted = [] if self._scores is None else [*self._scores.prefix_L, self._scores.tail_LHT]
        return [*(tensor for layer in self._prefix for tensor in layer.tensors()), *noted]

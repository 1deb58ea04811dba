"""Slots that belong to one row alone and change in place: every token that comes takes the place of one that leaves.

All layers and heads lie in one flat storage, each head's prefix slots and behind them its tail, so that a step is a
handful of device operations whatever the number of layers and heads, with shapes that stay the same. Where something is to
be written for some heads only, the others write into a spare slot at the end, which nobody reads.

Shapes: L layers, H KV heads, S prefix slots of a layer, T tail tokens, F own slots of all layers and heads, D head size,
X columns (slots of the longest head, then the token just read), M heirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.decoding.decode_rule import DecodeRule, DecodeStep, Heirs, choose, require_heirs
from kvmerger.decoding.ragged_cache import Prefix
from kvmerger.kernels.reference.ragged import SlotMass


class Scores(NamedTuple):
    """Attention received so far, fp32: of a prefix's slots, layer by layer (S), and of the tail's (L, H, T)."""

    prefix_L: list[Tensor]
    tail_LHT: Tensor

    def plus(self, mass_L: Sequence[SlotMass]) -> Scores:
        """These and ``mass_L``, whose tails may have grown; changes neither."""
        tail_LHT = torch.stack([mass.tail_HC for mass in mass_L])
        grown_LHT = F.pad(self.tail_LHT, (0, tail_LHT.shape[2] - self.tail_LHT.shape[2])) + tail_LHT
        prefix_L = [score + mass.prefix_S for score, mass in zip(self.prefix_L, mass_L, strict=True)]
        return Scores(prefix_L, grown_LHT)


class NewToken(NamedTuple):
    """The token just read: keys and values (L, H, D), its position and how many of the answer came before it (int64)."""

    k_LHD: Tensor
    v_LHD: Tensor
    position: Tensor
    num_read: Tensor


class OwnSlots:
    """A private copy of one row's prefix and tail. Changes only by `replace`."""

    def __init__(
        self,
        prefix: Prefix,
        k_LHTD: Tensor,
        v_LHTD: Tensor,
        tail_position: int,
        scores: Scores | None,
        num_nan: Tensor | None = None,
    ) -> None:
        """Copy ``prefix`` and behind each head the tail, which starts at ``tail_position``; changes neither.

        ``num_nan`` (int64, no dimension) goes on counting in place; None begins at 0.
        """
        num_tail, head_dim = k_LHTD.shape[2:]
        self._slots_LH = [tuple(count + num_tail for count in layer.num_slots_H) for layer in prefix]
        flat_starts = [0, *accumulate(count for slots_H in self._slots_LH for count in slots_H)]
        self.num_slots = flat_starts.pop()
        device = k_LHTD.device
        self.num_nan = torch.zeros((), dtype=torch.int64, device=device) if num_nan is None else num_nan
        """Tokens at which the rule had no opinion: a slot's worth was NaN."""
        self._num_slots_LH1 = torch.tensor(self._slots_LH, device=device)[:, :, None]
        self._start_LH1 = torch.tensor(flat_starts, device=device).view_as(self._num_slots_LH1)
        self._column_X = torch.arange(max(map(max, self._slots_LH)), device=device)
        # One more than there are slots: the spare.
        self._k_FD = k_LHTD.new_zeros(self.num_slots + 1, head_dim)
        self._v_FD = torch.zeros_like(self._k_FD)
        self._position_F = prefix[0].position_S.new_zeros(self.num_slots + 1)
        self._log_mass_F = self._score_F = None
        if any(layer.log_mass_S is not None for layer in prefix):
            self._log_mass_F = k_LHTD.new_zeros(self.num_slots + 1, dtype=torch.float32)
        if scores is not None:
            self._score_F = k_LHTD.new_zeros(self.num_slots + 1, dtype=torch.float32)
        self._copy_prefix(prefix, num_tail, scores)
        self._copy_tail(k_LHTD, v_LHTD, tail_position, scores)
        self.layers = self._as_layers()

    def tensors(self) -> list[Tensor]:
        """Every tensor held, the spare slot included."""
        held = [
            self._k_FD,
            self._v_FD,
            self._position_F,
            self._num_slots_LH1,
            self._start_LH1,
            self._column_X,
        ]
        return [*held, *(tensor for tensor in (self._log_mass_F, self._score_F) if tensor is not None)]

    def replace(
        self,
        rule: DecodeRule,
        new: NewToken,
        mass_L: Sequence[SlotMass] | None,
        is_read: Tensor | None = None,
    ) -> Tensor:
        """Put ``new`` in the place of what ``rule`` lets go, in every head.

        Args:
            mass_L: attention the new token paid to these slots and to itself; None unless the rule reads attention. All
                zeros when it was not read.
            is_read: bool of no dimension, whether there is a new token at all: without one no slot changes. None is true.

        Returns:
            In how many heads, over all layers, the leaving value was handed on: int64 of no dimension.
        """
        step = self._step(new, mass_L)
        leaving_LH, has_nan = choose(rule.worth(step), step)
        heirs = require_heirs(rule.heirs(step, leaving_LH), leaving_LH)
        # Of a token that was not read all shares are 0 / 0, and no fault of the rule's.
        self.num_nan += has_nan if is_read is None else has_nan & is_read
        # The newest token's column is no slot: where that leaves at once, `_place` gives the spare.
        is_new_LH1 = (leaving_LH == self._column_X.shape[0])[:, :, None]
        place_LH = self._place(leaving_LH[:, :, None]).squeeze(2)
        # Taken before the new token is written over it.
        leaving_v_LHD = torch.where(is_new_LH1, new.v_LHD, self._v_FD[place_LH])
        if is_read is not None:
            place_LH = torch.where(is_read, place_LH, self.num_slots)
            if heirs is not None:
                # A share of attention that nobody paid is 0 / 0, which no product makes 0 again.
                heirs = heirs._replace(weight_LHM=torch.where(is_read, heirs.weight_LHM, 0.0))
        self._k_FD[place_LH] = new.k_LHD
        self._v_FD[place_LH] = new.v_LHD
        self._position_F[place_LH] = new.position.to(self._position_F.dtype)
        if self._log_mass_F is not None:
            self._log_mass_F[place_LH] = 0.0
        if self._score_F is not None and step.score_LHX is not None:
            self._score_F[place_LH] = step.score_LHX[:, :, -1]
        if heirs is None:
            return torch.zeros_like(new.num_read)
        self._hand_on(leaving_v_LHD, heirs, place_LH)
        return (heirs.weight_LHM != 0).any(dim=2).sum()

    # --- how a rule sees them

    def _step(self, new: NewToken, mass_L: Sequence[SlotMass] | None) -> DecodeStep:
        attention_LHX = score_LHX = None
        if mass_L is not None:
            # Attention saw these slots as `layers`, slices of the flat storages in their order; the spare was in none.
            own_F = torch.cat([mass.prefix_S for mass in mass_L])
            itself_LH = torch.stack([mass.tail_HC[:, -1] for mass in mass_L])
            attention_LHX = self._as_columns(F.pad(own_F, (0, 1)), itself_LH)
            if self._score_F is not None:
                self._score_F[:-1] += own_F
                score_LHX = self._as_columns(self._score_F, itself_LH)
        is_held_LHX = F.pad(self._column_X < self._num_slots_LH1, (0, 1), value=True)
        position_LHX = self._as_columns(self._position_F, new.position.expand(is_held_LHX.shape[:2]))
        return DecodeStep(position_LHX, is_held_LHX, attention_LHX, score_LHX, new.num_read)

    def _as_columns(self, flat_F: Tensor, newest_LH: Tensor) -> Tensor:
        """Flat numbers as one column per slot, the newest token's last: (L, H, X)."""
        own_LHX = flat_F[self._place(self._column_X)]
        return torch.cat([own_LHX, newest_LH[:, :, None].to(flat_F.dtype)], dim=2)

    def _place(self, column: Tensor) -> Tensor:
        """Flat place of columns, broadcast against (L, H, 1); the spare's where a head has no such slot."""
        # What a user's rule names may be below 0 too, a place in the head before.
        is_slot = (column >= 0) & (column < self._num_slots_LH1)
        return torch.where(is_slot, self._start_LH1 + column, self.num_slots)

    def _hand_on(self, leaving_v_LHD: Tensor, heirs: Heirs, place_LH: Tensor) -> None:
        is_newest_LHM = heirs.column_LHM == self._column_X.shape[0]
        place_LHM = torch.where(is_newest_LHM, place_LH[:, :, None], self._place(heirs.column_LHM))
        # Columns without a weight go to the spare, so that no place is written twice.
        place_LHM = place_LHM.masked_fill(heirs.weight_LHM == 0, self.num_slots)
        share_LHMD = heirs.weight_LHM[..., None] * leaving_v_LHD[:, :, None].float()
        self._v_FD[place_LHM] = (self._v_FD[place_LHM].float() + share_LHMD).to(self._v_FD.dtype)

    # --- how they come to be

    def _copy_prefix(self, prefix: Prefix, num_tail: int, scores: Scores | None) -> None:
        first_slot = first_head = 0
        for index, layer in enumerate(prefix):
            # Every head before a slot, in its layer and the earlier ones, has moved it on by one tail.
            # On the CPU, where the repeats' sum is at hand: the device would be waited for.
            head_S = torch.repeat_interleave(
                torch.arange(layer.num_heads), torch.tensor(layer.num_slots_H)
            ).to(layer.device)
            place_S = first_slot + torch.arange(layer.num_slots, device=head_S.device)
            place_S += num_tail * (first_head + head_S)
            # What acts while answering changes slots one by one: from here on they are plain.
            plain = layer.plain()
            self._k_FD[place_S], self._v_FD[place_S] = plain.k_SD, plain.v_SD
            self._position_F[place_S] = layer.position_S
            if self._log_mass_F is not None and layer.log_mass_S is not None:
                self._log_mass_F[place_S] = layer.log_mass_S
            if self._score_F is not None and scores is not None:
                self._score_F[place_S] = scores.prefix_L[index]
            first_slot, first_head = first_slot + layer.num_slots, first_head + layer.num_heads

    def _copy_tail(self, k_LHTD: Tensor, v_LHTD: Tensor, tail_position: int, scores: Scores | None) -> None:
        token_T = torch.arange(k_LHTD.shape[2], device=k_LHTD.device)
        place_LHT = self._start_LH1 + self._num_slots_LH1 - token_T.shape[0] + token_T
        self._k_FD[place_LHT], self._v_FD[place_LHT] = k_LHTD, v_LHTD
        self._position_F[place_LHT] = (tail_position + token_T).to(self._position_F.dtype)
        if self._score_F is not None and scores is not None:
            self._score_F[place_LHT] = scores.tail_LHT

    def _as_layers(self) -> Prefix:
        """The slots as attention takes them: slices of the flat storages, so they change with them."""
        layers, start = [], 0
        for slots_H in self._slots_LH:
            part = slice(start, start + sum(slots_H))
            log_mass_S = None if self._log_mass_F is None else self._log_mass_F[part]
            layers.append(
                LayerCache(self._k_FD[part], self._v_FD[part], self._position_F[part], slots_H, log_mass_S)
            )
            start = part.stop
        return tuple(layers)

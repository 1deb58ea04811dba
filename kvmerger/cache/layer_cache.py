"""One layer's keys and values of one variant: what is really held, slot by slot.

Slots of all KV heads lie one head after the other in flat tensors, so heads may have different lengths and nothing is
padded. A `LayerCache` is immutable: policies return new ones.

Shapes: S slots of all heads together (of one head beside H), H KV heads, N tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kvmerger.cache.forms.widths import Widths
from kvmerger.cache.head_counters import HeadCounters, PerHead
from kvmerger.cache.slot_table import SlotTable, owned


@dataclass(frozen=True, slots=True, eq=False)
class LayerCache(SlotTable):
    """Ragged keys and values of one layer.

    Attributes:
        k_SD: keys after RoPE, in the model's dtype.
        v_SD: values, same shape and dtype.
        position_S: int32, the prompt position each slot stands for, ascending within a head. A merged slot has its
            pivot's position.
        num_slots_H: slots per KV head; they sum to S.
        log_mass_S: fp32, added to the slot's attention logit; None means 0 everywhere.
        counters: what the policy wants known about this layer: numbers, or tensors of no dimension, which are fetched
            with all other layers'. Names decide how layers are put together: ``num_…`` add up, ``largest_…`` take the
            maximum, ``is_…`` the minimum, anything else the mean.
        score_S: fp32, attention each slot has received so far, for decode rules that go on adding to it; None where no
            rule asks for it.
        next_position: where the first token behind these slots stands, for keys that have been given new positions; None:
            at the length of the prompt. The layers of a variant may differ: the last of them counts.
        widths: what each slot's value and each channel's keys are to be stored in, for the policy's own form; None where
            it has none. They are told once and not held: what is stored says its own widths.
    """

    k_SD: Tensor
    v_SD: Tensor
    position_S: Tensor
    num_slots_H: tuple[int, ...]
    log_mass_S: Tensor | None = None
    counters: Mapping[str, float] = field(default_factory=dict)
    score_S: Tensor | None = None
    next_position: int | None = None
    widths: Widths | None = None

    @classmethod
    def from_dense(cls, k_HND: Tensor, v_HND: Tensor) -> LayerCache:
        """The uncompressed cache of one layer. Copies only what is not contiguous already."""
        num_heads, num_tokens, head_dim = k_HND.shape
        position_N = torch.arange(num_tokens, dtype=torch.int32, device=k_HND.device)
        return cls(
            k_HND.reshape(-1, head_dim).contiguous(),
            v_HND.reshape(-1, head_dim).contiguous(),
            position_N.repeat(num_heads),
            (num_tokens,) * num_heads,
        )

    @classmethod
    def empty(cls, like: LayerCache) -> LayerCache:
        """A cache with the heads and dtype of ``like`` and not one slot."""
        return cls.unwritten(like, (0,) * like.num_heads)

    @classmethod
    def unwritten(cls, like: LayerCache, num_slots_H: tuple[int, ...]) -> LayerCache:
        """A cache with the dtype of ``like`` whose slots are yet to be written; without log masses and scores."""
        num_slots, head_dim = sum(num_slots_H), like.k_SD.shape[1]
        k_SD, v_SD = (tensor.new_empty(num_slots, head_dim) for tensor in (like.k_SD, like.v_SD))
        return cls(k_SD, v_SD, like.position_S.new_empty(num_slots), num_slots_H)

    @property
    def head_dim(self) -> int:
        """Numbers of a key."""
        return self.k_SD.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self.k_SD.dtype

    @property
    def k_HND(self) -> Tensor:
        """Keys as a dense view; only when `is_uniform`."""
        return self.k_SD.view(self.num_heads, self.num_slots_H[0], self.k_SD.shape[1])

    @property
    def v_HND(self) -> Tensor:
        """Values as a dense view; only when `is_uniform`."""
        return self.v_SD.view(self.num_heads, self.num_slots_H[0], self.v_SD.shape[1])

    @property
    def position_HS(self) -> Tensor:
        """Positions as a dense view; only when `is_uniform`."""
        return self.position_S.view(self.num_heads, self.num_slots_H[0])

    def stored(self) -> dict[str, Tensor]:
        """Keys and values."""
        return {"k_SD": self.k_SD, "v_SD": self.v_SD}

    def plain(self, dtype: torch.dtype | None = None) -> LayerCache:
        """This very cache: its keys and values are numbers already."""
        return self

    def take(self, slot_K: Tensor, num_slots_H: tuple[int, ...]) -> LayerCache:
        """A new cache of the slots ``slot_K`` (flat indices, ascending), copied into storages of their own."""
        return LayerCache(
            self.k_SD[slot_K],
            self.v_SD[slot_K],
            self.position_S[slot_K],
            num_slots_H,
            None if self.log_mass_S is None else self.log_mass_S[slot_K],
            score_S=None if self.score_S is None else self.score_S[slot_K],
            next_position=self.next_position,
        )

    def with_counters(self, counters: Mapping[str, float]) -> LayerCache:
        """The same slots, other counters."""
        return replace(self, counters=counters)

    def counting(self, more: Mapping[str, PerHead]) -> LayerCache:
        """The same slots with ``more`` counters, a number of each head."""
        counted = self.counters if isinstance(self.counters, HeadCounters) else HeadCounters({})
        assert counted is self.counters or not self.counters, "these are a whole layer's, not its heads'"
        return replace(self, counters=counted.joined(more))

    def owning(self, forbidden: set[int]) -> LayerCache:
        """This cache, with any tensor copied that is a slice of something larger or lives in a ``forbidden`` storage.

        ``forbidden`` holds storage addresses (`storage_addresses`). Keeps a variant from holding the full row's memory.
        """

        return replace(
            self,
            k_SD=owned(self.k_SD, forbidden),
            v_SD=owned(self.v_SD, forbidden),
            position_S=owned(self.position_S, forbidden),
            log_mass_S=None if self.log_mass_S is None else owned(self.log_mass_S, forbidden),
            score_S=None if self.score_S is None else owned(self.score_S, forbidden),
        )

    def check_same_kind(self, other: LayerCache) -> None:
        """Raise ValueError unless heads, head size, dtypes and device are those of ``other``."""
        ours, theirs = (
            (layer.num_heads, layer.k_SD.shape[1], layer.k_SD.dtype, layer.k_SD.device)
            for layer in (self, other)
        )
        if ours != theirs:
            raise ValueError(
                f"(heads, head size, dtype, device) is {ours}, the uncompressed layer has {theirs}"
            )
        if self.position_S.dtype != other.position_S.dtype:
            raise ValueError(
                f"position_S is {self.position_S.dtype}, the uncompressed layer's {other.position_S.dtype}: convert it "
                f"with .to(layer.position_S.dtype)"
            )

    def check_integrity(self, *, is_in_order: bool = True) -> None:
        """Raise ValueError unless shapes, dtypes, lengths and the order of positions are consistent.

        Where a decode rule has put new tokens into the places of old ones, slots are not ``is_in_order``: no position may
        come twice in a head, and that is all.
        """
        self.check_shapes()
        self.check_order(is_in_order=is_in_order)

    def check_shapes(self) -> None:
        """Raise ValueError unless shapes, dtypes, lengths and devices are consistent. Does not wait for the device."""
        if not all(isinstance(length, int) and length >= 0 for length in self.num_slots_H):
            raise ValueError(
                f"num_slots_H must be whole numbers from 0 on, one per KV head, got {self.num_slots_H!r}: convert them "
                f"with int(), a tensor with tuple(lengths.tolist())"
            )
        if not isinstance(self.counters, Mapping):
            raise ValueError(  # noqa: TRY004 - as all that a user's layer can have wrong
                f"counters must be a dictionary of numbers by name, got {self.counters!r}"
            )
        if self.k_SD.shape != self.v_SD.shape or self.k_SD.dtype != self.v_SD.dtype:
            raise ValueError(
                f"keys {tuple(self.k_SD.shape)} and values {tuple(self.v_SD.shape)} do not match"
            )
        for name, tensor in self.by_name().items():
            self._check_tensor(name, tensor)
        if self.widths is not None:
            self._check_widths(self.widths)

    def _check_widths(self, widths: Widths) -> None:
        for name, tensor, shape in (
            ("widths.v_S", widths.v_S, (self.num_slots,)),
            ("widths.k_HD", widths.k_HD, (self.num_heads, self.head_dim)),
        ):
            if tensor.shape != shape or tensor.dtype != torch.uint8 or tensor.device != self.k_SD.device:
                raise ValueError(
                    f"{name} must be torch.uint8 {shape} on {self.k_SD.device}, got {tensor.dtype} {tuple(tensor.shape)} on "
                    f"{tensor.device}"
                )

    def _check_tensor(self, name: str, tensor: Tensor) -> None:
        device = self.k_SD.device
        if tensor.device != device:
            raise ValueError(
                f"{name} is on {tensor.device}, k_SD on {device}: create it with device=layer.k_SD.device"
            )
        if not tensor.is_contiguous():
            raise ValueError(
                f"{name}: slots must lie one after the other in memory; call .contiguous() on what is kept"
            )
        if name in ("log_mass_S", "score_S") and tensor.dtype != torch.float32:
            raise ValueError(f"{name} must be torch.float32, got {tensor.dtype}: convert it with .float()")
        num_slots, num_dimensions = self.num_slots, 2 if name in ("k_SD", "v_SD") else 1
        if tensor.shape[:1] != (num_slots,) or tensor.dim() != num_dimensions:
            raise ValueError(
                f"lengths per head {self.num_slots_H} sum to {num_slots}, {name} has shape {tuple(tensor.shape)}"
            )


def room_for(num_layers: int, k_HND: Tensor) -> tuple[LayerCache, ...]:
    """Layers like the one of ``k_HND``, their keys and values yet to be written."""
    num_heads, num_tokens, head_dim = k_HND.shape
    # One block for all layers: `engine.stacks.stacked` takes neighbours as a view, and copies what lies apart.
    k_LFD = k_HND.new_empty(num_layers, num_heads * num_tokens, head_dim)
    v_LFD = torch.empty_like(k_LFD)
    position_N = torch.arange(num_tokens, dtype=torch.int32, device=k_HND.device)
    position_LF = position_N.repeat(num_layers, num_heads)
    return tuple(
        LayerCache(k_FD, v_FD, position_F, (num_tokens,) * num_heads)
        for k_FD, v_FD, position_F in zip(k_LFD, v_LFD, position_LF, strict=True)
    )

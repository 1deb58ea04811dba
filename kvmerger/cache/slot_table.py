"""What every layer of a variant's cache has, however its keys and values lie in memory: slots, head by head.

Shapes: S slots of all heads together, H KV heads, D head size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import accumulate

import torch
from torch import Tensor

from kvmerger.device import upload


class SlotTable:
    """Base of `LayerCache` and `PackedLayer`, which say what the attributes are; both have `head_dim` and `dtype` too."""

    __slots__ = ()
    position_S: Tensor
    num_slots_H: tuple[int, ...]
    log_mass_S: Tensor | None
    score_S: Tensor | None
    counters: Mapping[str, float]

    def stored(self) -> Mapping[str, Tensor]:
        """The tensors that keys and values are held in, by name."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where everything is held."""
        return self.position_S.device

    @property
    def num_heads(self) -> int:
        """KV heads."""
        return len(self.num_slots_H)

    @property
    def num_slots(self) -> int:
        """Slots of all heads together."""
        return sum(self.num_slots_H)

    @property
    def is_uniform(self) -> bool:
        """Whether every head holds the same number of slots."""
        return len(set(self.num_slots_H)) == 1

    @property
    def head_starts(self) -> tuple[int, ...]:
        """Index of each head's first slot."""
        return (0, *accumulate(self.num_slots_H[:-1]))

    @property
    def head_S(self) -> Tensor:
        """Each slot's head: int64. Does not wait for the device."""
        num_slots_H = upload(self.num_slots_H, self.device)
        head_H = torch.arange(self.num_heads, device=self.device)
        # Without `output_size` torch would fetch the repeats' sum from the device.
        return head_H.repeat_interleave(num_slots_H, output_size=self.num_slots)

    def tensors(self) -> list[Tensor]:
        """Every tensor this layer holds."""
        return list(self.by_name().values())

    def by_name(self) -> dict[str, Tensor]:
        """Every tensor this layer holds, by name."""
        optional = {"log_mass_S": self.log_mass_S, "score_S": self.score_S}
        there = {name: tensor for name, tensor in optional.items() if tensor is not None}
        return {**self.stored(), "position_S": self.position_S, **there}

    @property
    def nbytes(self) -> int:
        """Bytes really held."""
        return storage_bytes(self.tensors())

    def read_tensors(self) -> list[Tensor]:
        """What attention reads at every step: all but positions and scores."""
        log_masses = [] if self.log_mass_S is None else [self.log_mass_S]
        return [*self.stored().values(), *log_masses]

    def check_order(self, *, is_in_order: bool = True) -> None:
        """Raise ValueError unless positions ascend within each head; where not ``is_in_order``, unless none comes twice."""
        # One answer for all heads; they are fetched one by one only to say in the error what is wrong.
        if is_in_order and bool(self.is_ascending()):
            return
        for start, length in zip(self.head_starts, self.num_slots_H, strict=True):
            position_K = self.position_S[start : start + length]
            if not is_in_order:
                position_K = position_K.sort().values
            if bool((position_K[1:] <= position_K[:-1]).any()):
                raise ValueError(f"positions of a head must ascend, got {position_K.tolist()[:8]}…")

    def is_ascending(self) -> Tensor:
        """Whether positions ascend within each head: a bool on the device, which nothing has waited for."""
        is_after_S = self.position_S[1:] > self.position_S[:-1]
        num_slots = self.num_slots
        # Between heads positions may fall. A head that starts at 0 or S (the first, and empty ones) has no pair before it.
        last_of_heads = [start - 1 for start in self.head_starts if 0 < start < num_slots]
        place_H = upload(torch.tensor(last_of_heads, dtype=torch.int64), is_after_S.device)
        return is_after_S.index_fill_(0, place_H, True).all()

    def check_integrity(self, *, is_in_order: bool = True) -> None:
        """Raise ValueError unless shapes, dtypes, lengths and the order of positions are consistent.

        Where a decode rule has put new tokens into the places of old ones, slots are not ``is_in_order``: no position may
        come twice in a head, and that is all.
        """
        raise NotImplementedError


def owned(tensor: Tensor, forbidden: Collection[int]) -> Tensor:
    """``tensor``, copied if it is a slice of something larger or lives in a storage whose address is ``forbidden``."""
    # A slice would keep all of its parent alive, and be counted with the parent's bytes.
    storage = tensor.untyped_storage()
    is_slice = storage.nbytes() != tensor.numel() * tensor.element_size()
    is_forbidden = bool(tensor.numel()) and storage.data_ptr() in forbidden
    return tensor.clone(memory_format=torch.contiguous_format) if is_slice or is_forbidden else tensor


def storage_addresses(tensors: Iterable[Tensor]) -> set[int]:
    """Addresses of the distinct storages behind ``tensors``; empty tensors have none."""
    # All empty storages have the address 0: two of them would look like one that is shared.
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind ``tensors``, each counted whole and once."""
    sizes = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors
        if tensor.numel()
    }
    return sum(sizes.values())

"""One layer of one variant whose keys and values are held as a form's parts: codes, scales and whatever else it needs.

Immutable, as `LayerCache` is. Positions, log masses and scores lie beside the parts as they were.

Shapes: S slots of all heads together, D head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from kvmerger.cache.forms.base import Form
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.slot_table import SlotTable, owned


@dataclass(frozen=True, slots=True, eq=False)
class PackedLayer(SlotTable):
    """Ragged keys and values of one layer in a form.

    Attributes:
        parts: the form's tensors by name; of a shipped form as `kvmerger.cache.forms.quantise` says.
        form: what they are decoded by.
        head_dim, dtype: of the keys and values that were stored.
        position_S, num_slots_H, log_mass_S, counters, score_S, next_position: as in `LayerCache`.
    """

    parts: Mapping[str, Tensor]
    form: Form
    head_dim: int
    dtype: torch.dtype
    position_S: Tensor
    num_slots_H: tuple[int, ...]
    log_mass_S: Tensor | None = None
    counters: Mapping[str, float] = field(default_factory=dict)
    score_S: Tensor | None = None
    next_position: int | None = None

    @classmethod
    def of(cls, layer: LayerCache, form: Form) -> PackedLayer:
        """``layer`` stored in ``form``; shares its positions, log masses and scores, and nothing else."""
        return cls(
            MappingProxyType(form.encode_in(layer.k_SD, layer.v_SD, layer.num_slots_H, layer.widths)),
            form,
            layer.head_dim,
            layer.dtype,
            layer.position_S,
            layer.num_slots_H,
            layer.log_mass_S,
            layer.counters,
            layer.score_S,
            layer.next_position,
        )

    @property
    def has_kernel(self) -> bool:
        """Whether kernels read the codes where they lie; if not, they are decoded to be read."""
        return self.form.layouts() is not None

    def stored(self) -> Mapping[str, Tensor]:
        """The form's parts."""
        return self.parts

    def plain(self, dtype: torch.dtype | None = None) -> LayerCache:
        """Keys and values decoded, in ``dtype`` (by default that of prefill): new tensors, held by nobody else."""
        k_SD, v_SD = self.form.decode(self.parts, self.num_slots_H, self.head_dim)
        return LayerCache(
            k_SD.to(dtype or self.dtype),
            v_SD.to(dtype or self.dtype),
            self.position_S,
            self.num_slots_H,
            self.log_mass_S,
            self.counters,
            self.score_S,
            self.next_position,
        )

    def owning(self, forbidden: set[int]) -> PackedLayer:
        """This layer, with what `LayerCache.owning` would copy copied, parts included."""
        return replace(
            self,
            parts=MappingProxyType({name: owned(part, forbidden) for name, part in self.parts.items()}),
            position_S=owned(self.position_S, forbidden),
            log_mass_S=None if self.log_mass_S is None else owned(self.log_mass_S, forbidden),
            score_S=None if self.score_S is None else owned(self.score_S, forbidden),
        )

    def check_integrity(self, *, is_in_order: bool = True) -> None:
        """See `SlotTable.check_integrity`."""
        self.check_parts()
        self.check_order(is_in_order=is_in_order)

    def check_parts(self) -> None:
        """Raise ValueError unless the parts take the bytes that the form says, and all lie as kernels read them.

        Does not wait for the device.
        """
        num_bytes = sum(part.numel() * part.element_size() for part in self.parts.values())
        expected = self.form.num_bytes_of(self.parts, self.num_slots_H, self.head_dim)
        if num_bytes != expected:
            raise ValueError(f"the form's parts take {num_bytes} bytes, it says that they take {expected}")
        for name, tensor in self.by_name().items():
            if tensor.device != self.device or not tensor.is_contiguous():
                raise ValueError(
                    f"{name} must be contiguous and on {self.device}, as the positions are; it is on {tensor.device}"
                )
        if self.position_S.shape != (self.num_slots,):
            raise ValueError(
                f"lengths per head {self.num_slots_H} sum to {self.num_slots}, position_S has shape "
                f"{tuple(self.position_S.shape)}"
            )


HeldLayer = LayerCache | PackedLayer
"""One layer of one variant's cache, as it is held."""


def tail_position(prefix: Sequence[HeldLayer] | None, num_tokens: int) -> int:
    """Where the first token behind ``prefix`` stands, of a compressed part of ``num_tokens`` tokens."""
    # One place for all layers, since a token has one position: behind the slots of each of them.
    says = [num_tokens if it.next_position is None else it.next_position for it in prefix or ()]
    return max(says, default=num_tokens)


def are_read_where_they_lie(layers: Iterable[HeldLayer]) -> bool:
    """Whether there are kernels that read all of ``layers`` as they are held."""
    return all(layer.has_kernel for layer in layers if isinstance(layer, PackedLayer))

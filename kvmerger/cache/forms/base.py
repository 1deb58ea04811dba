"""The contract of a form: a frozen dataclass of its parameters that turns a layer's keys and values into parts, and back.

A form keeps no state, changes none of its inputs and keeps the order of slots. Positions and log masses are not its business:
they lie beside the parts, unchanged.

Shapes: S slots of a layer, its heads one after the other, H heads, D head size.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvmerger.cache.forms.layouts import CodeLayout, Grid, Per
from kvmerger.cache.forms.quantise import decode, encode, largest_error, num_saturated
from kvmerger.cache.forms.widths import Widths

# Any usual number of slots that share something divides it.
_MANY_SLOTS = 2**10 * 3**2 * 5**2 * 7
_TRIED_SLOTS = tuple(2**power + more for power in range(18) for more in (0, 1))


@dataclass(frozen=True)
class Form(abc.ABC):
    """Base of all forms. Subclass it as a frozen dataclass and name it as ``module:Class`` behind a policy's ``+``."""

    version: ClassVar[int] = 1
    """Raise it when results change: old rows then no longer count as done."""

    def layouts(self) -> tuple[CodeLayout, CodeLayout] | None:
        """How keys and values are coded, for kernels that read codes; None, as here, where they are decoded to be read."""
        return None

    def of_layer(self, index: int, num_layers: int) -> Form:
        """What layer ``index`` (from 0) of ``num_layers`` is stored in: the same of all, as here, or one of its own.

        Raises:
            FormError: it is of a model with another number of layers.
        """
        return self

    def check(self, head_dim: int) -> None:  # noqa: B027 - most forms take heads of any size
        """Raise `FormError` where heads of ``head_dim`` numbers cannot be stored; changes nothing."""

    def bits(self, head_dim: int) -> tuple[float, float]:
        """Bits of a stored key and of a stored value, scales apart; by default what `num_bytes` comes to, with them."""
        both = self.num_bytes((1024,), head_dim) * 8 / (2 * 1024 * head_dim)
        return both, both

    def bits_of(
        self, parts: Mapping[str, Tensor], num_slots_H: Sequence[int], head_dim: int
    ) -> tuple[float, float]:
        """`bits` of what ``parts`` hold: the same, unless numbers differ in width."""
        return self.bits(head_dim)

    def largest_errors(
        self, k_SD: Tensor, v_SD: Tensor, parts: Mapping[str, Tensor], num_slots_H: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """How far each slot's decoded key and value may be from the stored ones, Euclidean: fp32 (S,) each.

        The contract holds a form to it. By default as far as the vector is long: as good as nothing stored.
        """
        return k_SD.float().norm(dim=1), v_SD.float().norm(dim=1)

    def counters(self, k_SD: Tensor, v_SD: Tensor) -> Mapping[str, Tensor]:
        """What is to be known about storing a layer, as `LayerCache.counters` are; by default nothing."""
        return {}

    @abc.abstractmethod
    def num_bytes(self, num_slots_H: Sequence[int], head_dim: int) -> int:
        """Bytes of all parts of a layer with so many slots in its heads: exactly what `encode` takes."""

    def most_bytes(self, num_slots: int, num_heads: int, head_dim: int) -> int:
        """The most bytes of ``num_slots`` slots, however heads share them; of many layers no more than so many times these.

        A budget of bytes holds back what this is above `num_bytes` of an even split, where heads or layers differ. By default
        from what single heads take, for forms that store them one by one; give your own where the contract finds more.
        """
        of_slot = self.num_bytes((2 * _MANY_SLOTS,), head_dim) - self.num_bytes((_MANY_SLOTS,), head_dim)
        # In a slot's bytes times many, to stay with whole numbers. Most above its share is a head right behind a group's end,
        # or, of a form that leaves its first slots unpacked, at the end of those.
        above = max(
            self.num_bytes((count,), head_dim) * _MANY_SLOTS - count * of_slot for count in _TRIED_SLOTS
        )
        return -(-(num_slots * of_slot + num_heads * max(0, above)) // _MANY_SLOTS)

    def num_bytes_of(self, parts: Mapping[str, Tensor], num_slots_H: Sequence[int], head_dim: int) -> int:
        """Bytes that ``parts`` must take: `num_bytes`, unless numbers differ in width. Does not wait for the device."""
        return self.num_bytes(num_slots_H, head_dim)

    @abc.abstractmethod
    def encode(self, k_SD: Tensor, v_SD: Tensor, num_slots_H: Sequence[int]) -> dict[str, Tensor]:
        """Parts by name, each contiguous and in a storage of its own; what they are is the form's own matter."""

    def encode_in(
        self, k_SD: Tensor, v_SD: Tensor, num_slots_H: Sequence[int], widths: Widths | None
    ) -> dict[str, Tensor]:
        """`encode`, in the ``widths`` that the policy chose for this layer; one with widths of its own ignores them."""
        return self.encode(k_SD, v_SD, num_slots_H)

    @abc.abstractmethod
    def decode(
        self, parts: Mapping[str, Tensor], num_slots_H: Sequence[int], head_dim: int
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (S, D) that the parts stand for, fp32."""


@dataclass(frozen=True)
class CodedForm(Form):
    """A form that is a layout of keys and one of values; its parts are theirs, named ``k_…`` and ``v_…``."""

    @abc.abstractmethod
    def layouts(self) -> tuple[CodeLayout, CodeLayout]:
        """Of keys and of values."""

    def check(self, head_dim: int) -> None:
        """See `Form.check`."""
        for layout in self.layouts():
            layout.check(head_dim)

    def bits(self, head_dim: int) -> tuple[float, float]:
        """Of the codes alone."""
        k_layout, v_layout = self.layouts()
        return float(k_layout.bits), float(v_layout.bits)

    def largest_errors(
        self, k_SD: Tensor, v_SD: Tensor, parts: Mapping[str, Tensor], num_slots_H: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """From each number's own bound; a rotation changes no distance."""
        k_S, v_S = (
            largest_error(side_of(parts, side), layout, num_slots_H, x_SD).norm(dim=1)
            for side, layout, x_SD in zip(("k_", "v_"), self.layouts(), (k_SD, v_SD), strict=True)
        )
        return k_S, v_S

    def counters(self, k_SD: Tensor, v_SD: Tensor) -> Mapping[str, Tensor]:
        """Numbers beyond what a grid without scale can hold, where there is such a grid."""
        sides = [
            x_SD
            for x_SD, layout in zip((k_SD, v_SD), self.layouts(), strict=True)
            if layout.grid is Grid.E4M3 and layout.per is Per.NOTHING
        ]
        return {"num_saturated": sum(map(num_saturated, sides[1:]), num_saturated(sides[0]))} if sides else {}

    def num_bytes(self, num_slots_H: Sequence[int], head_dim: int) -> int:
        """See `Form.num_bytes`."""
        return sum(layout.num_bytes(num_slots_H, head_dim) for layout in self.layouts())

    def most_bytes(self, num_slots: int, num_heads: int, head_dim: int) -> int:
        """See `Form.most_bytes`."""
        return sum(layout.most_bytes(num_slots, num_heads, head_dim) for layout in self.layouts())

    def encode(self, k_SD: Tensor, v_SD: Tensor, num_slots_H: Sequence[int]) -> dict[str, Tensor]:
        """See `Form.encode`."""
        k_layout, v_layout = self.layouts()
        k_parts, v_parts = encode(k_SD, k_layout, num_slots_H), encode(v_SD, v_layout, num_slots_H)
        return {f"k_{name}": part for name, part in k_parts.items()} | {
            f"v_{name}": part for name, part in v_parts.items()
        }

    def decode(
        self, parts: Mapping[str, Tensor], num_slots_H: Sequence[int], head_dim: int
    ) -> tuple[Tensor, Tensor]:
        """See `Form.decode`."""
        k_SD, v_SD = (
            decode(side_of(parts, side), layout, num_slots_H, head_dim)
            for side, layout in zip(("k_", "v_"), self.layouts(), strict=True)
        )
        return k_SD, v_SD


def side_of(parts: Mapping[str, Tensor], side: str) -> dict[str, Tensor]:
    """The parts of one side, ``k_`` or ``v_``, by their names in `quantise`."""
    return {name.removeprefix(side): part for name, part in parts.items() if name.startswith(side)}

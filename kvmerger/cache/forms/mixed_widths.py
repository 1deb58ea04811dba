"""A form whose slots' values, and whose keys' channels, have widths of their own, as the policy chose them.

A number is ``offset + scale · code``, with the smallest number itself as offset: a rounded zero point would be clamped
where a channel does not reach 0, and cost as much as the channel is far from it. Codes are chosen for scale and offset as
stored.

The parts, of a width only where it is there: ``v_width`` uint8 (S,) and ``k_width`` uint8 (H, D), the bits; ``v_codes_b``
uint8 (slots, D·b/8), ``v_scale_b`` and ``v_offset_b`` bf16 (slots,), of the slots that have b bits, in order; ``k_codes_b``
uint8 (bytes,), the codes of one column after the other, each padded to a byte, ``k_scale_b`` and ``k_offset_b`` fp32
(columns,); and in the model's dtype ``v_plain`` (slots, D) and ``k_plain`` (numbers,). Columns are `key_columns`'.

Shapes: S slots of a layer, its heads one after the other, K those of one width, H heads, D head size, W widths, X anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.cache.forms.base import Form
from kvmerger.cache.forms.bits import packed, unpacked
from kvmerger.cache.forms.key_columns import KeyColumns
from kvmerger.cache.forms.widths import CODED_WIDTHS, PLAIN_WIDTH, WIDTHS, Widths, codes_above
from kvmerger.names import FormError

V_SCALE_DTYPE = torch.bfloat16  # as far as fp32 reaches: fp16 ends at 65504
K_SCALE_DTYPE = (
    torch.float32
)  # once a column: next to nothing, and an offset's rounding is no error of the keys
V_SCALE_BYTES = 2 * V_SCALE_DTYPE.itemsize
K_SCALE_BYTES = 2 * K_SCALE_DTYPE.itemsize
WIDTH_BYTES = 1
_UNTOLD_WIDTH = 8
_MORE_THAN_HALF = 0.501  # of a step: fp32's own rounding comes on top
_FP32_ROUNDING = 2**-20


@dataclass(frozen=True)
class MixedWidths(Form):
    """Values in bits of their own, slot by slot, and keys channel by channel; 8 bits where nobody has chosen."""

    def check(self, head_dim: int) -> None:
        """Raise `FormError` unless a value's codes of 2 bits are whole bytes."""
        if head_dim % 4:
            raise FormError(
                f"codes of 2 bits need heads of a multiple of 4 numbers, the model's have {head_dim}"
            )

    def bits(self, head_dim: int) -> tuple[float, float]:
        """Where nobody has chosen."""
        return float(_UNTOLD_WIDTH), float(_UNTOLD_WIDTH)

    def bits_of(
        self, parts: Mapping[str, Tensor], num_slots_H: Sequence[int], head_dim: int
    ) -> tuple[float, float]:
        """Means over all numbers, those that are not stored counted as 0 bits."""
        num_numbers = sum(num_slots_H) * head_dim
        if not num_numbers:
            return 0.0, 0.0
        k_bits, v_bits = (
            8 * sum(part.nbytes for name, part in parts.items() if name.startswith(starts)) / num_numbers
            for starts in (("k_codes", "k_plain"), ("v_codes", "v_plain"))
        )
        return k_bits, v_bits

    def num_bytes(self, num_slots_H: Sequence[int], head_dim: int) -> int:
        """Where nobody has chosen."""
        num_slots, num_columns = sum(num_slots_H), len(num_slots_H) * head_dim
        of_values = num_slots * (head_dim + V_SCALE_BYTES + WIDTH_BYTES)
        return of_values + num_slots * head_dim + num_columns * (K_SCALE_BYTES + WIDTH_BYTES)

    def num_bytes_of(self, parts: Mapping[str, Tensor], num_slots_H: Sequence[int], head_dim: int) -> int:
        """By the numbers of slots and columns of each width; where a column ends its head alone says."""
        num_bytes = (sum(num_slots_H) + len(num_slots_H) * head_dim) * WIDTH_BYTES
        for width in CODED_WIDTHS:
            if (scale := parts.get(f"v_scale_{width}")) is not None:
                num_bytes += len(scale) * (head_dim * width // 8 + V_SCALE_BYTES)
            if (scale := parts.get(f"k_scale_{width}")) is not None:
                num_bytes += len(scale) * K_SCALE_BYTES + parts[f"k_codes_{width}"].numel()
        return num_bytes + sum(parts[name].nbytes for name in ("v_plain", "k_plain") if name in parts)

    def encode(self, k_SD: Tensor, v_SD: Tensor, num_slots_H: Sequence[int]) -> dict[str, Tensor]:
        """See `Form.encode`."""
        return self.encode_in(k_SD, v_SD, num_slots_H, None)

    def encode_in(
        self, k_SD: Tensor, v_SD: Tensor, num_slots_H: Sequence[int], widths: Widths | None
    ) -> dict[str, Tensor]:
        """See `Form.encode_in`. Waits for the device where widths are not counted."""
        head_dim, num_heads = k_SD.shape[1], len(num_slots_H)
        if widths is None:
            v_S = torch.full((len(v_SD),), _UNTOLD_WIDTH, dtype=torch.uint8, device=v_SD.device)
            widths = Widths(v_S, v_S.new_full((num_heads, head_dim), _UNTOLD_WIDTH))
        counts = widths.counted(num_slots_H)
        v_count_W = [sum(count_H) for count_H in zip(*counts.v_HW, strict=True)]
        return {
            "v_width": widths.v_S.clone(),
            "k_width": widths.k_HD.clone(memory_format=torch.contiguous_format),
            **_values_encoded(v_SD, widths.v_S, v_count_W),
            **KeyColumns(widths.k_HD, num_slots_H).encoded(k_SD, counts.k_HW),
        }

    def decode(
        self, parts: Mapping[str, Tensor], num_slots_H: Sequence[int], head_dim: int
    ) -> tuple[Tensor, Tensor]:
        """See `Form.decode`. Does not wait for the device."""
        k_SD = KeyColumns(parts["k_width"], num_slots_H).decoded(parts)
        return k_SD, _values_decoded(parts, sum(num_slots_H), head_dim)

    def largest_errors(
        self, k_SD: Tensor, v_SD: Tensor, parts: Mapping[str, Tensor], num_slots_H: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Half a step of every number, and what is not stored whole."""
        columns = KeyColumns(parts["k_width"], num_slots_H)
        k_step_HD, v_step_S = columns.steps(parts), _value_steps(parts)
        rounding_SD = k_SD.float().abs() * _FP32_ROUNDING
        k_error_SD = k_step_HD[columns.head_S] * _MORE_THAN_HALF + rounding_SD
        k_error_SD = torch.where(parts["k_width"][columns.head_S] == 0, k_SD.float().abs(), k_error_SD)
        v_error_SD = v_step_S[:, None] * _MORE_THAN_HALF + v_SD.float().abs() * _FP32_ROUNDING
        v_error_SD = torch.where(parts["v_width"][:, None] == 0, v_SD.float().abs(), v_error_SD)
        return k_error_SD.norm(dim=1), v_error_SD.norm(dim=1)


def _values_encoded(v_SD: Tensor, width_S: Tensor, count_W: Sequence[int]) -> dict[str, Tensor]:
    """The parts of values; slots of one width keep their order."""
    slots_W = width_S.sort(stable=True).indices.split(list(count_W))
    parts = {}
    for width, slot_K in zip(WIDTHS, slots_W, strict=True):
        if not width or not len(slot_K):
            continue
        v_KD = v_SD[slot_K]
        if width == PLAIN_WIDTH:
            parts["v_plain"] = v_KD
            continue
        low_K, high_K = v_KD.float().aminmax(dim=1)
        # Down and up: both ends stay within the codes' reach, and no number is cut.
        offset_K = _in_bf16(low_K, is_up=False)
        scale_K = _in_bf16((high_K - offset_K.float()) / (2**width - 1), is_up=True)
        code_KD = codes_above(v_KD.float(), offset_K.float()[:, None], scale_K.float()[:, None], width)
        parts[f"v_codes_{width}"] = packed(code_KD, width).contiguous()
        parts[f"v_scale_{width}"], parts[f"v_offset_{width}"] = scale_K, offset_K
    return parts


def _values_decoded(parts: Mapping[str, Tensor], num_slots: int, head_dim: int) -> Tensor:
    """Values (S, D), fp32."""
    found = []
    for width in CODED_WIDTHS:
        if (codes := parts.get(f"v_codes_{width}")) is not None:
            scale_K, offset_K = (parts[f"v_{name}_{width}"].float() for name in ("scale", "offset"))
            found.append(offset_K[:, None] + scale_K[:, None] * unpacked(codes, width).float())
    if "v_plain" in parts:
        found.append(parts["v_plain"].float())
    return _spread(found, parts["v_width"], num_slots, (head_dim,))


def _value_steps(parts: Mapping[str, Tensor]) -> Tensor:
    """The step of each slot's codes: fp32 (S,), 0 where there are none."""
    found = [parts[name].float() for width in CODED_WIDTHS if (name := f"v_scale_{width}") in parts]
    if "v_plain" in parts:
        found.append(parts["v_plain"].new_zeros(len(parts["v_plain"]), dtype=torch.float32))
    return _spread(found, parts["v_width"], len(parts["v_width"]), ())


def _spread(found: Sequence[Tensor], width_S: Tensor, num_slots: int, shape: tuple[int, ...]) -> Tensor:
    """What was found of each width, narrow ones first, at the slots that have it; 0 at those of 0 bits."""
    num_found = sum(map(len, found))
    nothing = torch.zeros(num_slots - num_found, *shape, device=width_S.device)
    sorted_SX = torch.cat([nothing, *found])
    # Sorted by width, slots of 0 bits come first: no count has to be fetched.
    return torch.empty_like(sorted_SX).index_copy_(0, width_S.sort(stable=True).indices, sorted_SX)


def _in_bf16(x: Tensor, *, is_up: bool) -> Tensor:
    """fp32 in bf16, rounded up or down."""
    nearest = x.to(torch.bfloat16)
    is_beyond = nearest.float() < x if is_up else nearest.float() > x
    towards = torch.full_like(nearest, math.inf if is_up else -math.inf)
    return torch.where(is_beyond, nearest.nextafter(towards), nearest)

"""What codes mean: numbers to codes and scales, and back, in plain torch. Everything is computed in fp32.

The parts of one side: ``codes`` uint8 (S, B); ``scale`` and, on an unsigned grid, ``offset``, both (S,), (S, blocks) or
(groups, D) by `Per`; ``global``, fp32 (H,), on an E2M1 grid. A number is ``grid[code] · scale (· global) (+ offset)``.

Codes are chosen for the scale and offset as they are stored, rounded to their own dtype.

Shapes: S slots of a layer, its heads one after the other, H heads, D head size, B bytes of a slot's codes, G numbers that
share a scale.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import NormalDist

import torch
from torch import Tensor

from kvmerger.cache.forms.bits import packed, unpacked
from kvmerger.cache.forms.layouts import CodeLayout, Grid, Per
from kvmerger.device import upload

LARGEST_E4M3 = 448.0
LARGEST_E2M1 = 6.0
LARGEST_FP16 = 65504.0
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
Parts = Mapping[str, Tensor]


def encode(x_SD: Tensor, layout: CodeLayout, num_slots_H: Sequence[int]) -> dict[str, Tensor]:
    """Codes and scales of ``x_SD``; every part in a storage of its own. Does not wait for the device."""
    x_SD = x_SD.float()
    if layout.is_rotated:
        x_SD = rotated(x_SD)
    groups = _Groups(layout, num_slots_H, x_SD.shape[1], x_SD.device)
    code_SD, scales = _ENCODERS[layout.grid](x_SD, layout, groups)
    return {"codes": packed(code_SD, layout.bits).contiguous(), **scales}


def decode(parts: Parts, layout: CodeLayout, num_slots_H: Sequence[int], head_dim: int) -> Tensor:
    """The numbers (S, D) that ``parts`` stand for, fp32."""
    code_SD = unpacked(parts["codes"], layout.bits)
    groups = _Groups(layout, num_slots_H, head_dim, code_SD.device)
    x_SD = _numbers(code_SD, layout)
    if "scale" in parts:
        scale = parts["scale"].float()
        if "global" in parts:
            scale = scale * parts["global"][groups.head_S][:, None]
        x_SD = x_SD * groups.spread(scale)
    if "offset" in parts:
        x_SD = x_SD + groups.spread(parts["offset"].float())
    return rotated(x_SD) if layout.is_rotated else x_SD


def largest_error(parts: Parts, layout: CodeLayout, num_slots_H: Sequence[int], x_SD: Tensor) -> Tensor:
    """The most that numbers (S, D) may differ from the decoded, if rotated before that is undone: fp32 (S, D).

    Half a step of the grid around the number, and what rounding scale and offset to their dtypes costs at its ends. Numbers
    beyond what a grid without scale can hold are not bounded: infinity.
    """
    groups = _Groups(layout, num_slots_H, x_SD.shape[1], x_SD.device)
    x_SD = x_SD.float()
    scale = groups.spread(parts["scale"].float()) if "scale" in parts else x_SD.new_ones(())
    if "global" in parts:
        scale = scale * parts["global"][groups.head_S][:, None]
    scale = scale.expand_as(x_SD)
    if layout.is_rotated:
        x_SD = rotated(x_SD)
    x_SD = x_SD.abs()
    match layout.grid:
        case Grid.SIGNED:
            return scale * 0.501
        case Grid.UNSIGNED:
            steps = 0.5 + (2**layout.bits - 1) * 2**-10
            offset = groups.spread(parts["offset"].float()).abs()
            return scale * steps + offset * 2**-10 + 2**-20
        case Grid.E4M3:
            error = torch.maximum(x_SD * 2**-4, scale * 2**-10) * 1.001
            return error.masked_fill(x_SD > LARGEST_E4M3 * scale * 1.001, math.inf)
        case Grid.E2M1:
            # Scales of blocks are 8-bit floats themselves: 1/16 too small at most, and nothing below their least.
            head = parts["global"][groups.head_S][:, None] * 2**-9 * LARGEST_E2M1
            return scale * 1.5 + head
        case Grid.GAUSSIAN:
            return x_SD.norm(dim=1, keepdim=True).expand_as(x_SD) * 1.001


def num_saturated(x_SD: Tensor) -> Tensor:
    """Numbers beyond the largest of an E4M3 grid: int64 of no dimension, on the device."""
    return (x_SD.abs() > LARGEST_E4M3).sum()


def rotated(x_SD: Tensor) -> Tensor:
    """Rows times the orthonormal Hadamard matrix (Sylvester's), which is its own inverse; D is a power of two."""
    # By sums and differences, not by a matrix product, which gives one row alone other bits than beside others.
    shape, half = x_SD.shape, 1
    while half < shape[1]:
        first, second = x_SD.view(-1, 2, half).unbind(1)
        x_SD = torch.stack((first + second, first - second), dim=1)
        half *= 2
    return x_SD.view(shape) * shape[1] ** -0.5


@functools.cache
def gaussian_points(bits: int) -> tuple[float, ...]:
    """The 2^bits numbers that stand for a standard normal one with the least squared error (Lloyd, Max), ascending."""
    normal = NormalDist()
    points = [normal.inv_cdf((index + 0.5) / 2**bits) for index in range(2**bits)]
    for _ in range(1000):
        ends = [
            -math.inf,
            *((low + high) / 2 for low, high in pairwise(points)),
            math.inf,
        ]
        # Each point is the mean of its own part of the distribution.
        points = [
            (normal.pdf(low) - normal.pdf(high)) / (normal.cdf(high) - normal.cdf(low))
            for low, high in pairwise(ends)
        ]
    return tuple(points)


class _Groups:
    """Which numbers of a layer share a scale."""

    def __init__(
        self, layout: CodeLayout, num_slots_H: Sequence[int], head_dim: int, device: torch.device
    ) -> None:
        self.per, self.group, self.head_dim = layout.per, layout.group, head_dim
        self._num_slots_H, self._device = tuple(num_slots_H), device

    @functools.cached_property
    def head_S(self) -> Tensor:
        """Each slot's head, int64."""
        counts_H = upload(self._num_slots_H, self._device)
        heads = torch.arange(len(self._num_slots_H), device=self._device)
        return heads.repeat_interleave(counts_H, output_size=sum(self._num_slots_H))

    @functools.cached_property
    def _group_S(self) -> Tensor:
        """Each slot's group, int64: a head's groups follow those of the heads before it."""
        slot_starts, group_starts, slots, groups = [], [], 0, 0
        for num_slots in self._num_slots_H:
            slot_starts.append(slots)
            group_starts.append(groups)
            slots, groups = slots + num_slots, groups + -(-num_slots // self.group)
        slot_start_S = upload(slot_starts, self._device)[self.head_S]
        group_start_S = upload(group_starts, self._device)[self.head_S]
        index_S = torch.arange(slots, device=self._device) - slot_start_S
        return group_start_S + index_S // self.group

    def ends(self, x_SD: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest number of every group, in the shape of scales."""
        match self.per:
            case Per.SLOT:
                low, high = x_SD.aminmax(dim=1)
            case Per.BLOCK:
                short = -x_SD.shape[1] % self.group
                # A short block is filled up with its last number, which changes neither end.
                x_SD = torch.cat([x_SD, x_SD[:, -1:].expand(-1, short)], dim=1) if short else x_SD
                low, high = x_SD.unflatten(1, (-1, self.group)).aminmax(dim=2)
            case Per.CHANNEL:
                num_groups = sum(-(-num_slots // self.group) for num_slots in self._num_slots_H)
                index_SD = self._group_S[:, None].expand_as(x_SD)
                low, high = (
                    x_SD.new_full((num_groups, x_SD.shape[1]), bound).scatter_reduce_(0, index_SD, x_SD, how)
                    for bound, how in ((math.inf, "amin"), (-math.inf, "amax"))
                )
            case _:
                raise AssertionError(f"{self.per} has no groups")
        return low, high

    def largest(self, x_SD: Tensor) -> Tensor:
        """Largest absolute number of every group, in the shape of scales."""
        low, high = self.ends(x_SD)
        return torch.maximum(-low, high)

    def spread(self, scale: Tensor) -> Tensor:
        """Scales or offsets as something that (S, D) can be multiplied by."""
        match self.per:
            case Per.BLOCK:
                return scale.repeat_interleave(self.group, dim=1)[:, : self.head_dim]
            case Per.CHANNEL:
                return scale[self._group_S]
        return scale[:, None]


def _signed(x_SD: Tensor, layout: CodeLayout, groups: _Groups) -> tuple[Tensor, dict[str, Tensor]]:
    scale = _or_one(groups.largest(x_SD) / 127)
    code_SD = (x_SD / groups.spread(scale)).round_().clamp_(-127, 127)
    return code_SD.to(torch.int8).view(torch.uint8), {"scale": scale}


def _unsigned(x_SD: Tensor, layout: CodeLayout, groups: _Groups) -> tuple[Tensor, dict[str, Tensor]]:
    most = 2**layout.bits - 1
    low, high = groups.ends(x_SD)
    offset = low.clamp(-LARGEST_FP16, LARGEST_FP16).to(torch.float16)
    scale = ((high - low) / most).clamp(max=LARGEST_FP16).to(torch.float16)
    # A group without width, or less than fp16 has: its numbers are all the offset.
    step_SD = groups.spread(_or_one(scale.float()))
    code_SD = ((x_SD - groups.spread(offset.float())) / step_SD).round_().clamp_(0, most)
    return code_SD.to(torch.uint8), {"scale": scale, "offset": offset}


def _e4m3(x_SD: Tensor, layout: CodeLayout, groups: _Groups) -> tuple[Tensor, dict[str, Tensor]]:
    scales = {}
    if layout.per is not Per.NOTHING:
        scales["scale"] = _or_one(groups.largest(x_SD) / LARGEST_E4M3)
        x_SD = x_SD / groups.spread(scales["scale"])
    # The cast makes NaN of what is too large.
    code_SD = x_SD.clamp(-LARGEST_E4M3, LARGEST_E4M3).to(torch.float8_e4m3fn)
    return code_SD.view(torch.uint8), scales


def _e2m1(x_SD: Tensor, layout: CodeLayout, groups: _Groups) -> tuple[Tensor, dict[str, Tensor]]:
    largest = groups.largest(x_SD)
    largest_H = largest.new_zeros(len(groups._num_slots_H))
    largest_H.scatter_reduce_(0, groups.head_S, largest.amax(dim=1), "amax")
    global_H = _or_one(largest_H / (LARGEST_E2M1 * LARGEST_E4M3))
    of_head_S1 = global_H[groups.head_S][:, None]
    scale = (largest / LARGEST_E2M1 / of_head_S1).clamp(max=LARGEST_E4M3).to(torch.float8_e4m3fn)
    # A block whose scale rounds to 0 is all zeros, whatever its codes.
    step_SD = groups.spread(_or_one(scale.float()) * of_head_S1)
    magnitude_SD = torch.bucketize((x_SD / step_SD).abs(), _e2m1_midpoints(x_SD.device))
    code_SD = magnitude_SD | (x_SD < 0).long() << 3
    return code_SD.to(torch.uint8), {"scale": scale, "global": global_H}


def _gaussian(x_SD: Tensor, layout: CodeLayout, groups: _Groups) -> tuple[Tensor, dict[str, Tensor]]:
    points = x_SD.new_tensor(gaussian_points(layout.bits))
    norm_S = x_SD.norm(dim=1)
    unit_SD = x_SD / _or_one(norm_S)[:, None] * x_SD.shape[1] ** 0.5
    code_SD = torch.bucketize(unit_SD, (points[1:] + points[:-1]) / 2)
    # So that the decoded vector is as long as the one it stands for (TurboQuant's norm correction, as vLLM does it).
    scale_S = norm_S / points[code_SD].norm(dim=1)
    return code_SD.to(torch.uint8), {"scale": scale_S.clamp(max=LARGEST_FP16).to(torch.float16)}


_ENCODERS = {
    Grid.SIGNED: _signed,
    Grid.UNSIGNED: _unsigned,
    Grid.E4M3: _e4m3,
    Grid.E2M1: _e2m1,
    Grid.GAUSSIAN: _gaussian,
}


def _numbers(code_SD: Tensor, layout: CodeLayout) -> Tensor:
    """What codes stand for on their grid, fp32."""
    match layout.grid:
        case Grid.SIGNED:
            return code_SD.view(torch.int8).float()
        case Grid.E4M3:
            return code_SD.view(torch.float8_e4m3fn).float()
        case Grid.UNSIGNED:
            return code_SD.float()
    is_e2m1 = layout.grid is Grid.E2M1
    points = (*_E2M1, *(-point for point in _E2M1)) if is_e2m1 else gaussian_points(layout.bits)
    return torch.tensor(points, device=code_SD.device)[code_SD.long()]


def _e2m1_midpoints(device: torch.device) -> Tensor:
    midpoints = torch.tensor([(low + high) / 2 for low, high in pairwise(_E2M1)])
    # A number in the middle goes to the code that is even: up at every second one, and `bucketize` rounds down there.
    is_up = torch.arange(len(midpoints)) % 2 == 1
    return torch.where(is_up, midpoints.nextafter(torch.zeros(())), midpoints).to(device)


def _or_one(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)

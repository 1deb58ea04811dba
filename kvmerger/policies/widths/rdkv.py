"""RDKV: a token's value and a key's channel get the bits that they are worth; a token without bits is evicted.

Bytes are what is really held: codes padded to bytes, scales, smallest numbers and the widths themselves; a head never takes
more than it is given.

Shapes: Q query heads, H KV heads, N tokens, S kept slots of all heads, D head size, J steps between widths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from kvmerger.budget import AskedBudget, Budget, BudgetError, BudgetSpec
from kvmerger.byte_counts import ByteCount
from kvmerger.cache.forms.mixed_widths import K_SCALE_BYTES, V_SCALE_BYTES, WIDTH_BYTES, MixedWidths
from kvmerger.cache.forms.widths import PLAIN_WIDTH, WIDTHS, WidthCounts, Widths, is_width
from kvmerger.cache.head_counters import PerHead
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.device import upload
from kvmerger.policies.base import CacheShape, Policy, PolicyError
from kvmerger.policies.parameters import is_number
from kvmerger.policies.ranking.rdkv import RDKVRanking
from kvmerger.policies.registry import register
from kvmerger.policies.selection import take_marked
from kvmerger.policies.widths.water_filling import steps_taken
from kvmerger.prefill.channel_power import KEY_POWER, KEY_VARIANCE, window_query_power
from kvmerger.prefill.evidence import Evidence, Need

# Mean squared error of a number stored in so many bits by `MixedWidths`: of a value as a share of its mean square, of a key
# as a share of its channel's variance. Measured on the demo model (SmolLM2-135M, fp32, our licence as text) by
# `bench/engine/width_errors.py`, the mean over its layers; the authors' means for Llama-3.1-8B are within a factor 2.5.
V_ERROR = {0: 1.0, 2: 0.256, 4: 0.0102, 8: 3.63e-5, PLAIN_WIDTH: 0.0}
K_ERROR = {0: 1.0, 2: 0.345, 4: 0.0136, 8: 4.70e-5, PLAIN_WIDTH: 0.0}
_KEYS_AND_VALUES = 2
_STEPS_OF_SHARE = 10**6
_LEAST_WIDTHS = 2  # none at all, and another


@register("rdkv")
@dataclass(frozen=True)
class RDKV(Policy):
    """Give each token's value and each channel of the keys the bits that its attention is worth, none at all among them.

    Based on RDKV (arXiv 2605.08317), reverse water-filling: a token weighs what the last queries attend to it, a channel of a
    head's keys the mean square of those queries there. Where the authors search for a multiplier and may go over by 1 %,
    steps to the next width are taken by what they take off the weighted error per byte, and the first that does not fit ends
    it. First values get their share of the head's bytes, and tokens without bits are gone; then the kept tokens' keys get the
    rest. Bytes are those really held, not 16-bit equivalents. Without a channel its mean is lost too, so dropping one is
    weighed by its mean square and coding it by its variance; the authors weigh both by the mean square. ``rdkv+int4`` and its
    like are the ranking alone, with one width (`RDKVRanking`).

    Attributes:
        window_size: last tokens whose attention and queries count.
        kernel_size: neighbours over which attention is averaged, reflected at either end; odd.
        widths: bits that there are: 0, and any of 2, 4, 8 and 16, which stands for the model's own dtype.
        key_share: what of a head's bytes is the keys'.
    """

    window_size: int = 32
    kernel_size: int = 5
    widths: tuple[int, ...] = WIDTHS
    key_share: float = 0.5

    version = 2
    heads_differ = True
    compresses_stacks = True
    form = MixedWidths()
    spends_bytes = True

    def __post_init__(self) -> None:
        """Refuse an empty window, an even kernel, widths that there are not, and a share that leaves one side nothing."""
        RDKVRanking(self.window_size, self.kernel_size)
        _require_widths(self.widths)
        if not (is_number(self.key_share) and 0 < self.key_share < 1):
            raise PolicyError(f"rdkv: key_share is a share between 0 and 1, got {self.key_share!r}")

    def needs(self) -> frozenset[Need]:
        """The window's attention and the power of its queries; of keys what does not read queries."""
        return self._ranking.needs() | {window_query_power(self.window_size), KEY_POWER, KEY_VARIANCE}

    def budget_refusal(self, budget: AskedBudget | None) -> str | None:
        """Bytes alone, with what takes the others."""
        refusal = super().budget_refusal(budget)
        return refusal and f"{refusal}. `rdkv+int4`, its ranking with one width, takes every budget"

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """The prompt must be longer than the window, and a head's bytes must hold a slot."""
        self._ranking.check(shape, budget)
        if shape.head_dim is None or shape.itemsize is None:
            return
        self.form.check(shape.head_dim)
        if isinstance(budget, ByteCount):
            self._require_room(budget.num_bytes, shape.num_tokens, shape.head_dim, shape.itemsize)

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """The tokens whose values have bits, plain, with the widths that they are to be stored in; all where all fits plain.

        Raises:
            BudgetError: the budget is none of bytes, or holds no slot.
        """
        if budget.num_bytes_H is None:
            raise BudgetError(
                "rdkv spends bytes, and was given slots: give it a budget such as {bytes: 0.25}"
            )
        itemsize, num_tokens = layer.dtype.itemsize, evidence.num_tokens
        self._require_room(min(budget.num_bytes_H), num_tokens, layer.head_dim, itemsize)
        if min(budget.num_bytes_H) >= _KEYS_AND_VALUES * num_tokens * layer.head_dim * itemsize:
            return layer
        rest_H = upload(budget.num_bytes_H, layer.device) - layer.head_dim * WIDTH_BYTES
        v_width_HN, v_bytes_H = self._widths_of_values(evidence, budget, rest_H, layer.head_dim, itemsize)
        is_kept_HN = v_width_HN > 0
        k_width_HD = self._widths_of_keys(evidence, rest_H - v_bytes_H, is_kept_HN.sum(dim=1), itemsize)
        # All that is to be known of both sides, in one go: the device is waited for here and nowhere else.
        counts_2HW = torch.stack([is_width(width).sum(dim=1) for width in (v_width_HN, k_width_HD)]).tolist()
        counts = WidthCounts([[0, *of_head[1:]] for of_head in counts_2HW[0]], counts_2HW[1])
        kept = take_marked(layer, is_kept_HN, tuple(map(sum, counts.v_HW)))
        widths = Widths(v_width_HN[kept.head_S, kept.position_S.long()], k_width_HD, counts)
        counters = {"num_dropped_channels": PerHead((k_width_HD == 0).sum(dim=1))}
        return replace(kept, widths=widths).counting(counters)

    def _widths_of_values(
        self, evidence: Evidence, budget: Budget, rest_H: Tensor, head_dim: int, itemsize: int
    ) -> tuple[Tensor, Tensor]:
        """Each token's width, uint8 (H, N), and the bytes of a head's values, int64 (H,)."""
        weight_HN = self._ranking.checked_scores(evidence, budget)
        falls = torch.tensor([V_ERROR[low] - V_ERROR[high] for low, high in self._steps])
        fall_J = upload(falls, weight_HN.device)
        cost_J = _value_costs(self.widths, head_dim, itemsize)
        cost_HJ = upload(cost_J, weight_HN.device).expand(len(weight_HN), -1)
        # fp64: the share of a whole number of bytes, rounded down. What keys could not use is the values' too.
        share_H = (rest_H.double() * (1 - self.key_share)).floor().long()
        num_tokens_H = torch.full_like(rest_H, evidence.num_tokens)
        most_keys_H = head_dim * _key_bytes(num_tokens_H, self.widths[-1], itemsize)
        budget_H = torch.maximum(share_H, rest_H - most_keys_H)
        level_HN = steps_taken(weight_HN[:, None] * fall_J[:, None], cost_HJ, budget_H)
        bytes_of_level = upload([sum(cost_J[:level]) for level in range(len(cost_J) + 1)], weight_HN.device)
        return self._width_of(level_HN), bytes_of_level[level_HN].sum(dim=1)

    def _widths_of_keys(self, evidence: Evidence, rest_H: Tensor, length_H: Tensor, itemsize: int) -> Tensor:
        """Each channel's width, uint8 (H, D), in the bytes that are left for the keys of so many tokens."""
        weight_HD = evidence.get(window_query_power(self.window_size))
        power_HD, variance_HD = evidence.get(KEY_POWER), evidence.get(KEY_VARIANCE)
        gains, costs = [], []
        for low, high in self._steps:
            lost_HD = power_HD if low == 0 else variance_HD * K_ERROR[low]
            gains.append(weight_HD * (lost_HD - variance_HD * K_ERROR[high]).clamp_min(0))
            costs.append(_key_bytes(length_H, high, itemsize) - _key_bytes(length_H, low, itemsize))
        level_HD = steps_taken(torch.stack(gains, dim=1), torch.stack(costs, dim=1), rest_H)
        return self._width_of(level_HD)

    def _require_room(self, num_bytes: int, num_tokens: int, head_dim: int, itemsize: int) -> None:
        """Raise `BudgetError` unless ``num_bytes`` of a head hold the narrowest value and a column of its key."""
        value = _value_costs(self.widths, head_dim, itemsize)[0]
        column = itemsize if self.widths[1] == PLAIN_WIDTH else 1
        of_sides = math.ceil(value / (1 - self.key_share)), value + K_SCALE_BYTES + column
        least = head_dim * WIDTH_BYTES + max(of_sides)
        full = _KEYS_AND_VALUES * num_tokens * head_dim * itemsize
        if num_bytes >= min(least, full):
            return
        share = math.ceil(least * _STEPS_OF_SHARE / full) / _STEPS_OF_SHARE
        remedy = f"give {{bytes: {share}}} or more" if share <= 1 else "leave out such short prompts"
        raise BudgetError(
            f"rdkv: the budget is {num_bytes} bytes a head on {num_tokens} tokens, and one slot takes {least} with scales "
            f"and widths; {remedy}"
        )

    def _width_of(self, level: Tensor) -> Tensor:
        return upload(torch.tensor(self.widths, dtype=torch.uint8), level.device)[level]

    @property
    def _ranking(self) -> RDKVRanking:
        return RDKVRanking(self.window_size, self.kernel_size)

    @property
    def _steps(self) -> Sequence[tuple[int, int]]:
        return list(pairwise(self.widths))


def _value_costs(widths: Sequence[int], head_dim: int, itemsize: int) -> list[int]:
    """Bytes of each step of a token's value; a step to plain numbers gives the scale's bytes back."""

    def num_bytes(width: int) -> int:
        if width == PLAIN_WIDTH:
            return head_dim * itemsize + WIDTH_BYTES
        return head_dim * width // 8 + V_SCALE_BYTES + WIDTH_BYTES if width else 0

    return [num_bytes(high) - num_bytes(low) for low, high in pairwise(widths)]


def _key_bytes(length_H: Tensor, width: int, itemsize: int) -> Tensor:
    """Bytes of a column of each head's keys: int64 (H,). Plain ones are charged a scale too: no step gives any back."""
    if not width:
        return torch.zeros_like(length_H)
    codes_H = length_H * itemsize if width == PLAIN_WIDTH else (length_H * width + 7) // 8
    return codes_H + K_SCALE_BYTES


def _require_widths(widths: object) -> None:
    # True is 1 and 4.0 is 4 in Python, and neither is a number of bits.
    if (
        not isinstance(widths, tuple)
        or len(widths) < _LEAST_WIDTHS
        or any(type(width) is not int or width not in WIDTHS for width in widths)
    ):
        raise PolicyError(f"rdkv: widths are 0 and any of {WIDTHS[1:]}, as in [0, 4, 8], got {widths!r}")
    if widths[0] != 0 or list(widths) != sorted(set(widths)):
        raise PolicyError(f"rdkv: widths begin with 0 and rise, as in [0, 4, 8], got {list(widths)}")

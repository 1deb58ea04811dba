"""The rows of a batch whose policies act during decoding; the batch's other rows have nothing to do with them.

An error that a rule raises, which may be a user's own code, ends its own row: that is fed no more and comes back as failed.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kvmerger.decoding.acting_row import DecodingRow
from kvmerger.decoding.decode_rule import DecodeRule
from kvmerger.decoding.extend import Extended
from kvmerger.decoding.ragged_cache import RaggedCache
from kvmerger.device import now_s
from kvmerger.kernels.reference.ragged import SlotMass


@dataclass(frozen=True, slots=True)
class RuleFailure:
    """Why a row could not go on."""

    error_type: str
    message: str
    traceback: str


class DecodingRows:
    """The decode rules of a batch's rows, by row index; often none."""

    def __init__(self, rule_by_row: Mapping[int, DecodeRule], device: torch.device) -> None:
        self.failures: dict[int, RuleFailure] = {}
        self.seconds = 0.0
        """Spent by rules and on moving slots since the batch was made."""
        self._rule_by_row = rule_by_row
        self._device = device
        self._row_by_index: dict[int, DecodingRow] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._rule_by_row

    def __getitem__(self, index: int) -> DecodingRow:
        return self._row_by_index[index]

    def asking(self, feed_R: Sequence[Sequence[int]]) -> list[int]:
        """Rows that are fed and whose rules read attention."""
        return [index for index, rule in self._rule_by_row.items() if feed_R[index] and rule.reads_attention]

    def take_over(self, cache: RaggedCache, tails: Extended) -> None:
        """Begin with ``cache`` as it is once the ``tails`` have been read; `restart` makes the rows ready to answer."""

        def begin(index: int, rule: DecodeRule) -> None:
            self._row_by_index[index] = DecodingRow(rule, cache, index, _mass_of(tails, index))

        self._attempt({index: partial(begin, index, rule) for index, rule in self._rule_by_row.items()})

    def restart(self) -> None:
        """Put every row back to where it had just read its tail."""
        self._attempt({index: row.restart for index, row in self._row_by_index.items()})

    def settle(self, feed_R: Sequence[Sequence[int]], extended: Extended) -> None:
        """Let the rules act on the one token that each row with something in ``feed_R`` has just read."""
        self._attempt(
            {
                index: partial(row.settle, _mass_of(extended, index))
                for index, row in self._row_by_index.items()
                if feed_R[index]
            }
        )

    def have_own_slots(self, indices: Collection[int]) -> bool:
        """Whether all rows with a rule among ``indices`` have used up their room."""
        return all(row.has_own_slots for index, row in self._row_by_index.items() if index in indices)

    def acting(self, indices: Collection[int]) -> ActingRows:
        """The rows among ``indices`` that have slots of their own."""
        return ActingRows({index: row for index, row in self._row_by_index.items() if index in indices})

    def _attempt(self, action_by_index: Mapping[int, Callable[[], None]]) -> None:
        # The clock below waits for the device twice a step, which a batch without rules must not pay for.
        if not action_by_index:
            return
        start_s = now_s(self._device)
        for index, act in action_by_index.items():
            if index in self.failures:
                continue
            try:
                act()
            except torch.OutOfMemoryError:
                raise  # the batch is too large; no rule is to blame
            # The rule may be a user's: its error is its own row's, not the batch's.
            except Exception as error:  # noqa: BLE001
                self.failures[index] = RuleFailure(type(error).__name__, str(error), traceback.format_exc())
        self.seconds += now_s(self._device) - start_s


class ActingRows:
    """Rows with slots of their own, all kept going by the device. Their errors are not told apart by row."""

    def __init__(self, row_by_index: Mapping[int, DecodingRow]) -> None:
        self._row_by_index = dict(row_by_index)

    def __bool__(self) -> bool:
        return bool(self._row_by_index)

    @property
    def asking(self) -> list[int]:
        """Rows whose rules read attention."""
        return [index for index, row in self._row_by_index.items() if row.rule.reads_attention]

    @property
    def rule_names(self) -> frozenset[str]:
        """Which kinds of rules there are."""
        return frozenset(type(row.rule).__qualname__ for row in self._row_by_index.values())

    def settle_on_device(self, mass_by_row_L: Sequence[Mapping[int, SlotMass]], num_new_R: Tensor) -> None:
        """Let every rule act on the token that its row has just read, if it has."""
        for index, row in self._row_by_index.items():
            mass_L = [mass_by_row[index] for mass_by_row in mass_by_row_L if index in mass_by_row]
            if (
                mass_L or not row.rule.reads_attention
            ):  # else an idle row, for which the reference returns no mass
                row.settle_on_device(mass_L or None, num_new_R[index] > 0)

    def count_settled(self, num_read_R: Sequence[int]) -> None:
        """Tell every row how many tokens it has read on the device."""
        for index, row in self._row_by_index.items():
            row.count_settled(num_read_R[index])


def _mass_of(extended: Extended, index: int) -> list[SlotMass] | None:
    """Attention that a row paid, layer by layer; None when it did not ask."""
    mass_L = [mass_by_row[index] for mass_by_row in extended.mass_by_row_L if index in mass_by_row]
    return mass_L or None

"""The rows of a batch whose policies act during decoding; the batch's other rows have nothing to do with them.

An error that a rule raises, which may be a user's own code, ends its own row: that is fed no more and comes back as failed.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from kvmerger.decoding.acting_row import DecodingRow
from kvmerger.decoding.decode_rule import AnswerRule, DecodeRule
from kvmerger.decoding.extend import Extended
from kvmerger.decoding.periodic_row import PeriodicRow
from kvmerger.decoding.periodic_rule import NewQueries, PeriodicRule
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

    def __init__(
        self, rule_by_row: Mapping[int, AnswerRule], device: torch.device, rotary: nn.Module
    ) -> None:
        self.failures: dict[int, RuleFailure] = {}
        self.seconds = 0.0
        """Spent by rules and on moving slots since the batch was made."""
        self._rule_by_row = rule_by_row
        self._device = device
        self._rotary = rotary
        self._row_by_index: dict[int, DecodingRow | PeriodicRow] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._rule_by_row

    def __getitem__(self, index: int) -> DecodingRow | PeriodicRow:
        return self._row_by_index[index]

    def asking(self, feed_R: Sequence[Sequence[int]]) -> list[int]:
        """Rows that are fed and whose rules read attention."""
        return [index for index, rule in self._rule_by_row.items() if feed_R[index] and rule.reads_attention]

    def asking_queries(self, feed_R: Sequence[Sequence[int]]) -> dict[int, int]:
        """How many of its newest queries each row wants that is fed and whose rule reads some."""
        return {
            index: rule.num_queries
            for index, rule in self._rule_by_row.items()
            if feed_R[index] and isinstance(rule, PeriodicRule) and rule.num_queries
        }

    def take_over(self, cache: RaggedCache, tails: Extended) -> None:
        """Begin with ``cache`` as it is once the ``tails`` have been read; `restart` makes the rows ready to answer."""

        def begin(index: int, rule: AnswerRule) -> None:
            # The two kinds are kept by unlike means; this is the one place where they are told apart.
            if isinstance(rule, PeriodicRule):
                self._row_by_index[index] = PeriodicRow(
                    rule, cache, index, _queries_of(tails, index), self._rotary
                )
            else:
                assert isinstance(rule, DecodeRule), "a rule is of one kind or the other"
                self._row_by_index[index] = DecodingRow(rule, cache, index, _mass_of(tails, index))

        self._attempt({index: partial(begin, index, rule) for index, rule in self._rule_by_row.items()})

    def restart(self) -> None:
        """Put every row back to where it had just read its tail."""
        self._attempt({index: row.restart for index, row in self._row_by_index.items()})

    def settle(self, feed_R: Sequence[Sequence[int]], extended: Extended) -> None:
        """Let the rules act on the one token that each row with something in ``feed_R`` has just read."""
        self._attempt(
            {
                index: partial(_settle, row, extended, index)
                for index, row in self._row_by_index.items()
                if feed_R[index]
            }
        )

    def count_settled(self, num_read_R: Sequence[int]) -> None:
        """Tell every row how many tokens it has read on the device, and cache as well; those cut that have to."""
        self._attempt(
            {
                index: partial(row.count_settled, num_read_R[index])
                for index, row in self._row_by_index.items()
                if num_read_R[index]
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

    def __init__(self, row_by_index: Mapping[int, DecodingRow | PeriodicRow]) -> None:
        self._row_by_index = dict(row_by_index)

    def __bool__(self) -> bool:
        """Whether a step does more for these rows than for others: one whose rule reads no queries acts between steps."""
        return bool(self._in_steps)

    @property
    def token(self) -> Hashable:
        """Equal as long as a recorded step with these rows is good for them."""
        return tuple((index, id(row), row.token) for index, row in self._in_steps.items())

    @property
    def steps_until_cut(self) -> int | None:
        """Steps until the first of these rows has to be cut down between two of them; None: never."""
        return min(
            (row.steps_until_cut for row in self._row_by_index.values() if isinstance(row, PeriodicRow)),
            default=None,
        )

    @property
    def _in_steps(self) -> dict[int, DecodingRow | PeriodicRow]:
        return {
            index: row
            for index, row in self._row_by_index.items()
            if not isinstance(row, PeriodicRow) or row.rule.num_queries
        }

    @property
    def asking_queries(self) -> list[int]:
        """Rows whose rules read queries."""
        return [index for index, row in self._in_steps.items() if isinstance(row, PeriodicRow)]

    @property
    def asking(self) -> list[int]:
        """Rows whose rules read attention."""
        return [index for index, row in self._row_by_index.items() if row.rule.reads_attention]

    @property
    def rule_names(self) -> frozenset[str]:
        """Which kinds of rules there are."""
        return frozenset(type(row.rule).__qualname__ for row in self._in_steps.values())

    def settle_on_device(
        self,
        mass_by_row_L: Sequence[Mapping[int, SlotMass]],
        queries_by_row_L: Sequence[Mapping[int, NewQueries]],
        num_new_R: Tensor,
    ) -> None:
        """Let every rule act on the token that its row has just read, if it has."""
        for index, row in self._in_steps.items():
            if isinstance(row, PeriodicRow):
                row.settle_on_device([by_row[index] for by_row in queries_by_row_L], num_new_R[index] > 0)
                continue
            mass_L = [mass_by_row[index] for mass_by_row in mass_by_row_L if index in mass_by_row]
            if (
                mass_L or not row.rule.reads_attention
            ):  # else an idle row, for which the reference returns no mass
                row.settle_on_device(mass_L or None, num_new_R[index] > 0)


def _settle(row: DecodingRow | PeriodicRow, extended: Extended, index: int) -> None:
    if isinstance(row, PeriodicRow):
        row.settle(_queries_of(extended, index))
    else:
        row.settle(_mass_of(extended, index))


def _queries_of(extended: Extended, index: int) -> list[NewQueries]:
    """A row's newest queries, layer by layer; empty when it asked for none."""
    return [by_row[index] for by_row in extended.queries_by_row_L if index in by_row]


def _mass_of(extended: Extended, index: int) -> list[SlotMass] | None:
    """Attention that a row paid, layer by layer; None when it did not ask."""
    mass_L = [mass_by_row[index] for mass_by_row in extended.mass_by_row_L if index in mass_by_row]
    return mass_L or None

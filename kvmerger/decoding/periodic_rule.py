"""What a policy does to its rows once in a while: every so many tokens all that is held is ranked, and the best stay.

Between two cuts a row is as any other: its slots stand before a tail that grows. The slots of each layer have as many in
every head, in the order of the text, so that a ranking made for prompts can be asked about them.

Shapes: H KV heads, Q query heads, N slots held per head, W newest queries, D head size.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from kvmerger.decoding.decode_rule import AnswerRule


class NewQueries(NamedTuple):
    """Queries after RoPE of one row's newest tokens in one layer (Q, T, D), and what products with keys are scaled by."""

    q_QTD: Tensor
    scaling: float


@dataclass(frozen=True, slots=True)
class HeldSlots:
    """One layer of a row at a cut, prefix and tail together. Read-only.

    Attributes:
        k_HND, v_HND, position_HN: slots in the order of the text.
        q_QWD: queries of the newest W tokens, which are the last W slots; None where the rule asks for none.
        scaling: of products of queries and keys; of no meaning without queries.
        cut_index: cuts of this answer before this one.
        rotary: the model's rotary embedding; None where there is no model.
    """

    k_HND: Tensor
    v_HND: Tensor
    position_HN: Tensor
    q_QWD: Tensor | None
    scaling: float
    layer_index: int
    num_layers: int
    cut_index: int
    rotary: nn.Module | None = None


@dataclass(frozen=True)
class PeriodicRule(AnswerRule):
    """Base of rules that rank all that is held every so many tokens.

    Attributes:
        every: tokens between two cuts. A row holds at most its target and so many, or its question where that is longer.
        target: slots per head that a cut leaves; None: as many as each layer had when the answer began.
        num_held: slots per head when the answer begins, question included; only where there is a target.
    """

    is_periodic: ClassVar[bool] = True

    every: int
    target: int | None = None
    num_held: int = 0

    @property
    def num_queries(self) -> int:
        """How many of the newest tokens' queries `scores` reads; no more than come between two cuts."""
        return 0

    @abc.abstractmethod
    def scores(self, held: HeldSlots, num_slots: int) -> Tensor:
        """How much each slot is worth keeping, of which ``num_slots`` per head will stay: floats (H, N), ``inf`` for a must.

        Of equal ones the slot that stands first in the text stays. Waits for nothing.
        """

    def bounded(self, num_held: int, most_slots: int) -> PeriodicRule:
        """This rule with so many slots as its target."""
        return replace(self, target=most_slots, num_held=num_held)

    def most_tail_tokens(self, num_tail: int, num_new: int) -> int:
        """A period; before the first cut, what the target leaves room for."""
        first = self.every
        if self.target is not None:
            first = max(self.target + self.every - (self.num_held - num_tail), self.every)
        return max(num_tail, min(first, num_tail + num_new))

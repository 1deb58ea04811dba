"""What a policy does between two tokens of an answer. Here: one slot leaves for every token that comes.

A rule is a frozen dataclass of its parameters. What has to be remembered (attention received so far, positions) lives in the
slots it acts on (`own_slots.OwnSlots`); a rule is shown them and says which one leaves, and which others inherit its value.
All it computes has shapes that do not change from step to step, and nothing waits for the device: steps are recorded.

Shapes: L layers, H KV heads, X columns (slots of the longest head, then the token just read), M heirs.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor


class DecodeRuleError(ValueError):
    """Parameters a decode rule does not accept, or an answer of the rule that cannot be carried out."""


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """A row's slots right after it has read a token of its answer. Read-only.

    The last column is that token, in every head. Columns are in no order but that; heads shorter than the longest have
    columns with nothing in them, where all numbers are meaningless.

    Attributes:
        position_LHX: int32, where in prompt and answer each slot stands.
        is_held_LHX: bool, whether there is a slot.
        attention_LHX: fp32, what the token just read paid to each slot, mean over the query heads of a group; None unless
            the rule `reads_attention`.
        score_LHX: fp32, attention received so far, this step's included: what `LayerCache.score_S` held after prefill,
            then what the tail and every token of the answer paid. None where the policy left no scores.
        num_read: int64 of no dimension, tokens of the answer read before this one.
    """

    position_LHX: Tensor
    is_held_LHX: Tensor
    attention_LHX: Tensor | None
    score_LHX: Tensor | None
    num_read: Tensor

    @property
    def newest_position(self) -> Tensor:
        """Where the token just read stands: int32 (L, H, 1)."""
        return self.position_LHX[:, :, -1:]


class Heirs(NamedTuple):
    """Who gets the leaving slot's value: each heir's value grows by its weight times that value.

    column_LHM: int64, distinct among the heirs with a weight. weight_LHM: fp32; 0 for no heir at all.
    """

    column_LHM: Tensor
    weight_LHM: Tensor


@dataclass(frozen=True)
class AnswerRule(abc.ABC):
    """Base of all that a policy does to its rows while they answer; a policy names its own in `Policy.decode_rule`."""

    reads_attention: ClassVar[bool] = False
    """Whether attention that new tokens pay is wanted, slot by slot (a sum per layer and step)."""
    is_periodic: ClassVar[bool] = False
    """Whether it lets many slots leave at a time (`PeriodicRule`), in place of one for each token (`DecodeRule`)."""

    room: int = field(default=0, kw_only=True)

    @abc.abstractmethod
    def bounded(self, num_held: int, most_slots: int) -> AnswerRule:
        """This rule for a row that begins to answer with ``num_held`` slots in every head and may hold ``most_slots``."""

    @abc.abstractmethod
    def most_tail_tokens(self, num_tail: int, num_new: int) -> int:
        """The longest that the tail of a row gets which has read ``num_tail`` tokens and reads up to ``num_new`` more."""


@dataclass(frozen=True)
class DecodeRule(AnswerRule):
    """Base of rules that let one slot leave for every token that comes.

    Attributes:
        room: tokens of the answer that come before the first slot leaves. Until then a row answers bit for bit as
            without the rule; from then on the number of its slots is constant.
    """

    @abc.abstractmethod
    def worth(self, step: DecodeStep) -> Tensor:
        """How much each slot is worth keeping: floats (L, H, X), ``inf`` for what must stay.

        In each head the slot worth least leaves, of equals the one that stands first in the text. The token just read
        is one of the columns: where it is worth least it leaves at once. Where all must stay, the first leaves.
        """

    def bounded(self, num_held: int, most_slots: int) -> DecodeRule:
        """This rule, with as much room as is left."""
        return replace(self, room=most_slots - num_held)

    def most_tail_tokens(self, num_tail: int, num_new: int) -> int:
        """As long as there is room; from then on a tail holds the newest token alone."""
        return num_tail + min(self.room, num_new)

    def heirs(self, step: DecodeStep, leaving_LH: Tensor) -> Heirs | None:
        """Who inherits the values of the columns ``leaving_LH`` (int64); None, as here, when they are dropped."""
        return None


def require_rule(declared: object) -> AnswerRule | None:
    """``declared``, what a policy's ``decode_rule`` gave, where a row can be kept under it; None is no rule.

    Raises:
        DecodeRuleError: it is no rule, or one whose attributes have no meaning.
    """
    if declared is None:
        return None
    if not isinstance(declared, AnswerRule):
        raise DecodeRuleError(
            f"decode_rule() must give an instance of a DecodeRule, or None, got {declared!r}"
        )
    name, room, reads_attention = type(declared).__name__, declared.room, declared.reads_attention
    if isinstance(room, bool) or not isinstance(room, int) or room < 0:
        raise DecodeRuleError(f"{name}.room must be a whole number of tokens from 0 on, got {room!r}")
    if not isinstance(reads_attention, bool):
        raise DecodeRuleError(f"{name}.reads_attention must be True or False, got {reads_attention!r}")
    return declared


class Choice(NamedTuple):
    """The column that leaves in each head, int64 (L, H), and whether a held slot's worth is NaN: bool of no dimension."""

    column_LH: Tensor
    has_nan: Tensor


def choose(worth_LHX: object, step: DecodeStep) -> Choice:
    """The column that is worth least in each head; see `DecodeRule.worth`. Does not wait for the device.

    Where a worth is NaN the column is any of the head's, which means nothing.

    Raises:
        DecodeRuleError: ``worth_LHX`` is not what `DecodeRule.worth` gives for the step.
    """
    shape = tuple(step.position_LHX.shape)
    if not isinstance(worth_LHX, Tensor) or not worth_LHX.is_floating_point():
        got = worth_LHX.dtype if isinstance(worth_LHX, Tensor) else f"{worth_LHX!r:.100}"
        raise DecodeRuleError(f"worth must be a tensor of floats {shape}, got {got}")
    if tuple(worth_LHX.shape) != shape:
        raise DecodeRuleError(
            f"worth has shape {tuple(worth_LHX.shape)}; one number per layer, KV head and column is needed: {shape}"
        )
    # Not `argmin` of the worth: which of equal columns that takes is open, and columns are in no order.
    worth_LHX = worth_LHX.masked_fill(~step.is_held_LHX, float("inf"))
    least_LH1 = worth_LHX.amin(dim=2, keepdim=True)
    # Again at the end: where all that is held is worth inf, the empty columns tie with it.
    is_least_LHX = (worth_LHX == least_LH1) & step.is_held_LHX
    last = torch.iinfo(step.position_LHX.dtype).max
    # A minimum over NaN is NaN, which differs from itself.
    return Choice(
        step.position_LHX.masked_fill(~is_least_LHX, last).argmin(dim=2), (least_LH1 != least_LH1).any()
    )


def require_heirs(heirs: object, leaving_LH: Tensor) -> Heirs | None:
    """``heirs``, what a rule's ``heirs`` gave, where values can be handed on by it; None is no heir.

    Raises:
        DecodeRuleError: it is no `Heirs`, or one whose tensors do not fit.
    """
    if heirs is None:
        return None
    if not isinstance(heirs, Heirs) or not all(isinstance(tensor, Tensor) for tensor in heirs):
        raise DecodeRuleError(f"heirs() must give Heirs or None, got {heirs!r:.100}")
    column_LHM, weight_LHM = heirs
    is_fitting = column_LHM.shape == weight_LHM.shape and column_LHM.shape[:-1] == leaving_LH.shape
    if not is_fitting or column_LHM.dtype != torch.int64 or not weight_LHM.is_floating_point():
        raise DecodeRuleError(
            f"heirs need columns (torch.int64) and weights (floats), both (L, H, M) with (L, H) = {tuple(leaving_LH.shape)}; "
            f"got {column_LHM.dtype} {tuple(column_LHM.shape)} and {weight_LHM.dtype} {tuple(weight_LHM.shape)}"
        )
    return heirs

"""What a policy does between two tokens of an answer: one slot leaves for every token that comes.

A rule is a frozen dataclass of its parameters. What has to be remembered (attention received so far, positions) lives in the
slots it acts on (`own_slots.OwnSlots`); a rule is shown them and says which one leaves, and which others inherit its value.
All it computes has shapes that do not change from step to step, and nothing waits for the device: steps are recorded.

Shapes: L layers, H KV heads, X columns (slots of the longest head, then the token just read), M heirs.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
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
class DecodeRule(abc.ABC):
    """Base of all rules; a policy names its own in `Policy.decode_rule`.

    Attributes:
        room: tokens of the answer that come before the first slot leaves. Until then a row answers bit for bit as
            without the rule; from then on the number of its slots is constant.
    """

    reads_attention: ClassVar[bool] = False
    """Whether `DecodeStep.attention_LHX` is wanted (a sum per layer and step)."""

    room: int = field(default=0, kw_only=True)

    @abc.abstractmethod
    def worth(self, step: DecodeStep) -> Tensor:
        """How much each slot is worth keeping: floats (L, H, X), ``inf`` for what must stay.

        In each head the slot worth least leaves, of equals the one that stands first in the text. The token just read
        is one of the columns: where it is worth least it leaves at once. Where all must stay, the first leaves.
        """

    def heirs(self, step: DecodeStep, leaving_LH: Tensor) -> Heirs | None:
        """Who inherits the values of the columns ``leaving_LH`` (int64); None, as here, when they are dropped."""
        return None


def require_rule(declared: object) -> DecodeRule | None:
    """``declared``, what a policy's ``decode_rule`` gave, where a row can be kept under it; None is no rule.

    Raises:
        DecodeRuleError: it is no rule, or one whose attributes have no meaning.
    """
    if declared is None:
        return None
    if not isinstance(declared, DecodeRule):
        raise DecodeRuleError(
            f"decode_rule() must give an instance of a DecodeRule, or None, got {declared!r}"
        )
    name, room, reads_attention = type(declared).__name__, declared.room, declared.reads_attention
    if isinstance(room, bool) or not isinstance(room, int) or room < 0:
        raise DecodeRuleError(f"{name}.room must be a whole number of tokens from 0 on, got {room!r}")
    if not isinstance(reads_attention, bool):
        raise DecodeRuleError(f"{name}.reads_attention must be True or False, got {reads_attention!r}")
    return declared


def leaving_columns(worth_LHX: Tensor, step: DecodeStep) -> Tensor:
    """The column that leaves in each head, int64 (L, H); see `DecodeRule.worth`.

    Raises:
        DecodeRuleError: ``worth_LHX`` is not of the step's shape.
    """
    if worth_LHX.shape != step.position_LHX.shape:
        raise DecodeRuleError(
            f"worth has shape {tuple(worth_LHX.shape)}; one number per layer, KV head and column is needed: "
            f"{tuple(step.position_LHX.shape)}"
        )
    # Not `argmin` of the worth: which of equal columns that takes is open, and columns are in no order.
    worth_LHX = worth_LHX.masked_fill(~step.is_held_LHX, float("inf"))
    # Again at the end: where all that is held is worth inf, the empty columns tie with it.
    is_least_LHX = (worth_LHX == worth_LHX.amin(dim=2, keepdim=True)) & step.is_held_LHX
    last = torch.iinfo(step.position_LHX.dtype).max
    return step.position_LHX.masked_fill(~is_least_LHX, last).argmin(dim=2)

"""Who was merged into whom while a policy compressed, for those who ask; nobody else pays for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_marks: ContextVar[list[Tensor] | None] = ContextVar("marks", default=None)


@contextmanager
def noting_members() -> Iterator[list[Tensor]]:
    """Inside, gathers for each call of `merge_groups` that merges which tokens went into a slot: bool (F,), F tokens of all
    heads; kept tokens are among them.
    """
    marks: list[Tensor] = []
    token = _marks.set(marks)
    try:
        yield marks
    finally:
        _marks.reset(token)


def note_members(member_M: Tensor, num_tokens: int) -> None:
    """Note the flat indices ``member_M`` of ``num_tokens``; nothing where nobody asks. Does not wait for the device."""
    if (marks := _marks.get()) is not None:
        is_member_F = torch.zeros(num_tokens, dtype=torch.bool, device=member_M.device)
        marks.append(is_member_F.index_fill(0, member_M, True))

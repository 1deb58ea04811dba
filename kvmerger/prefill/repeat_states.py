"""What a layer's attention saw while a part of the context was repeated, and what evidence makes of all parts.

Shapes: N tokens of the context, P of the part, T new tokens (the last P of them repeat it), Q query heads, H KV heads,
D head size, E hidden size.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kvmerger.prefill.evidence import Need, forget_frames, pieces_of, reads_hidden_states, registered


@dataclass(frozen=True, slots=True)
class RepeatStates:
    """Queries and keys after RoPE: those of the new tokens (T), and the context's cache (N), which they all see.

    ``part`` says which tokens of the context the last ``len(part)`` new tokens repeat; an instruction stands before them.
    hidden_TE is what went into the attention module, ``attention`` the module; both None unless evidence reads them.
    """

    q_QTD: Tensor
    k_HTD: Tensor
    v_HTD: Tensor
    k_HND: Tensor
    v_HND: Tensor
    part: range
    scaling: float
    hidden_TE: Tensor | None = None
    attention: nn.Module | None = None

    @property
    def num_tokens(self) -> int:
        """Of the context."""
        return self.k_HND.shape[1]

    @property
    def first_repeated(self) -> int:
        """The place among the new tokens of the one that repeats the part's first."""
        return self.q_QTD.shape[1] - len(self.part)


class Gathered:
    """One layer's evidence of a repetition, part by part."""

    def __init__(self, needs: Sequence[Need]) -> None:
        self._pieces: dict[Need, list[Tensor]] = {need: [] for need in needs}
        self._errors: dict[Need, Exception] = {}
        self.reads_hidden_states = any(map(reads_hidden_states, needs))

    def add(self, states: RepeatStates) -> None:
        """Compute every need's piece of a part; one that raises is asked no more.

        Raises:
            torch.OutOfMemoryError: it does not fit.
        """
        for need, pieces in self._pieces.items():
            if need in self._errors:
                continue
            try:
                piece = registered(need).compute(states, *need.params)
            except torch.OutOfMemoryError:
                raise
            # Evidence may be a user's: its error belongs to the policies that ask for it.
            except Exception as error:  # noqa: BLE001
                error.add_note(f"raised while the context was repeated:\n{traceback.format_exc()}")
                forget_frames(error)
                self._errors[need] = error
                pieces.clear()
                continue
            # Sums as they come: of a number for each pair of queries and keys, all parts' would be too many.
            if pieces_of(need) == "summed" and pieces:
                pieces[0] = pieces[0] + piece
            else:
                pieces.append(piece)

    def found(self) -> dict[Need, Tensor | Exception]:
        """What each need has come to."""
        return {
            need: self._errors[need] if need in self._errors else torch.cat(pieces, dim=1)
            for need, pieces in self._pieces.items()
        }

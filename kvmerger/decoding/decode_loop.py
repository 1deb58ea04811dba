"""Greedy decoding: which rows still answer, and the two ways of going on with them.

The eager loop is the definition: the host reads every token and feeds it back. Recorded steps (`StepGraphs`) run on the
device alone, and `catch_up` reads their tokens afterwards. Both end answers by `Progress.take`, so they cannot differ there.

Shapes: R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol


def _never(progress: Progress) -> bool:
    return False


class Progress:
    """What every row has said so far, and which rows go on. Changes only by `take`."""

    def __init__(
        self, num_rows: int, max_new_by_row: Mapping[int, int], ends_by_row: Mapping[int, Set[int]]
    ) -> None:
        """Rows in neither mapping (the same keys in both) say nothing; the others at most so many tokens, up to an end."""
        self.num_rows = num_rows
        self.tokens: dict[int, list[int]] = {index: [] for index in max_new_by_row}
        self.left: dict[int, int] = dict(max_new_by_row)
        """Of the rows that go on, how many tokens each may still say."""
        self.ends = dict(ends_by_row)

    @property
    def feed_R(self) -> list[list[int]]:
        """What each row reads next: its newest token; nothing where the answer has ended."""
        return [[self.tokens[index][-1]] if index in self.left else [] for index in range(self.num_rows)]

    def take(self, next_R: Sequence[int]) -> None:
        """Let every row that goes on say its token of ``next_R``; the others' are not looked at."""
        for index in self.left:
            self.tokens[index].append(next_R[index])
        self.left = {
            index: left - 1
            for index, left in self.left.items()
            if left > 1 and self.tokens[index][-1] not in self.ends[index]
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """A row's greedy tokens; `is_complete` when the last one is an end token."""

    token_ids: tuple[int, ...]
    is_complete: bool


def answers_of(progress: Progress) -> dict[int, Answer]:
    """What rows have said that do not go on any more, by index."""
    return {
        index: Answer(tuple(ids), ids[-1] in progress.ends[index]) for index, ids in progress.tokens.items()
    }


class Steps(Protocol):
    """What a loop needs of a batch."""

    def note(self, answering: Collection[int]) -> None:
        """Called before these rows, by index, say a token."""

    def step(self, feed_R: Sequence[Sequence[int]]) -> list[int]:
        """Feed at most one token to each row; every row's most likely next one."""
        ...


def decode_eagerly(progress: Progress, steps: Steps, until: Callable[[Progress], bool] = _never) -> None:
    """Go on token by token until all answers have ended, or until ``until`` says so."""
    while progress.left and not until(progress):
        next_R = steps.step(progress.feed_R)
        # Between the two: a row whose answer ends with this token has read the one before, and holds it.
        steps.note(progress.left.keys())
        progress.take(next_R)


def catch_up(progress: Progress, steps: Steps, next_TR: Sequence[Sequence[int]]) -> list[int]:
    """Take the tokens of steps that have been made already, and return how many of them each row took part in."""
    # The device goes on for a few steps after the last answer's end: what it says there, `take` does not look at.
    num_read_R = [0] * progress.num_rows
    for next_R in next_TR:
        for index in progress.left:
            num_read_R[index] += 1
        steps.note(progress.left.keys())
        progress.take(next_R)
    return num_read_R

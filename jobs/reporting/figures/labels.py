"""Names in a figure that never overprint: each is put where there is room, or left out.

Widths are estimated from above, since nobody knows the reader's font.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

_WIDTH_PER_CHAR = 0.58  # of the font's size: wide for a sans-serif's mean, a little narrow for capitals
_HEIGHT = 1.2


class Box(NamedTuple):
    """A rectangle; y runs down."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two have a point in common."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def is_inside(self, other: Box) -> bool:
        """Whether it lies in the other."""
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.top <= self.top
            and self.bottom <= other.bottom
        )


class Label(NamedTuple):
    """A text and the boxes it would like to stand in, best first."""

    text: str
    boxes: tuple[Box, ...]

    @classmethod
    def beside(cls, text: str, at: tuple[float, float], marker: float, size: float) -> Label:
        """Around a point whose marker is `marker` wide: right, left, above, below."""
        (x, y), width, height = at, width_of(text, size), _HEIGHT * size
        corners: list[tuple[float, float]] = []
        for gap in (marker / 2 + 3, marker / 2 + size):
            left, over, right, under = x - gap - width, y - gap - height, x + gap, y + gap
            corners += [(right, y - height / 2), (left, y - height / 2)]
            corners += [(it, top) for top in (over, under) for it in (right, left, x - width / 2)]
        return cls(text, tuple(Box(it, top, it + width, top + height) for it, top in corners))

    @classmethod
    def on_line(cls, text: str, y: float, right: float, size: float) -> Label:
        """Over or under the right end of a horizontal line at `y`, else farther left."""
        width, height = width_of(text, size), _HEIGHT * size
        tops = (y - height - 2, y + 2)
        lefts = [right - width - 4 - step * width for step in range(4)]
        return cls(text, tuple(Box(left, top, left + width, top + height) for left in lefts for top in tops))


def width_of(text: str, size: float) -> float:
    """About how wide a text is in the units of its font's size."""
    return _WIDTH_PER_CHAR * size * len(text)


def placed(labels: Sequence[Label], taken: Sequence[Box], inside: Box) -> Iterator[tuple[str, Box]]:
    """The labels that find a box `inside` that meets neither `taken` nor an earlier label, in their order, with it."""
    full = list(taken)
    for label in labels:
        for box in label.boxes:
            if box.is_inside(inside) and not any(box.meets(other) for other in full):
                full.append(box)
                yield label.text, box
                break

"""A variant's memory over time, in bytes of K/V that were really held at that moment."""

from __future__ import annotations

from typing import NamedTuple


class MemoryPoint(NamedTuple):
    """One moment. ``live_bytes`` are in use; ``reserved_bytes`` include room reserved for tokens still to come.

    For a row under a decode rule they also include the prefix and tail it keeps, to be put back to where its answer began.
    """

    step: int
    phase: str
    live_bytes: int
    reserved_bytes: int

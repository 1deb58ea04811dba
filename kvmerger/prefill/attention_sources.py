"""Whose attention weighs tokens where a method leaves it open: that of the whole prompt, or of its last queries."""

from __future__ import annotations

from typing import Literal

from kvmerger.prefill.evidence import ATTENTION_MASS, Need, window_attention

AttentionSource = Literal["prefill", "window"]
ATTENTION_SOURCES = ("prefill", "window")


def mass_need(source: AttentionSource, window_size: int) -> Need:
    """The attention of all of ``prefill``, or of its last ``window_size`` tokens."""
    return ATTENTION_MASS if source == "prefill" else window_attention(window_size)

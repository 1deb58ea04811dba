"""Bounds on what the engine does at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """max_rows: rows decoded together; more run in groups. max_fidelity_tokens: of the full row's answer, for KL."""

    max_rows: int = 64
    max_fidelity_tokens: int = 128

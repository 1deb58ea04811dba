"""Bounds on what the engine does at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """max_rows: rows decoded together, unless one variant's questions are more already; the others follow in groups.

    max_fidelity_tokens: of the full row's answer, for KL; at least 1.
    """

    max_rows: int = 64
    max_fidelity_tokens: int = 128

    def __post_init__(self) -> None:
        """Refuse limits that leave nothing to run."""
        if self.max_rows < 1 or self.max_fidelity_tokens < 1:
            raise ValueError(f"limits must be at least 1, got {self}")

"""LongBench scores a prediction by its best answer, starting at 0 (eval.py of THUDM/LongBench@2e00731f)."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def best_over_answers(score_one: Callable[[str], float], answers: Iterable[str]) -> float:
    """The largest score over the answers, at least 0."""
    return max((float(score_one(answer)) for answer in answers), default=0.0)


def first_line(prediction: str) -> str:
    """The first line after leading newlines: what eval.py keeps for trec, triviaqa, samsum and lsht."""
    # Newlines alone are skipped: a first line of blanks counts as the answer.
    return prediction.lstrip("\n").split("\n")[0]

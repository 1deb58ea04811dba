"""Similarity of one line of code (code_sim_score in metrics.py of THUDM/LongBench@2e00731f), backend difflib.

The authors call fuzzywuzzy, which takes Levenshtein where that is installed and difflib otherwise; the two differ by
1 to 3 points on lcc and repobench-p. Their requirements list fuzzywuzzy alone, so difflib is the official backend.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from evaluators.metrics.best_answer import best_over_answers
from evaluators.scoring import register_metric

BACKEND = "difflib"
MOST_CHARS = 5_000
"""difflib can take the square of a text's length, and worse; recorded lines of code have at most 818 characters."""
_NOT_CODE = ("`", "#", "//")  # what marks a fence or a comment


def first_code_line(prediction: str) -> str:
    """The first line without backtick, # or //, leading newlines skipped; "" when every line has one."""
    lines = prediction.lstrip("\n").split("\n")
    return next((line for line in lines if not any(mark in line for mark in _NOT_CODE)), "")


def fuzzy_ratio(one: str, other: str) -> float:
    """fuzzywuzzy's ``fuzz.ratio`` with difflib, 0 to 1 in whole percents; equal texts, empty ones too, give 1."""
    if one == other:
        return 1.0
    if not one or not other:
        return 0.0
    # With its heuristic for popular characters (autojunk), which matters from 200 characters on.
    return round(100 * difflib.SequenceMatcher(None, one, other).ratio()) / 100


@register_metric("code_sim", details=BACKEND, max_chars=MOST_CHARS)
def code_sim(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best `fuzzy_ratio` of the first line of code over the answers, 0 to 1."""
    line = first_code_line(prediction)
    return best_over_answers(lambda answer: fuzzy_ratio(line, answer), answers)

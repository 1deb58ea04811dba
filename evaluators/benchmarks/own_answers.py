"""The answers of a user's own row: one that can never be right is an error that names its place and the remedy.

Shipped benchmarks are not looked at: they score as their authors do, also where that gives a right answer nothing.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

from evaluators import scoring
from evaluators.benchmark import BenchmarkError
from evaluators.hints import nearest_name_hint
from evaluators.item import BenchmarkItem
from evaluators.tokenizer import Tokenizer, decode, plain_ids

_OTHER_METRICS = ("multiple_choice", "qa_f1", "string_match_part", "qa_f1_zh")
"""Metrics to name to a user whose own can give an answer no points, likeliest first."""
_MOST_STARTS = 50  # a metric that wants no part of so many wants the whole


def check_metric(metric: str, answers: Sequence[str], all_classes: Sequence[str], where: str) -> None:
    """Raise BenchmarkError unless there is such a metric and each of the answers can be right for it."""
    known = scoring.list_metrics()
    if metric not in known:
        raise BenchmarkError(f"{where}: there is no metric {metric!r}. {nearest_name_hint(metric, known)}")
    if scoring.uses_classes(metric) and not all_classes:
        raise BenchmarkError(f"{where}: the metric {metric!r} needs all_classes, the names to choose from.")
    for field, texts in {"answers": answers, "all_classes": all_classes}.items():
        for number, text in enumerate(texts, start=1):
            _check_text(text, f"{where}: {field}, entry {number}")
    for number, answer in enumerate(answers, start=1):
        _check_answer(metric, answer, all_classes, f"{where}: answers, entry {number}")
    if _counts_all(metric, answers, all_classes):
        _check_repeated(metric, answers, f"{where}: answers")
    if scoring.uses_classes(metric):
        _check_repeated(metric, all_classes, f"{where}: all_classes")


def check_lengths(item: BenchmarkItem, tokenizer: Tokenizer, where: str) -> None:
    """Raise BenchmarkError for an answer whose metric wants more of it than `max_new_tokens` can say."""
    for number, answer in enumerate(item.answers, start=1):
        # So many characters take no more tokens: most answers need not be encoded.
        if _gives_points(item, answer[: item.max_new_tokens], answer):
            continue
        # Some metrics ignore case, and a word without its capital may be fewer tokens.
        spellings = [plain_ids(text, tokenizer) for text in {answer, answer.lower(), answer.title()}]
        # From any word on: "Hague" is worth something where "The Hague" is wanted.
        parts = (ids[start : start + item.max_new_tokens] for ids in spellings for start in _starts(ids))
        if not any(_gives_points(item, decode(part, tokenizer), answer) for part in parts):
            needed = min(map(len, spellings))
            raise BenchmarkError(
                f"{where}: answers, entry {number}: {answer!r:.80} has {needed} tokens, and the metric {item.metric!r} "
                f"gives no points for {item.max_new_tokens} of them; raise max_new_tokens."
            )


def _starts(ids: Sequence[int]) -> range:
    return range(min(len(ids), _MOST_STARTS))


def _gives_points(item: BenchmarkItem, prediction: str, answer: str) -> bool:
    return scoring.score(item.metric, prediction, [answer], item.all_classes) > 0


def _check_text(text: str, where: str) -> None:
    # Z and C: blanks of every width, control characters, and marks without a shape such as a zero-width space.
    if all(unicodedata.category(char)[0] in "ZC" for char in text):
        raise BenchmarkError(f"{where} is empty ({text!r}); remove it.")


def _check_answer(metric: str, answer: str, all_classes: Sequence[str], where: str) -> None:
    if scoring.can_score(metric, answer, all_classes):
        return
    if scoring.can_score(metric, answer.strip(), all_classes):
        remedy = "remove the blanks around it"
    elif scoring.uses_classes(metric) and answer not in all_classes:
        remedy = f"it is none of all_classes, {list(all_classes)!r:.200}; add it there"
    elif others := [name for name in _OTHER_METRICS if scoring.can_score(name, answer)]:
        remedy = f"set metric to {' or '.join(others[:2])}"
    else:
        remedy = f"remove it, or set metric to one that can: {', '.join(scoring.list_metrics())}"
    raise BenchmarkError(f"{where}: the metric {metric!r} gives no points for {answer!r:.80}; {remedy}.")


def _counts_all(metric: str, answers: Sequence[str], all_classes: Sequence[str]) -> bool:
    """Whether it matters to the metric that an answer is listed twice."""
    # Most take the best answer: lists in which annotators agree, as in SQuAD, are fine.
    unique = list(dict.fromkeys(answers))
    if len(unique) == len(answers):
        return False
    once, twice = (scoring.score(metric, unique[0], it, all_classes) for it in (unique, answers))
    return once != twice


def _check_repeated(metric: str, texts: Sequence[str], where: str) -> None:
    text, count = Counter(texts).most_common(1)[0]
    if count > 1:
        raise BenchmarkError(f"{where} has {text!r:.80} twice, and {metric!r} counts both; remove one.")

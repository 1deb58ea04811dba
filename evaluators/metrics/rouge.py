"""LongBench's ROUGE-L (rouge_score in metrics.py of THUDM/LongBench@2e00731f), exact and fast.

It is the summary-level F of the package rouge 1.0.1, which counts sets of words and is neither the paper's nor
google's ROUGE-L. The package fills a dict cell by cell and traces back recursively; here rows are bits of an
integer. Scores are the package's, its failures (0.0) included. Chinese texts are cut into words first (rouge_zh_score).
"""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.metrics.best_answer import best_over_answers, first_line
from evaluators.metrics.chinese_words import cut_words
from evaluators.metrics.common_subsequence import rising_columns
from evaluators.scoring import register_metric

# Python allows 1,000 frames by default, and the package's trace-back recurses once a step. Nine frames lie
# below its first call when the authors' eval.py runs; deeper, it fails, and the authors score a failure 0.
_MAX_FRAMES = 1000
_FRAMES_BELOW_TRACE = 9
MOST_CHARS = 20_000
"""Common subsequences cost the product of both lengths; LongBench's longest answer has 8,879 characters."""
_EPSILON = 1e-8  # the package's guard against 0 / 0; identical texts therefore score a little under 1


Sentences = list[list[str]]


def rouge_l(prediction: str, answer: str, extra_frames: int = 0) -> float:
    """The package's ``rouge-l`` F of two texts, 0 to 1; 0 where it raises (no sentence, too deep a recursion).

    `extra_frames` is how many more frames the authors' own call has below it than `rouge_score` has.
    """
    predicted, gold = _sentences(prediction), _sentences(answer)
    if not predicted or not gold:
        return 0.0
    max_calls = _MAX_FRAMES - _FRAMES_BELOW_TRACE - extra_frames
    common = _common_words(gold, predicted, max_calls)
    if common is None:
        return 0.0
    recall = len(common) / len({word for words in gold for word in words})
    precision = len(common) / len({word for words in predicted for word in words})
    return 2.0 * ((precision * recall) / (precision + recall + _EPSILON))


def _common_words(gold: Sentences, predicted: Sentences, max_calls: int) -> set[str] | None:
    """All words that any pair of sentences has in its common subsequence; None when one pair's trace-back is too deep."""
    # What repeats itself is looked at once. A trace-back ends in no fewer steps than the shorter sentence has words.
    once, once_predicted = (list(dict.fromkeys(map(tuple, it))) for it in (gold, predicted))
    longest = max(map(len, once_predicted))
    if min(max(map(len, once)), longest) > max_calls:
        return None
    common: set[str] = set()
    for gold_words in once:
        words = set(gold_words)
        for predicted_words in once_predicted:
            if words.isdisjoint(predicted_words):
                # Nothing is found, and each predicted word is a step of the trace-back.
                if 1 + len(predicted_words) > max_calls:
                    return None
                continue
            found = _common_subsequence(gold_words, predicted_words, max_calls)
            if found is None:
                return None
            common.update(found)
    return common


def _sentences(text: str) -> list[list[str]]:
    """Words of each piece between full stops; a piece of blanks is a sentence of one empty word."""
    return [" ".join(piece.split()).split(" ") for piece in text.split(".") if piece]


def _common_subsequence(gold: Sequence[str], predicted: Sequence[str], max_calls: int) -> list[str] | None:
    """The words of the longest common subsequence that the package's trace-back finds; None when it is too deep.

    At a pair of unequal words the trace-back goes to the previous gold word only if that is strictly better, which
    is so exactly when the row's length rises at this column; otherwise it goes to the previous predicted word.
    """
    places, rises = rising_columns(gold, predicted)
    row, column = len(gold), len(predicted)
    words, num_calls = [], 1
    while row and column:
        stops = (rises[row] | places.get(gold[row - 1], 0)) & ((1 << column) - 1)
        num_calls += column - stops.bit_length()
        column = stops.bit_length()
        if not column:
            break
        if predicted[column - 1] == gold[row - 1]:
            words.append(gold[row - 1])
            column -= 1
        row -= 1
        num_calls += 1
    return words if num_calls <= max_calls else None


@register_metric("rouge", max_chars=MOST_CHARS)
def rouge(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best `rouge_l` over the answers, 0 to 1; identical texts score 1 - 5e-9."""
    return best_over_answers(lambda answer: rouge_l(prediction, answer), answers)


@register_metric("rouge_first_line", max_chars=MOST_CHARS)
def rouge_first_line(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best `rouge_l` of the first line over the answers, 0 to 1: what eval.py does for samsum."""
    line = first_line(prediction)
    return best_over_answers(lambda answer: rouge_l(line, answer), answers)


def rouge_l_zh(prediction: str, answer: str) -> float:
    """`rouge_l` of the words jieba finds; "。" ends no sentence, as the authors have it."""
    # The authors' function calls their rouge_score, so it recurses from one frame higher.
    return rouge_l(" ".join(cut_words(prediction)), " ".join(cut_words(answer)), extra_frames=1)


@register_metric("rouge_zh", package="jieba", max_chars=MOST_CHARS)
def rouge_zh(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best `rouge_l_zh` over the answers, 0 to 1."""
    return best_over_answers(lambda answer: rouge_l_zh(prediction, answer), answers)

"""Token F1 of two normalised texts, English or Chinese.

qa_f1_score and qa_f1_zh_score in metrics.py of THUDM/LongBench@2e00731f.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from evaluators.metrics.best_answer import best_over_answers, first_line
from evaluators.metrics.chinese_words import cut_words
from evaluators.scoring import register_metric

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII only, as the authors have it
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# The authors' list, which has some dashes and quotes and not others.
_CJK_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘"  # noqa: RUF001 - alike on purpose
    "〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."  # noqa: RUF001
)
DELETE_PUNCTUATION_ZH = str.maketrans("", "", string.punctuation + _CJK_PUNCTUATION)


def normalize_answer(text: str) -> str:
    """Lower-case, delete ASCII punctuation, blank out articles, collapse whitespace."""
    # In this order: in "a." the article is a word of its own only when the full stop is gone.
    without_punctuation = text.lower().translate(_DELETE_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", without_punctuation).split())


def token_f1(prediction: str, answer: str) -> float:
    """F1 of the two texts' token multisets after `normalize_answer`; 0 when they share no token."""
    return multiset_f1(normalize_answer(prediction).split(), normalize_answer(answer).split())


def multiset_f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """F1 of two multisets of tokens; 0 when they share none."""
    num_same = (Counter(predicted) & Counter(gold)).total()
    if num_same == 0:
        return 0.0
    precision, recall = num_same / len(predicted), num_same / len(gold)
    return 2 * precision * recall / (precision + recall)


@register_metric("qa_f1")
def qa_f1(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best `token_f1` over the answers, 0 to 1."""
    return best_over_answers(lambda answer: token_f1(prediction, answer), answers)


@register_metric("qa_f1_first_line")
def qa_f1_first_line(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best `token_f1` of the first line over the answers, 0 to 1: what eval.py does for triviaqa."""
    line = first_line(prediction)
    return best_over_answers(lambda answer: token_f1(line, answer), answers)


def normalize_zh(text: str) -> str:
    """Lower-case, delete ASCII and CJK punctuation and all whitespace."""
    return "".join(text.lower().translate(DELETE_PUNCTUATION_ZH).split())


def word_f1_zh(prediction: str, answer: str) -> float:
    """F1 of the two texts' multisets of normalised words; words that normalise to nothing do not count."""
    return multiset_f1(_words(prediction), _words(answer))


def _words(text: str) -> list[str]:
    return [word for word in map(normalize_zh, cut_words(text)) if word]


@register_metric("qa_f1_zh", package="jieba")
def qa_f1_zh(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best `word_f1_zh` over the answers, 0 to 1."""
    return best_over_answers(lambda answer: word_f1_zh(prediction, answer), answers)

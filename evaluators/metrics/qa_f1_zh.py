"""Word F1 of two Chinese texts (qa_f1_zh_score in metrics.py of THUDM/LongBench@2e00731f)."""

from __future__ import annotations

import string
from collections.abc import Sequence

from evaluators.metrics.chinese_words import cut_words
from evaluators.metrics.longbench_scoring import best_over_answers
from evaluators.metrics.qa_f1 import multiset_f1
from evaluators.registry import register_metric

# The authors' list, which has some dashes and quotes and not others.
_CJK_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘"  # noqa: RUF001 - alike on purpose
    "〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."  # noqa: RUF001
)
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation + _CJK_PUNCTUATION)


def normalize_zh(text: str) -> str:
    """Lower-case, delete ASCII and CJK punctuation and all whitespace."""
    return "".join(text.lower().translate(_DELETE_PUNCTUATION).split())


def word_f1_zh(prediction: str, answer: str) -> float:
    """F1 of the two texts' multisets of normalised words; words that normalise to nothing do not count."""
    return multiset_f1(_words(prediction), _words(answer))


def _words(text: str) -> list[str]:
    return [word for word in map(normalize_zh, cut_words(text)) if word]


@register_metric("qa_f1_zh", package="jieba")
def qa_f1_zh(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best `word_f1_zh` over the answers, 0 to 1."""
    return best_over_answers(lambda answer: word_f1_zh(prediction, answer), answers)

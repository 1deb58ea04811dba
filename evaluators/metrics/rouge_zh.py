"""`rouge` of Chinese texts cut into words (rouge_zh_score in metrics.py of THUDM/LongBench@2e00731f)."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.metrics.chinese_words import cut_words
from evaluators.metrics.longbench_scoring import best_over_answers
from evaluators.metrics.rouge import rouge_l
from evaluators.registry import register_metric


def rouge_l_zh(prediction: str, answer: str) -> float:
    """`rouge_l` of the words jieba finds; "。" ends no sentence, as the authors have it."""
    # The authors' function calls their rouge_score, so it recurses from one frame higher.
    return rouge_l(" ".join(cut_words(prediction)), " ".join(cut_words(answer)), extra_frames=1)


@register_metric("rouge_zh", package="jieba")
def rouge_zh(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best `rouge_l_zh` over the answers, 0 to 1."""
    return best_over_answers(lambda answer: rouge_l_zh(prediction, answer), answers)

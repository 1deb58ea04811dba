"""Chinese text as words, as jieba cuts it in its accurate mode, which LongBench's Chinese metrics are defined by.

The dictionary, its best path and the model's probabilities are jieba's. The path through the hidden Markov model is found
here: jieba copies the whole path at each character, so what a model repeats for ever would take the square of its length.
"""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Iterator

_NEVER = -3.14e100  # jieba's logarithm of the probability of what cannot be
_BEFORE = {"B": "ES", "M": "MB", "S": "SE", "E": "BM"}
"""Which tags may stand before a character's own: begin, middle, end of a word, or a word by itself."""


def cut_words(text: str) -> list[str]:
    """The words of the text in order, blanks and punctuation included; joined they are the text again."""
    jieba = _jieba()
    words: list[str] = []
    for block in jieba.re_han_default.split(text):
        if jieba.re_han_default.match(block):
            words += _words_of_block(block)
        else:
            for piece in jieba.re_skip_default.split(block):
                words += [piece] if jieba.re_skip_default.match(piece) else piece
    return words


def _words_of_block(block: str) -> Iterator[str]:
    """Dictionary words by the most likely path; characters that stay alone beside each other are looked at together."""
    dictionary, route = _jieba().dt, {}  # type: ignore[var-annotated]
    dictionary.calc(block, dictionary.get_DAG(block), route)
    alone_from, start = 0, 0
    while start < len(block):
        end = route[start][1] + 1
        if end - start > 1:
            yield from _words_of_single(block[alone_from:start])
            yield block[start:end]
            alone_from = end
        start = end
    yield from _words_of_single(block[alone_from:])


def _words_of_single(text: str) -> Iterator[str]:
    """Words among characters of which the dictionary makes none."""
    if len(text) < 2 or _jieba().dt.FREQ.get(text):
        yield from text
        return
    model = _jieba().finalseg
    for block in model.re_han.split(text):
        if model.re_han.match(block):
            yield from _unknown_words(block)
        else:
            yield from filter(None, model.re_skip.split(block))


def _unknown_words(text: str) -> Iterator[str]:
    start = 0
    for end, tag in enumerate(_tags(text), start=1):
        if tag in "ES":
            yield text[start:end]
            start = end


def _tags(text: str) -> str:
    """The likeliest tags of the characters (Viterbi); equal likelihoods go to the later letter, as jieba has it."""
    model = _jieba().finalseg
    likelihood = {tag: model.start_P[tag] + model.emit_P[tag].get(text[0], _NEVER) for tag in "BMES"}
    came_from: list[dict[str, str]] = []
    for char in text[1:]:
        best = {}
        for tag, before in _BEFORE.items():
            emitted = model.emit_P[tag].get(char, _NEVER)
            best[tag] = max(
                (likelihood[it] + model.trans_P[it].get(tag, _NEVER) + emitted, it) for it in before
            )
        likelihood = {tag: value for tag, (value, _) in best.items()}
        came_from.append({tag: before for tag, (_, before) in best.items()})
    tags = [max("ES", key=lambda tag: (likelihood[tag], tag))]
    for step in reversed(came_from):
        tags.append(step[tags[-1]])
    return "".join(reversed(tags))


@functools.cache
def _jieba() -> types.ModuleType:
    """jieba with its dictionary loaded (about 1 s, once a process)."""
    import jieba  # here: importing it costs a third of a second, which --help would wait for

    jieba.setLogLevel(logging.WARNING)  # by itself it tells stderr about its dictionary
    jieba.initialize()
    return jieba

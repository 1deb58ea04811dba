"""What fills a context: prose as whole sentences with single blanks, and words to draw from.

Prose comes from a file or from what every Python brings along; words are wonderwords' lists, sorted, so that a draw is the
same on every machine.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evaluators.benchmark import BenchmarkError
from evaluators.benchmarks.sources.files import read_whole
from evaluators.hints import nearest_path_hint
from evaluators.item import text_digest

PYDOC_LABEL = "pydoc_topics"

# A blank after . ! or ? (and a closing quote or bracket), before a capital, a digit or what opens a quote.
_SENTENCE_GAP = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]\u2019\u201d]))\s+(?=[\"'(\[A-Z0-9\u2018\u201c])")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
# Code, lists and tables are indented; a line of = or * underlines a heading.
_INDENTED_OR_RULE = re.compile(r"^(?:\s|[*=\-~^]{3,}$)", re.MULTILINE)
_EMPHASIS = re.compile(r"\*{1,2}([^*]+)\*{1,2}")
_SPLIT_HYPHEN = re.compile(r"(\w)-\n(\w)")
_NOT_PROSE = re.compile(r"[^\w\s.,;:!?()'\u2019\u201c\u201d\u2013-]|_")
_MAX_NOT_PROSE_RATIO = 0.02  # characters; above it, quoted names and operators crowd out the words
_MARKUP = re.compile(r"[*=<>{}|`\\]|::")  # what cleaning leaves of code and formulas
_MIN_PARAGRAPH_CHARS = 80  # shorter ones are captions and cross-references


@dataclass(frozen=True, slots=True)
class Haystack:
    """Sentences in reading order; `label` names the source, `digest` its exact text."""

    label: str
    sentences: tuple[str, ...]
    digest: str

    def take(self, num_sentences: int) -> list[str]:
        """The first sentences, starting over when there are too few, as RULER does."""
        return list(itertools.islice(itertools.cycle(self.sentences), num_sentences))


def load_haystack(path: str | None) -> Haystack:
    """Sentences of a .txt file or of the "text" in a .json file (either may be .gz), or of pydoc's topics.

    The label is the file's name without suffixes. Raises BenchmarkError for a file that gives no text.
    """
    if path is None:
        return _haystack(PYDOC_LABEL, " ".join(_pydoc_paragraphs()))
    file = Path(path).expanduser()
    if not file.is_file():
        raise BenchmarkError(f"There is no haystack file {file}. {nearest_path_hint(file)}")
    haystack = _haystack(file.name.split(".")[0], _read(file))
    if not haystack.sentences:
        raise BenchmarkError(f"The haystack file {file} has no text; give one with prose.")
    return haystack


def _haystack(label: str, text: str) -> Haystack:
    sentences = _SENTENCE_GAP.split(" ".join(text.split()))
    return Haystack(label, tuple(filter(None, sentences)), text_digest(text))


def _read(file: Path) -> str:
    try:
        text = read_whole(file).decode("utf-8")
        if ".json" in file.suffixes:
            text = json.loads(text)["text"]
    except BenchmarkError:
        raise
    # Of a broken .gz: OSError of its header and checksum, EOFError of its end, zlib's own of what is packed.
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(
            f'The haystack file {file} is neither UTF-8 text nor JSON of the form {{"text": …}} ({error!r}).'
        ) from error
    if not isinstance(text, str):
        raise BenchmarkError(f'The haystack file {file} has a "text" that is no string but {text!r:.60}.')
    return text


def _pydoc_paragraphs() -> Iterator[str]:
    """Paragraphs of CPython's language reference that read as prose; they differ between Python versions."""
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        for block in _BLANK_LINE.split(topics[topic]):
            paragraph = _clean(block.strip("\n"))
            if not _INDENTED_OR_RULE.search(block.strip("\n")) and _is_prose(paragraph):
                yield paragraph


def _clean(block: str) -> str:
    return _EMPHASIS.sub(r"\1", " ".join(_SPLIT_HYPHEN.sub(r"\1-\2", block).split()))


def _is_prose(paragraph: str) -> bool:
    is_sentence = paragraph[:1].isupper() and paragraph.endswith((".", "!", "?"))
    num_odd_chars = len(_NOT_PROSE.findall(paragraph))
    return (
        is_sentence
        and len(paragraph) >= _MIN_PARAGRAPH_CHARS
        and num_odd_chars <= _MAX_NOT_PROSE_RATIO * len(paragraph)
        and not _MARKUP.search(paragraph)
    )


@functools.cache
def words_of(*categories: str) -> list[str]:
    """The different words of "noun", "adjective" or "verb" together, sorted."""
    from wonderwords import RandomWord

    return sorted(set(RandomWord().filter(include_categories=list(categories))))

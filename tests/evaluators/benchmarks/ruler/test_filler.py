"""Haystacks are prose in whole sentences, whatever file they come from."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from evaluators.benchmark import BenchmarkError
from evaluators.benchmarks.ruler.filler import PYDOC_LABEL, load_haystack

TEXT = 'One day it rained.  It rained\n\nfor long! "Really?" he asked. "Yes." Pi is 3.14 here.'
WHOLE_GZ = gzip.compress(TEXT.encode(), mtime=0)
# Cut off, with another checksum, and with what is packed spoilt: the third is what zlib itself complains of.
BROKEN_GZ = (WHOLE_GZ[:-9], WHOLE_GZ[:-8] + bytes(8), WHOLE_GZ[:12] + b"\xff" * 20 + WHOLE_GZ[32:])
SENTENCES = ("One day it rained.", "It rained for long!", '"Really?" he asked.', '"Yes."', "Pi is 3.14 here.")


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".json", ".json.gz"])
def test_every_format_gives_the_same_sentences(tmp_path: Path, suffix: str) -> None:
    content = (json.dumps({"text": TEXT}) if ".json" in suffix else TEXT).encode()
    file = tmp_path / f"essays{suffix}"
    file.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    haystack = load_haystack(str(file))
    assert haystack.label == "essays"
    assert haystack.sentences == SENTENCES


def test_default_is_prose_without_code_or_markup() -> None:
    haystack = load_haystack(None)
    text = " ".join(haystack.sentences)
    assert haystack.label == PYDOC_LABEL
    assert len(text) > 40_000  # enough for 8,000 tokens without repeating
    assert not re.search(r"::|>>>|\*\*|  |\n|==|\{", text)
    num_letters_and_blanks = sum(char.isalpha() or char == " " for char in text)
    assert num_letters_and_blanks / len(text) > 0.95


def test_taking_more_than_there_is_starts_over(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("One. Two.")
    assert load_haystack(str(tmp_path / "short.txt")).take(5) == ["One.", "Two.", "One.", "Two.", "One."]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("h.json", b'{"txet": "a"}', "neither UTF-8 text nor JSON"),
        ("h.json", b"[1]", "neither UTF-8 text nor JSON"),
        ("h.json", b'{"text": 3}', "no string but 3"),
        ("h.txt.gz", b"plain", "neither UTF-8 text nor JSON"),
        *(
            (f"h.{kind}.gz", it, "neither UTF-8 text nor JSON")
            for kind in ("txt", "json")
            for it in BROKEN_GZ
        ),
        ("h.txt", b"\xff", "neither UTF-8 text nor JSON"),
        ("h.txt", b" \n", "has no text"),
    ],
)
def test_a_file_without_text_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BenchmarkError, match=message):
        load_haystack(str(tmp_path / name))


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "essays.txt").touch()
    with pytest.raises(BenchmarkError, match=r"Did you mean 'essays\.txt'"):
        load_haystack(str(tmp_path / "esays.txt"))

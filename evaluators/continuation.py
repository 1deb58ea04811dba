"""Whether a blank stands between a prompt and the answer that continues it: what the two languages write there.

Chinese, Japanese, Thai, Lao, Khmer and Burmese put no blanks between words; Korean does.
"""

from __future__ import annotations

import unicodedata

_WIDE = (
    (0x3005, 0x3007),  # 々〆〇
    (0x3040, 0x312F),  # kana, bopomofo
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF10, 0xFF19),  # full-width digits and letters
    (0xFF21, 0xFF3A),
    (0xFF41, 0xFF5A),
    (0xFF66, 0xFF9F),  # half-width kana
    (0x20000, 0x3FFFF),
)
"""Chinese and Japanese characters: code points, first and last."""
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan: a tsheg parts its syllables
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x19E0, 0x19FF),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F),
)
"""Other characters of languages that put no blanks between words."""
_ZERO_WIDTH_SPACE = "\u200b"  # parts words in Thai and Khmer, and Python does not take it for a space
_STRAIGHT_QUOTES = "\"'`"


def needs_blank(text: str, answer: str) -> bool:
    """Whether a blank belongs between `text` and `answer`, neither of them empty.

    None follows a space, an opening bracket or quotation mark, or full-width punctuation, and none stands between two
    characters of languages without blanks. Digits and signs go with the letters beside them; those of an answer without
    letters go with a Chinese or Japanese text.
    """
    left, right = text[-1], answer[0]
    if left.isspace() or right.isspace() or left == _ZERO_WIDTH_SPACE:
        return False
    if _opens(text) or _is_wide_punctuation(left) or _is_wide_punctuation(right):
        return False
    before, after = _last_letter(text), _first_letter(answer)
    # Thai sets numbers off by blanks; Chinese and Japanese do not.
    return not (_is_unspaced(before) and (_is_unspaced(after) if after else _is_in(before, _WIDE)))


def _opens(text: str) -> bool:
    """Whether the last character opens a bracket or a quotation; a straight quote does where nothing stands before it."""
    if text[-1] in _STRAIGHT_QUOTES:
        return len(text) == 1 or text[-2].isspace() or unicodedata.category(text[-2]) in ("Ps", "Pi")
    return unicodedata.category(text[-1]) in ("Ps", "Pi")


def _is_wide_punctuation(char: str) -> bool:
    # Emoji are wide as well, and no punctuation; full-width "＝" and "～" are signs to Unicode.
    width, category = unicodedata.east_asian_width(char), unicodedata.category(char)
    return (width == "F" and category[0] in "PS") or (width == "W" and category[0] == "P")


def _last_letter(text: str) -> str:
    """The last letter of the last word; "" when it has none."""
    for char in reversed(text):
        if char.isspace():
            break
        if _is_letter(char):
            return char
    return ""


def _first_letter(text: str) -> str:
    """The first letter of the first word; "" when it has none."""
    words = text.split(maxsplit=1)
    return next((char for char in words[0] if _is_letter(char)), "") if words else ""


def _is_letter(char: str) -> bool:
    # Vowel signs and tone marks (M) belong to Thai and its neighbours; their own digits count as well.
    return unicodedata.category(char)[0] in "LM" or _is_unspaced(char)


def _is_unspaced(char: str) -> bool:
    return _is_in(char, _WIDE) or _is_in(char, _UNSPACED)


def _is_in(char: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    return bool(char) and any(first <= ord(char) <= last for first, last in ranges)

"""A blank stands before an answer exactly where the two languages write one."""

from __future__ import annotations

import pytest

from evaluators.continuation import needs_blank


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The capital is", "Paris"),
        ("Answer:", "42"),
        ("It is 5", "apples"),
        ("수도는", "서울"),  # Korean has blanks
        ("日本は", "서울"),
        ("The capital is", "北京"),
        ("Answer:", "经济"),
        ("答案是", "Paris"),
        ("ราคาคือ", "42"),  # Thai sets numbers off
        ("the owner's", "dog"),
        ('He said "no"', "again"),
        ("🙂", "Paris"),
    ],
)
def test_a_blank_stands_where_words_are_parted_by_blanks(text: str, answer: str) -> None:
    assert needs_blank(text, answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("类别：", "经济"),  # noqa: RUF001 - full-width on purpose
        ("类别：", "NBA"),  # noqa: RUF001 - whatever follows
        ("类别:", "经济"),  # a half-width colon goes with the letters before it
        ("答案是", "北京"),
        ("答案是", "42"),
        ("答案是", "“北京”"),
        ("共有", "3人"),
        ("答えは", "東京"),
        ("答えは", "ﾄｳｷｮｳ"),
        ("คำตอบคือ", "กรุงเทพ"),
        ("ຄຳຕອບແມ່ນ", "ວຽງຈັນ"),
        ("ចម្លើយគឺ", "ភ្នំពេញ"),
        ("အဖြေမှာ", "ရန်ကုန်"),
        ("ចម្លើយ\u200b", "Phnom Penh"),
        ("The answer is (", "B"),
        ('The answer is "', "yes"),
        ("The answer is “", "yes"),
        ("The answer is ", "yes"),
        ("The answer is\n", "yes"),
        ("The answer is", " yes"),
        ("The answer is", "，是"),  # noqa: RUF001 - full-width on purpose
    ],
)
def test_no_blank_stands_before_an_answer_whose_language_has_none(text: str, answer: str) -> None:
    assert not needs_blank(text, answer)

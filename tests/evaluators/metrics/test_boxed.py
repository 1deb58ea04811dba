r"""Answers of mathematics: the last box with its braces, spellings that are one, and values that are exact."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.metrics.boxed import last_boxed
from evaluators.metrics.boxed_math import evened
from evaluators.metrics.final_number import stated_number
from evaluators.scoring import score

nested = st.recursive(
    st.text("ab1 ", max_size=4), lambda inner: inner.map(lambda it: f"{{{it}}}") | st.builds(str.__add__, inner, inner)
)  # fmt: skip


@given(before=st.text("ab }\\", max_size=9), inside=nested, after=st.text("ab {}$", max_size=9))
def test_the_last_box_is_found_with_its_braces(before: str, inside: str, after: str) -> None:
    assert last_boxed(f"{before}\\boxed{{1}} then \\boxed{{{inside}}}{after}") == inside
    assert last_boxed(f"{before} \\fbox{{{inside}}}{after}") == inside
    assert last_boxed(before + after) is None
    assert last_boxed(f"{before}\\boxed{{{{{inside}}}") is None, "cut off before it was closed"


@pytest.mark.parametrize(
    ("said", "gold", "text", "value"),
    [
        ("\\dfrac12", "\\frac{1}{2}", 1, 1),
        ("1/2", "\\frac{1}{2}", 1, 1),
        (".5", "\\frac{1}{2}", 0, 1),
        ("-\\frac{3}{2}", "-1.5", 0, 1),
        ("x = 5", "5", 1, 1),
        ("5.00", "5", 1, 1),
        ("12{,}000", "12,000", 1, 1),
        ("90^\\circ", "90", 1, 1),
        ("\\text{(C)}", "\\text{C}", 0, 0),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})", 1, 1),
        ("(1,2/4)", "(1,\\frac{1}{2})", 0, 1),
        ("[1,2)", "(1,2)", 0, 0),
        ("1,2", "12", 0, 0),
        ("\\sqrt2", "\\sqrt{2}", 1, 1),
        ("36 \\text{ cm}^2", "36", 1, 1),
        ("10\\%", "10", 1, 1),
        ("2", "20", 0, 0),
    ],
)
def test_spellings_are_one_and_values_exact(said: str, gold: str, text: int, value: int) -> None:
    for metric, expected in (("boxed_math", text), ("boxed_math_value", value)):
        assert score(metric, f"So \\boxed{{{said}}}.", [gold]) == expected
        assert score(metric, f"So \\boxed{{{said}}}.", [f"It is $\\boxed{{{gold}}}$."]) == expected
        assert score(metric, said, [gold]) == 0, "nothing is boxed"


@given(st.fractions(max_denominator=10**6))
def test_every_spelling_of_a_fraction_has_its_value(number: Fraction) -> None:
    over, under = abs(number.numerator), number.denominator
    sign = "-" if number < 0 else ""
    for said in (f"{sign}\\frac{{{over}}}{{{under}}}", f"{sign}{over}/{under}"):
        assert score("boxed_math_value", f"\\boxed{{{said}}}", [f"{sign}\\dfrac{{{over}}}{{{under}}}"]) == 1
    assert evened(evened(f"{sign}{over}/{under}")) == evened(f"{sign}{over}/{under}")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 1,234", 1234),
        ("16-3 = 13\n#### 13 eggs, not 4", 13),
        ("It is \\boxed{18}. Twice 9.", 18),
        ("The answer is $5.50.", "5.50"),
        ("Sums: 16-3", 3),
        ("It falls by -3", -3),
        ("none", None),
        ("#### none, but 7", 7),
    ],
)
def test_the_number_that_is_stated(text: str, number: object) -> None:
    assert stated_number(text) == (None if number is None else type(stated_number(text))(str(number)))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("\\boxed{055}", 1),
        ("\\boxed{\\textbf{(55) }}", 1),
        ("\\boxed{n = 55.}", 1),
        ("\\boxed{55^\\circ}", 1),
        ("\\boxed{$55$}", 1),
        ("\\boxed{5}", 0),
        ("55", 0),
        ("\\boxed{-55}", 0),
        ("\\boxed{5,5}", 0),
        ("\\boxed{55/1}", 0),
    ],
)
def test_a_whole_number_of_aime(said: str, expected: int) -> None:
    assert score("boxed_integer", said, ["055"]) == expected

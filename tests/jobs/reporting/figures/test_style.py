"""Series are told apart by colour and by marker."""

import itertools

from jobs.reporting.figures.style import legend, series_styles


def test_dozens_of_series_all_look_different() -> None:
    styles = series_styles(f"policy {index}" for index in range(56))
    assert len({(style.color, style.marker) for style in styles.values()}) == 56


def test_neighbours_differ_in_both() -> None:
    styles = list(series_styles("abcdefgh").values())
    for one, other in itertools.pairwise(styles):
        assert one.color != other.color and one.marker != other.marker


def test_a_swatch_is_silent_and_has_no_size_of_its_own() -> None:
    ((name, svg),) = legend(series_styles(["a"]))
    assert name == "a" and 'aria-hidden="true"' in svg and "<title>" not in svg and " width=" not in svg

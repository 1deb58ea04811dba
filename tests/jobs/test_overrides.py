"""`--set`: puts one value where its path says, or says why it cannot."""

import pytest

from jobs.settings.errors import SettingsError
from jobs.settings.file import apply_overrides

RAW = {"tasks": [{"name": "a"}, {"name": "b"}], "model": None, "tracking": False}


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("tasks.1.limit=3", ("tasks", 1, "limit"), 3),
        ("tasks[1].limit=3", ("tasks", 1, "limit"), 3),
        ("tasks.-1.name=c=d", ("tasks", 1, "name"), "c=d"),
        ("model.name=demo", ("model", "name"), "demo"),
        ("new.section.key=[1, 2]", ("new", "section", "key"), [1, 2]),
        ("tracking=off", ("tracking",), False),
        ("name=", ("name",), None),
    ],
)
def test_value_lands_at_its_path(override: str, path: tuple[str | int, ...], value: object) -> None:
    found: object = apply_overrides(RAW, [override])
    for part in path:
        found = found[part]  # type: ignore[index]
    assert found == value and type(found) is type(value)


def test_later_overrides_win_and_the_input_stays() -> None:
    before = {"a": {"b": 1}}
    assert apply_overrides(before, ["a.b=2", "a.b=3"]) == {"a": {"b": 3}}
    assert before == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("tasks", "key.key=value"),
        ("=3", "key.key=value"),
        ("a=[1", "not valid YAML: while parsing a flow sequence, expected ',' or ']'"),
        ("tasks.2.limit=3", "from 0 to 1"),
        ("tasks.first.limit=3", "from 0 to 1"),
        ("tracking.uri=x", "has no keys"),
    ],
)
def test_what_cannot_be_put_is_refused(override: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match="--set") as caught:
        apply_overrides(RAW, [override])
    assert complaint in str(caught.value) and "\n" not in str(caught.value)

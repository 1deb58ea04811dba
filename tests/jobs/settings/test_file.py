"""A settings file that cannot be read is told in one line, with its name, the place and the remedy."""

from pathlib import Path

import pytest

from jobs.settings.errors import SettingsError
from jobs.settings.file import (
    SHIPPED_CONFIGS,
    apply_overrides,
    read_settings_file,
    settings_file,
    shipped_names,
)
from jobs.settings.schema import load_settings
from tests.fakes.settings import MINIMAL, refused, write


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("policies: [full]", "'tasks' is missing"),
        ("just words", "'just words'"),
        ("a: [1", "not valid YAML"),
        ("[a]: 1", "not valid YAML: while constructing a mapping, found unhashable key (line 1, column 1)"),
        ('a: [{b: "x\\ud800"}]', r"not valid YAML: \ud800 to \udfff are halves of a character; write the"),
        ("a: \0", "not valid YAML: special characters are not allowed (character 4)"),
        (
            MINIMAL + "seed: 1\nseed: 2\n",
            "sweep.yaml: the key 'seed' is there twice, in lines 4 and 5; keep one",
        ),
        ("tasks: [{seed: 1, seed: 1}]", "sweep.yaml: the key 'seed' is there twice, in line 1; keep one"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    message = refused(tmp_path, text)
    assert complaint in message and "\n" not in message


def test_a_missing_file_names_its_nearest_neighbour(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(SettingsError, match=r"did you mean 'sweep\.yaml'"):
        load_settings(tmp_path / "sweeep.yaml")
    with pytest.raises(SettingsError, match=r"nope\.yaml'; shipped: .*demo\.yaml"):
        load_settings(tmp_path / "nope.yaml")


def test_shipped_settings_are_found_by_their_name_and_a_users_own_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"demo", "nightly"} <= set(shipped_names())
    for name in ("nightly", "nightly.yaml"):
        assert settings_file(Path(name)) == SHIPPED_CONFIGS / "nightly.yaml"
        assert load_settings(name).gate is not None
    (tmp_path / "nightly").mkdir()  # a folder is no settings file, and hides none
    assert settings_file(Path("nightly")) == SHIPPED_CONFIGS / "nightly.yaml"
    for name in ("nightly.yaml", "mine.yml"):
        (tmp_path / name).write_text(MINIMAL)
        assert settings_file(Path(Path(name).stem)) == Path(name)
    assert settings_file(Path("nightly.yaml")) == Path("nightly.yaml")


def test_a_path_is_never_that_of_shipped_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "nightly.yaml", Path("folder/nightly.yaml"), Path("nighty.yaml")):
        assert settings_file(path) == path
    with pytest.raises(SettingsError, match=r"did you mean 'nightly\.yaml'"):
        load_settings("nighty.yaml")


def test_a_file_in_another_encoding_is_told_without_a_guess(tmp_path: Path) -> None:
    write(tmp_path).write_bytes(MINIMAL.encode("utf-16"))
    with pytest.raises(SettingsError, match=r"sweep\.yaml': not UTF-8 at byte 0; save the file as UTF-8$"):
        load_settings(tmp_path / "sweep.yaml")


def test_a_folder_is_told_as_one_with_the_files_in_it(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(
        SettingsError, match=r"is a folder, not a settings file; name a file in it: sweep\.yaml$"
    ):
        load_settings(tmp_path)


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


@pytest.mark.parametrize(
    "value",
    [
        "[" * 20_000,
        "{a: " * 5_000 + "1" + "}" * 5_000,
        "9" * 5_000,
        "2020-99-99",
        "!!timestamp foo",
        "!!int foo",
        "!!float foo",
        "!!bool foo",
        "!!binary é",
        "!!python/object:os.system x",
        "!!set 5",
    ],
)
def test_whatever_yaml_cannot_read_is_a_sentence(value: str, tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text(f"name: {value}\n")
    with pytest.raises(SettingsError, match="not valid YAML"):
        read_settings_file(path)
    with pytest.raises(SettingsError, match="not valid YAML"):
        apply_overrides({}, [f"name={value}"])

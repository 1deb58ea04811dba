"""A settings file that cannot be read is told in one line, with its name, the place and the remedy."""

from pathlib import Path

import pytest

from jobs.settings.errors import SettingsError
from jobs.settings.schema import load_settings
from tests.jobs.config_fakes import MINIMAL, refused, write


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("policies: [full]", "'tasks' is missing"),
        ("just words", "'just words'"),
        ("a: [1", "not valid YAML"),
        ("[a]: 1", "not valid YAML: while constructing a mapping, found unhashable key (line 1, column 1)"),
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

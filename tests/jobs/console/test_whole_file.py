"""What a link leads to is never written, and a write that fails changes nothing."""

import os
from pathlib import Path

import pytest

from jobs.console.whole_file import write_whole


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    theirs, link = tmp_path / "theirs", tmp_path / "folder" / "plan.json"
    theirs.write_text("mine")
    link.parent.mkdir()
    link.symlink_to(theirs)
    write_whole(link, b"new")
    assert (theirs.read_text(), link.read_text(), link.is_symlink()) == ("mine", "new", False)


def test_a_link_under_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("mine")
    (tmp_path / f".plan.json.{os.getpid()}.tmp").symlink_to(theirs)
    write_whole(tmp_path / "plan.json", b"new")
    assert theirs.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "theirs"]


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_refused_and_stays(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "plan.json"
    place.mkdir() if kind == "folder" else os.mkfifo(place)
    with pytest.raises(OSError, match=r"plan\.json is no file"):
        write_whole(place, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "plan.json"
    place.write_text("old")
    with pytest.raises(OSError, match="surely"):
        write_whole(place.with_name("surely" + "x" * 300), b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert place.read_text() == "old"

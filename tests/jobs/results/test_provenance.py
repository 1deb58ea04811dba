"""The commit that a number came from: of the repository, or of the image that holds no repository."""

from pathlib import Path

import pytest

from jobs.results import provenance


def test_in_a_repository_the_variable_has_no_say(monkeypatch: pytest.MonkeyPatch, repo_root: Path) -> None:
    if not (repo_root / ".git").exists():
        pytest.skip("these tests run outside a repository")
    monkeypatch.setenv("KVMERGER_COMMIT", "of-an-image")
    commit = provenance.git_commit()
    assert commit is not None and "of-an-image" not in commit


@pytest.mark.parametrize(("value", "commit"), [("0123abc", "0123abc"), ("", None)])
def test_outside_one_it_is_what_the_image_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str, commit: str | None
) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("KVMERGER_COMMIT", value)
    assert provenance.git_commit() == commit


def test_of_stored_metadata_only_what_can_be_used_is_known() -> None:
    sound = {
        "sweep_id": "a-1.b_2",
        "sweep_ids": {"x": "a-1"},
        "data_read": [{"task": "t"}],
        "started_at_s": 5.5,
    }
    assert provenance.known_meta(sound) == sound
    for wrong in ("", "a'b", "a b", "x\n", 5, None, [1], {"a": 1}):
        edited = {
            "sweep_id": wrong,
            "sweep_ids": {"x": "a-1", "y": wrong},
            "data_read": [wrong, {"task": "t"}],
        }
        known = provenance.known_meta({**edited, "mine": 3})
        assert "sweep_id" not in known and known["sweep_ids"] == {"x": "a-1"} and known["mine"] == 3
        assert {"task": "t"} in known["data_read"] and all(isinstance(it, dict) for it in known["data_read"])
    for time_s in (float("nan"), float("inf"), 10**400, -1, "now"):
        assert provenance.known_meta({"started_at_s": time_s}) == {}


def test_what_was_read_is_told_without_passwords() -> None:
    read = [{"task": "file/rows", "place": "s3://me:secret@host/x", "version": "7 bytes", "num_rows": 2}]
    told = provenance.describe_run("a", ("model",), {}, read)
    assert told["data_read"] == [read[0] | {"place": "s3://…@host/x"}]

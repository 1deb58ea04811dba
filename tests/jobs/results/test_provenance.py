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

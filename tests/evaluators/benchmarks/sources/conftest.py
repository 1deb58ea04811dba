"""A hub of one data set, "owner/name", which the client asks in place of the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.servers.fake_hub import FakeHub, fake_hub

OLD, NEW, NEVER = "a" * 40, "b" * 40, "c" * 40
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """Of two commits, without a file."""
    with fake_hub("owner/name", {OLD: {}, NEW: {}}) as served:
        _ask(monkeypatch, served.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield served


def cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nobody answers."""
    _ask(monkeypatch, NOBODY)


def _ask(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

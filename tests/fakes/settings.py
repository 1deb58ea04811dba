"""A settings file as small as it can be, and what it is refused with once something in it is changed."""

from pathlib import Path

import pytest

from jobs.settings.errors import SettingsError
from jobs.settings.schema import load_settings

MINIMAL = """
tasks: [{name: ruler/niah_single_2, length: 1024, limit: 6}]
policies: [full, {name: knorm, budget: [0.5, 0.35]}]
"""


def write(folder: Path, text: str = MINIMAL) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str = MINIMAL, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(write(folder, text), overrides)
    return str(caught.value)

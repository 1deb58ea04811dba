"""A settings file as small as it can be, and what it is refused with once something in it is changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.settings.errors import SettingsError
from jobs.settings.schema import load_settings
from kvmerger.bits_table import sealed

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


def table_of_pairs(
    pairs: Sequence[tuple[int, int]], items: Sequence[str] = (), **others: Any
) -> dict[str, Any]:
    """The content of a table of bits, with its hash; errors are made up."""
    content = {
        "model": {"name": "tiny", "revision": "files-0", "dtype": "float32"},
        "items": list(items),
        "seed": 0,
        "mean_bits": 8.0,
        "pairs": [list(pair) for pair in pairs],
        "errors": [{"k8v8": 0.125}] * len(pairs),
    }
    return sealed(content | others)

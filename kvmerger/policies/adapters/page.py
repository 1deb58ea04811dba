"""The page about kvpress's presses, written from their classes: ``python -m kvmerger.policies.adapters.page``."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvmerger.policies.adapters.catalogue import ENTRIES, class_names, how_it_runs

BEGIN, END = "<!-- presses: written by kvmerger.policies.adapters.page -->", "<!-- end of presses -->"
_HEAD = "| class | does | reads | runs | remark |\n|---|---|---|---|---|"


def table() -> str:
    """A row for every class."""
    rows = [
        f"| `{name}` | {entry.does} | {entry.reads} | {how_it_runs(name)} | {entry.remark} |"
        for name, entry in ((name, ENTRIES[name]) for name in class_names())
    ]
    return "\n".join([_HEAD, *rows])


def written(page: str) -> str:
    """``page`` with its table as the classes are now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> None:
    """Write the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, nargs="?", default=Path("docs/kvpress.md"))
    page = parser.parse_args().page
    page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

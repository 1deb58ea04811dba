"""Where kvpress's sides of the race can run: in an environment of their own, made from `kvpress.txt` beside this file.

Their lines stand in the same file as those of our sides, with the versions that each was measured with.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

KVPRESS, TRANSFORMERS = "0.5.5", "5.2"


def refusal() -> str | None:
    """Why kvpress's sides cannot run in this environment, with the remedy; None where they can."""
    found = {}
    for package in ("kvpress", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    # On later versions a press used as a context manager fails in its first forward pass, after minutes of the others' sides.
    if found["kvpress"] == KVPRESS and found["transformers"].startswith(f"{TRANSFORMERS}."):
        return None
    return (
        f"kvpress's sides need kvpress {KVPRESS} and transformers {TRANSFORMERS}, and here are {found['kvpress']} and "
        f"{found['transformers']}: run them with the Python of an environment made from bench/race/kvpress.txt, with the "
        f"same --output (docs/performance.md, How to measure)"
    )

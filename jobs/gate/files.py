"""`gate.json` and `gate.md` in a night's folder: the verdict for machines, and for whoever opens it from MLflow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jobs.console.printing import text_of
from jobs.gate.judge import NightVerdict
from jobs.gate.log import NightNames
from jobs.gate.table import verdict_table
from jobs.reporting.markdown import fenced
from jobs.results.store import ResultStore
from jobs.settings.gate import GateSettings

JSON_NAME, MARKDOWN_NAME = "gate.json", "gate.md"
_MARKDOWN_COLUMNS = 140


def write_gate_files(
    store: ResultStore,
    verdict: NightVerdict,
    names: NightNames,
    gate: GateSettings,
    lines: Sequence[str],
    exit_code: int,
) -> None:
    """Write both, whole; raises ResultError where the folder cannot be written."""
    store.write_json(JSON_NAME, _as_json(verdict, names, gate, exit_code), indent=1)
    told = [
        fenced("\n".join(lines)),
        fenced(text_of(verdict_table(verdict, _MARKDOWN_COLUMNS), _MARKDOWN_COLUMNS)),
    ]
    store.write_text(MARKDOWN_NAME, "\n\n".join(told) + "\n")


def _as_json(verdict: NightVerdict, names: NightNames, gate: GateSettings, exit_code: int) -> dict[str, Any]:
    failed = verdict.failed
    document = {
        "verdict": verdict.outcome,
        "exit_code": exit_code,
        "night": names.night,
        "baseline": {"name": names.baseline, "origin": names.origin},
        "gate": gate.model_dump(mode="json"),
        "failed_items": {
            "num_planned": failed.num_planned,
            "percent": failed.percent,
            "missing": [{"item_id": item, "variant": label} for item, label in failed.missing],
        },
        "checks": [dataclasses.asdict(check) for check in verdict.checks],
        "differences": list(verdict.told),
        "not_compared": list(verdict.skipped),
    }
    finite: dict[str, Any] = _finite(document)
    return finite


def _finite(value: Any) -> Any:
    """The same value with the names of infinities and NaN in their place."""
    # `json.dumps` would write Infinity, which Python reads back and other readers of JSON refuse.
    if isinstance(value, dict):
        return {key: _finite(it) for key, it in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(it) for it in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

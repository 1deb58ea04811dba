"""What ran, counted from the rows, and what the results folder says about code and settings."""

from __future__ import annotations

import datetime
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from jobs.analysis.folder.findings import Findings
from jobs.console.addresses import hidden_in, without_passwords
from jobs.reporting.notation import shown_device
from jobs.results.grouping import Setting, grouped, prefill_of, setting_of
from jobs.results.schema import DONE_STATUSES, Row
from jobs.settings.file import parsed


@dataclass(frozen=True, slots=True)
class SettingFacts:
    """One comparison: how many items and contexts it has, and how often a prompt was read for it."""

    setting: Setting
    dtype: str
    device: str
    num_items: int
    num_contexts: int
    num_variants: int
    num_prefills: int
    num_rows_finished: int


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the head of the report states. Texts are still to be escaped; passwords in addresses are taken out."""

    name: str
    settings: tuple[SettingFacts, ...]
    git_commit: str
    started: str
    command: str
    versions: Mapping[str, str]
    settings_yaml: str


def run_facts(findings: Findings) -> RunFacts:
    """What the folder says of its latest run."""
    meta = findings.meta
    started = meta.get("started_at_s")
    return RunFacts(
        name=findings.name,
        settings=setting_facts(findings.rows),
        git_commit=str(meta.get("git_commit") or "not known"),
        # Metadata of older versions, or edited by hand, may hold anything here.
        started=_shown_time(started) if isinstance(started, int | float) else "not known",
        command=_command(meta.get("args")),
        versions={str(name): str(version) for name, version in _versions(findings).items()},
        settings_yaml=shown_settings(findings.settings_yaml),
    )


def shown_settings(settings_yaml: str) -> str:
    """Stored settings as they may be shown around: without passwords."""
    try:
        settings = parsed(settings_yaml)
        hidden = hidden_in(settings)
    # An edited file, or one nested too deep to be gone through.
    except (yaml.YAMLError, RecursionError):
        return without_passwords(settings_yaml)
    # As it was written, save where it cannot stay: an address may be folded over several lines.
    return (
        settings_yaml if hidden == settings else yaml.safe_dump(hidden, sort_keys=False, allow_unicode=True)
    )


def setting_facts(rows: Sequence[Row]) -> tuple[SettingFacts, ...]:
    """Counts for each setting of the rows, in the settings' order."""
    groups = sorted(grouped(rows, setting_of).items(), key=lambda it: it[0])
    return tuple(_facts_of(setting, group) for setting, group in groups)


def _versions(findings: Findings) -> Mapping[str, Any]:
    """Library versions of the latest run, or those a row was made with where the folder tells of no run."""
    if versions := findings.meta.get("versions"):
        return dict(versions)
    # Not `rows_with`: one row's text is wanted, and the column is heavy.
    last = findings.table["versions"][-1].as_py() if findings.rows else None
    return dict(json.loads(last or "{}"))


def num_prefills(rows: Sequence[Row]) -> int:
    """How many prefills the rows tell of: one a unit's context when fused, one a variant on it when isolated."""
    # A failed row may have failed before its prefill. Units whose rows were all replaced by newer ones are not seen here.
    return len({prefill_of(row) for row in rows if row["status"] in DONE_STATUSES})


def _command(arguments: Any) -> str:
    words = arguments if isinstance(arguments, list | tuple) else ()
    return shlex.join(map(str, hidden_in(words)))


def _facts_of(setting: Setting, rows: Sequence[Row]) -> SettingFacts:
    done = [row for row in rows if row["status"] in DONE_STATUSES]
    return SettingFacts(
        setting=setting,
        dtype=_joined(row["dtype"] for row in rows),
        device=_joined(shown_device(row["device"], row["device_name"]) for row in rows if row["device"]),
        num_items=len({row["item_id"] for row in rows}),
        num_contexts=len({row["cluster_id"] for row in rows}),
        num_variants=len({row["variant"] for row in rows}),
        num_prefills=num_prefills(rows),
        num_rows_finished=len(done),
    )


def _joined(values: Any) -> str:
    # Failed rows have no device or dtype. A sweep that went on elsewhere has several, and all of them are named.
    return ", ".join(dict.fromkeys(value for value in values if value)) or "not known"


def _shown_time(unix_s: float) -> str:
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")

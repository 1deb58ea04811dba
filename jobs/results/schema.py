"""What a result row is: its columns, and which of them may be null.

Every planned (item x variant) ends as one such row, `ok | truncated | failed`; a missing number
is null with its reason beside it, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

Row = dict[str, Any]
OK, TRUNCATED, FAILED = "ok", "truncated", "failed"
STATUSES = (OK, TRUNCATED, FAILED)
DONE_STATUSES = (OK, TRUNCATED)
"""A failed row is no result: the same command tries it again."""

_SLOTS_LH = pa.list_(pa.list_(pa.int32()))

# New columns must be nullable: files from before them are read as null there. JSON stands in text columns, since its keys
# differ from policy to policy.
RESULT_SCHEMA = pa.schema(
    [
        pa.field("identity", pa.string(), nullable=False),
        pa.field("sweep", pa.string(), nullable=False),
        pa.field("unit_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("cluster_id", pa.string(), nullable=False),
        pa.field("benchmark", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("variant", pa.string(), nullable=False),
        pa.field("policy", pa.string(), nullable=False),
        pa.field("policy_version", pa.string()),
        pa.field("policy_params", pa.string()),
        pa.field("budget_asked", pa.string()),
        pa.field("query_mode", pa.string(), nullable=False),
        pa.field("execution", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("failure_phase", pa.string()),
        pa.field("failure_type", pa.string()),
        pa.field("failure_message", pa.string()),
        pa.field("failure_traceback", pa.string()),
        pa.field("prediction", pa.string()),
        pa.field("answers", pa.list_(pa.string())),
        pa.field("all_classes", pa.list_(pa.string())),
        pa.field("metric", pa.string()),
        pa.field("scorer", pa.string()),
        pa.field("prompt_tail", pa.string()),
        pa.field("item_metadata", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("score_parts", pa.string()),
        pa.field("score_reason", pa.string()),
        pa.field("answer_nll", pa.float64()),
        pa.field("answer_nll_reason", pa.string()),
        pa.field("kl_mean", pa.float64()),
        pa.field("top1_agreement", pa.float64()),
        pa.field("num_fidelity_tokens", pa.int64()),
        pa.field("fidelity_reason", pa.string()),
        pa.field("prompt_digest", pa.string()),
        pa.field("context_tokens", pa.int64()),
        pa.field("tail_tokens", pa.int64()),
        pa.field("new_tokens", pa.int64()),
        pa.field("stop_reason", pa.string()),
        pa.field("slots", _SLOTS_LH),
        pa.field("kept_ratio", pa.float64()),
        pa.field("kv_bytes", pa.int64()),
        pa.field("full_kv_bytes", pa.int64()),
        pa.field("tail_bytes", pa.int64()),
        pa.field("form", pa.string()),
        pa.field("tail_form", pa.string()),
        pa.field("bits_k", pa.float64()),
        pa.field("bits_v", pa.float64()),
        pa.field("position_bytes", pa.int64()),
        pa.field("full_position_bytes", pa.int64()),
        pa.field("read_bytes", pa.int64()),
        pa.field("full_read_bytes", pa.int64()),
        pa.field("peak_bytes", pa.int64()),
        pa.field("peak_bytes_reason", pa.string()),
        pa.field("is_degenerate", pa.bool_()),
        pa.field("degenerate_reason", pa.string()),
        pa.field("counters", pa.string()),
        pa.field("seconds", pa.string()),
        pa.field("trace", pa.string()),
        pa.field("model", pa.string(), nullable=False),
        pa.field("model_revision", pa.string()),
        pa.field("dtype", pa.string()),
        pa.field("device", pa.string()),
        pa.field("device_name", pa.string()),
        pa.field("attention", pa.string()),
        pa.field("layers", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("versions", pa.string()),
        pa.field("created_at_s", pa.float64(), nullable=False),
    ]
)
_REQUIRED = tuple(field.name for field in RESULT_SCHEMA if not field.nullable)


class ResultError(ValueError):
    """A result folder, file or row that cannot be used, with what to do about it."""


def check_rows(unit_id: str, rows: Sequence[Row]) -> None:
    """Raise ResultError unless `rows` are whole rows of this unit, each identity once, no null without reason."""
    identities = [row.get("identity") for row in rows]
    if not rows or len(set(identities)) != len(rows):
        raise ResultError(
            f"unit {unit_id}: {len(rows)} rows with {len(set(identities))} identities; each once, and some"
        )
    for row in rows:
        problem = _problem_of(unit_id, row)
        if problem:
            raise ResultError(f"unit {unit_id}, row {row.get('identity')!r}: {problem}")


def _problem_of(unit_id: str, row: Row) -> str | None:
    """What is wrong with a row, or None."""
    names = set(RESULT_SCHEMA.names)
    if row.keys() != names:
        return f"missing {sorted(names - row.keys())}, unknown {sorted(row.keys() - names)}"
    nulls = [name for name in _REQUIRED if row[name] is None]
    if nulls:
        return f"null in {nulls}"
    # Null is the only "no value": a NaN would pass every check for null and spoil every mean.
    not_finite = [
        name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)
    ]
    if not_finite:
        return f"not finite: {not_finite}"
    if row["unit_id"] != unit_id:
        return f"belongs to unit {row['unit_id']!r}"
    if row["status"] not in STATUSES:
        return f"status {row['status']!r} is none of {STATUSES}"
    if row["status"] == FAILED:
        return None if row["failure_phase"] and row["failure_type"] else "failed without phase and type"
    pairs = {"score": "score_reason", "answer_nll": "answer_nll_reason", "kl_mean": "fidelity_reason"}
    silent = [name for name, reason in pairs.items() if row[name] is None and not row[reason]]
    return f"{silent} null without a reason" if silent else None

"""Result rows without an engine."""

from typing import Any

from jobs.result_schema import OK, RESULT_SCHEMA, Row


def make_row(identity: str, unit_id: str = "u1", **values: Any) -> Row:
    """A row of the schema; what is not named is null, or the least that a finished row needs."""
    row: Row = dict.fromkeys(RESULT_SCHEMA.names)
    row |= {field.name: field.name for field in RESULT_SCHEMA if not field.nullable}
    row |= {"identity": identity, "unit_id": unit_id, "status": OK, "created_at_s": 1.0}
    row |= {"score_reason": "none", "answer_nll_reason": "none", "fidelity_reason": "none"}
    return row | values

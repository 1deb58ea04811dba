"""Which rows came from one prefill, told by the rows alone."""

from __future__ import annotations

from collections.abc import Hashable

from evaluators.prompting import QueryMode
from jobs.result_schema import Row

ISOLATED = "isolated"


def prefill_of(row: Row) -> Hashable:
    """Equal for rows of one prefill: fused, one of a unit's contexts; isolated, one of those under one variant."""
    is_agnostic = row["query_mode"] != QueryMode.AWARE
    context = (row["cluster_id"], row["context_tokens"]) if is_agnostic else row["item_id"]
    return row["unit_id"], context, row["variant"] if row["execution"] == ISOLATED else ""

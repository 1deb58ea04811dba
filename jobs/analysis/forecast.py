"""How long a sweep will take: estimated from finished rows of its folder, or without any from the model's size.

Pure. A forecast is an order of magnitude, so whoever prints it says what it was made from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from jobs.planning.cost import cost_tokens_of
from jobs.planning.plan import Plan
from jobs.results.grouping import grouped, prefill_of
from jobs.results.schema import DONE_STATUSES, Row

_FLOPS_PER_PARAMETER_AND_TOKEN = 2
# What one device was seen to do: the demo model prefills 730 tokens/s on 2 CPU cores, 8B-shaped weights about
# 30,000 tokens/s (16k prompts) on an H200. Decoding is counted in tokens of prefill, see `cost_tokens_of`.
_FLOPS_PER_S = {"cpu": 2e11, "cuda": 4e14}
_PROMPT_PHASES = ("prefill_shared_s", "repeat_shared_s", "plan_shared_s")
_BATCH_PHASES = (
    "batch_shared_s", "tails_shared_s", "decode_shared_s", "fidelity_shared_s", "results_shared_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds of one device for everything a plan still owes.

    Estimated from the pace of `num_units` finished units, which devices of `device_names` ran (None: unknown), or, where
    that is 0, from the model's `num_parameters`.
    """

    device_s: float
    num_units: int
    num_parameters: int
    device_names: tuple[str | None, ...] = ()


def forecast(plan: Plan, num_parameters: int, device: str, rows: Sequence[Row]) -> Forecast:
    """The time for the owed units of `plan`. `rows` are results of the same model on the same kind of device, if any."""
    owed_cost = sum(unit.cost_tokens for unit in plan.units)
    units = _seconds_and_cost(rows)
    if units:
        # What this device did with these prompts is worth more than any constant above.
        pace = fmean(seconds / cost for seconds, cost in units)
        names = tuple(dict.fromkeys(row["device_name"] for row in rows if row["status"] in DONE_STATUSES))
        return Forecast(owed_cost * pace, len(units), num_parameters, names)
    kind = "cuda" if device.startswith("cuda") else "cpu"
    tokens_per_s = _FLOPS_PER_S[kind] / (_FLOPS_PER_PARAMETER_AND_TOKEN * num_parameters)
    return Forecast(owed_cost / tokens_per_s, 0, num_parameters)


def _seconds_and_cost(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """(seconds, cost) of every fused unit that has a finished row."""
    by_unit: dict[str, list[Row]] = {}
    for row in rows:
        # Isolated rows pay for a prefill each, which says nothing about a unit that shares one.
        if row["status"] in DONE_STATUSES and row["execution"] == "fused" and row["seconds"]:
            by_unit.setdefault(row["unit_id"], []).append(row)
    contexts = [list(grouped(unit, prefill_of).values()) for unit in by_unit.values()]
    return [(sum(map(_context_s, unit)), sum(map(_context_cost, unit))) for unit in contexts]


def _context_s(rows: Sequence[Row]) -> float:
    """Seconds of one context's share of its unit, each phase counted once."""
    seconds = [json.loads(row["seconds"]) for row in rows]
    compress_s = {row["variant"]: it.get("compress_s", 0.0) for row, it in zip(rows, seconds, strict=True)}
    # All rows of a batch carry its whole seconds, so equal tuples are one batch and count once. Contexts that decode
    # together carry equal parts of it.
    batches = {tuple(it.get(name, 0.0) for name in _BATCH_PHASES) for it in seconds}
    # Likewise of the prompt: every row repeats the seconds of the one prefill it shares.
    once_s = sum(max(it.get(name, 0.0) for it in seconds) for name in _PROMPT_PHASES)
    return once_s + sum(compress_s.values()) + sum(map(sum, batches))


def _context_cost(rows: Sequence[Row]) -> float:
    steps_by_item: dict[str, int] = {}
    for row in rows:
        steps_by_item[row["item_id"]] = max(steps_by_item.get(row["item_id"], 0), row["new_tokens"])
    # Rows have a second pass's seconds only where there was one.
    is_repeated = any("repeat_shared_s" in json.loads(row["seconds"]) for row in rows)
    return cost_tokens_of(rows[0]["context_tokens"], list(steps_by_item.values()), is_repeated=is_repeated)

"""What a sweep would do, as text: nothing here loads weights or writes a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evaluators.tokenizer import decode
from jobs.forecast import Forecast
from jobs.planning.plan import Plan
from jobs.planning.preparation import Prepared
from jobs.planning.prompt_check import PromptCheck
from jobs.prompt_table import render_prompts
from jobs.report_table import add_folding_column, human_bytes

_S_PER_MIN, _S_PER_HOUR = 60, 3600
_MAX_UNITS_SHOWN = 20


def render_dry_run(
    prepared: Prepared, checks: Sequence[PromptCheck], end_ids: Iterable[int], outlook: Forecast
) -> RenderableType:
    """Prompts, plan and price of a sweep."""
    end_tokens = [decode([token], prepared.tokenizer, skip_special_tokens=False) for token in sorted(end_ids)]
    price = Text(
        f"forecast: {_duration(outlook.device_s)} on one {prepared.model.device} device, {outlook.source}",
        style="bold",
    )
    plan = render_plan(prepared.plan, prepared.model.weight_bytes)
    return Group(render_prompts(checks, end_tokens), plan, price)


def _duration(seconds: float) -> str:
    """No finer than a forecast is."""
    hours = seconds / _S_PER_HOUR
    if hours >= 1:
        return f"about {hours:.1f} device-hours"
    return f"about {max(1, round(seconds / _S_PER_MIN))} min ({hours:.2g} device-hours)"


def render_plan(plan: Plan, weight_bytes: int) -> RenderableType:
    """Cells by variant, the largest units with their bytes, and what will fail or say nothing.

    `weight_bytes` is 0 where it is not known before loading.
    """
    num_owed = sum(len(unit.cells) for unit in plan.units)
    sums = Text(
        f"{plan.num_items} items x {len(plan.variants)} variants = {plan.num_cells} cells: {plan.num_done} done, "
        f"{len(plan.impossible)} impossible, {num_owed} to compute in {len(plan.units)} units",
        style="bold",
    )
    num_bytes = sum(outlook.kv_bytes for outlook in plan.outlooks)
    weights = f", beside {human_bytes(weight_bytes)} of weights" if weight_bytes else ""
    memory = Text(
        f"predicted K/V: at most {human_bytes(plan.predicted_bytes)} at once (the largest unit){weights}; "
        f"{human_bytes(num_bytes)} over all units"
    )
    return Group(_variant_table(plan), *_warnings(plan), Text(), _unit_table(plan), memory, sums)


def _variant_table(plan: Plan) -> Table:
    table = _table("variant", "cells", "done", "impossible", "foreseen degenerate")
    for it in plan.variants:
        table.add_row(
            Text(it.label), *map(str, (it.num_cells, it.num_done, it.num_impossible, it.num_degenerate))
        )
    return table


def _unit_table(plan: Plan) -> Table:
    table = _table("unit", "contexts", "longest (tokens)", "questions", "cells", "predicted K/V")
    largest = sorted(plan.outlooks, key=lambda outlook: -outlook.kv_bytes)
    for it in largest[:_MAX_UNITS_SHOWN]:
        numbers = (
            str(it.num_contexts),
            f"{it.context_tokens:,}",
            str(it.num_questions),
            str(it.num_cells),
            human_bytes(it.kv_bytes),
        )
        table.add_row(it.unit_id, *numbers)
    if len(largest) > _MAX_UNITS_SHOWN:
        table.add_row(f"… and {len(largest) - _MAX_UNITS_SHOWN} smaller ones")
    return table


def _warnings(plan: Plan) -> list[Text]:
    impossible = [
        Text(f"impossible: {it.label} on {it.num_impossible} of {it.num_cells} items: {it.impossible_reason}")
        for it in plan.variants
        if it.num_impossible
    ]
    degenerate = [
        Text(f"degenerate: {it.label} keeps everything on {it.num_degenerate} of {it.num_cells} items")
        for it in plan.variants
        if it.num_degenerate
    ]
    return impossible + degenerate


def _table(*heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, head in enumerate(heads):
        add_folding_column(table, head, "right" if index else "left")
    return table

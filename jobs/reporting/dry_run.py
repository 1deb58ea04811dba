"""What a sweep would do, as text, from a plan alone: nothing here loads weights or writes a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, ConsoleRenderable, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from evaluators.prompting import QueryMode
from evaluators.tokenizer import decode
from jobs.analysis.forecast import Forecast
from jobs.console.addresses import shown_address
from jobs.planning.cost import task_costs
from jobs.planning.plan import Plan, VariantCounts
from jobs.planning.preparation import Prepared
from jobs.planning.prompt_check import PromptCheck, told_of_shared_contexts
from jobs.reporting.notation import UNKNOWN, human_bytes, percent, shown_device
from jobs.reporting.table import add_folding_column
from jobs.settings.mlflow_variables import origin_of, origin_of_id
from jobs.settings.schema import Settings

_S_PER_MIN, _S_PER_HOUR = 60, 3600
_UNIT_DIGITS = 8  # enough to find its file by
_MILLION = 1e6
_MAX_UNITS_SHOWN = 20


def render_dry_run(
    prepared: Prepared,
    checks: Sequence[PromptCheck],
    end_ids: Iterable[int],
    forecast: Forecast,
    settings: Settings,
    device_name: str | None = None,
) -> RenderableType:
    """What is asked, and what is to be said of the model; prompts, plan and price of a sweep.

    `device_name` is None where only the machine that runs it knows.
    """
    # One by one, since a list of tokens would come back as one text without borders.
    end_tokens = [decode([token], prepared.tokenizer, skip_special_tokens=False) for token in sorted(end_ids)]
    price = Text(
        f"forecast: {_duration(forecast.device_s)} on one device: {shown_device(prepared.model.device, device_name)}, "
        f"{shown_source(forecast)}",
        style="bold",
    )
    plan = render_plan(prepared.plan, prepared.model.weight_bytes)
    costs = render_costs(prepared.plan, forecast)
    said = [_warning(text) for text in prepared.warnings]
    sharing = told_of_shared_contexts(prepared.plan, settings.query_mode)
    told = (shown_query_mode(settings), sharing, shown_tracking(settings))
    asked = [Text(it) for it in told if it]
    return Group(*asked, *said, Text(), render_prompts(checks, end_tokens), plan, Text(), costs, price)


def shown_query_mode(settings: Settings) -> str:
    """The query mode, whether anybody chose it, and what it means: two modes are never compared."""
    is_chosen = "query_mode" in settings.model_fields_set
    sees = "sees" if settings.query_mode is QueryMode.AWARE else "does not see"
    return f"query mode: {settings.query_mode.value}{'' if is_chosen else ' (the default)'}: compression {sees} the question"


def shown_tracking(settings: Settings) -> str:
    """Where MLflow will have it, and which variable of its own said so."""
    tracking, uri = settings.tracking, settings.tracking_uri
    if not tracking.enabled:
        return "MLflow: off"
    experiment = tracking.experiment or settings.name
    if its_id := tracking.experiment_id:
        experiment = f"with the id {its_id}{origin_of_id(its_id)}"
    return f"MLflow: {shown_address(uri)}{origin_of(uri)}, experiment {experiment}"


def _duration(seconds: float) -> str:
    """Device-hours, and minutes below one hour, no finer than a forecast is."""
    hours = seconds / _S_PER_HOUR
    if hours >= 1:
        return f"about {hours:.1f} device-hours"
    return f"about {max(1, round(seconds / _S_PER_MIN))} min ({hours:.2g} device-hours)"


def shown_source(forecast: Forecast) -> str:
    """What the estimate comes from, which says how far to trust it."""
    if forecast.num_units:
        names = ", ".join(name or "a device whose name is unknown" for name in forecast.device_names)
        return f"from the pace of {forecast.num_units} finished units in this folder, on {names}"
    millions = forecast.num_parameters / _MILLION
    return f"from the model's {millions:,.0f} M parameters; an order of magnitude only"


def render_costs(plan: Plan, forecast: Forecast) -> RenderableType:
    """What each task's owed rows take: tokens read and said, time, memory. Nothing where no row is owed."""
    costs = task_costs(plan.units, {size.unit_id: size.kv_bytes for size in plan.unit_sizes})
    price = sum(it.cost_tokens for it in costs)
    if not price:
        return Text("nothing is left to compute")
    table = _table("task", "items", "prompt tokens", "answer tokens", "time", "K/V at once")
    for it in costs:
        seconds = forecast.device_s * it.cost_tokens / price
        numbers = (
            f"{it.num_items:,}",
            f"{it.prompt_tokens:,}",
            f"≤ {it.answer_tokens:,}",
            _short_duration(seconds),
        )
        table.add_row(it.task, *numbers, f"≤ {human_bytes(it.kv_bytes)}")
    legend = Text(
        "of what is left to compute; prompts are read once, answers are those of all variants; time as if each took all "
        "the tokens it may have",
        style="dim",
    )
    return Group(table, legend)


def _short_duration(seconds: float) -> str:
    if seconds < _S_PER_MIN:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / _S_PER_MIN:.0f} min" if seconds < _S_PER_HOUR else f"{seconds / _S_PER_HOUR:.1f} h"


def render_plan(plan: Plan, weight_bytes: int) -> RenderableType:
    """Cells by variant, the largest units with their bytes, and what will fail or say nothing.

    `weight_bytes` is 0 where it is not known before loading.
    """
    num_owed = sum(len(unit.row_keys) for unit in plan.units)
    sums = Text(
        f"{plan.num_items} items x {len(plan.variants)} variants = {plan.num_rows} rows: {plan.num_done} done, "
        f"{len(plan.impossible)} impossible, {num_owed} to compute in {len(plan.units)} units",
        style="bold",
    )
    num_bytes = sum(size.kv_bytes for size in plan.unit_sizes)
    weights = f", beside {human_bytes(weight_bytes)} of weights" if weight_bytes else ""
    memory = Text(
        f"predicted K/V: at most {human_bytes(plan.predicted_bytes)} at once (the largest unit){weights}; "
        f"{human_bytes(num_bytes)} over all units"
    )
    return Group(
        _variant_table(plan),
        Text(_said_of_sizes(plan), style="dim"),
        *_warnings(plan),
        Text(),
        _unit_table(plan),
        memory,
        sums,
    )


def _said_of_sizes(plan: Plan) -> str:
    if not plan.typical_tokens:
        return "no item has a context: every variant holds its whole prompt, and budgets bound prompt and answer together"
    return (
        f"of the median context ({plan.typical_tokens:,} tokens): slots per KV head, bytes of keys and values without "
        "positions; ≤: the prompt decides"
    )


@dataclass(frozen=True)
class _Name:
    """A variant's name in a column; where that is narrow, lines end behind a plus sign or before a budget."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("\n".join(self._lines(options.max_width)))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        # What is longer than the column all the same is folded by rich.
        longest = max(map(len, self._pieces))
        return Measurement(longest, len(self.text)).with_maximum(options.max_width)

    @property
    def _pieces(self) -> list[str]:
        return [piece for piece in re.split(r"(?<=\+)|(?=@)", self.text) if piece]

    def _lines(self, width: int) -> list[str]:
        lines = [""]
        for piece in self._pieces:
            if lines[-1] and len(lines[-1]) + len(piece) > width:
                lines.append("")
            lines[-1] += piece
        return lines


def _variant_table(plan: Plan) -> Table:
    table = _table("variant", "rows", "done", "impossible", "degenerate", "slots", "bytes", "of full")
    for it in plan.variants:
        counts = map(str, (it.num_rows, it.num_done, it.num_impossible, it.num_degenerate))
        table.add_row(_Name(it.label), *counts, *_size(it, plan.typical_bytes))
    return table


def _size(variant: VariantCounts, full_bytes: int) -> tuple[str, str, str]:
    """Slots per KV head, bytes of keys and values without positions, and the latter's share of the full cache's."""
    size = variant.size
    if size is None or not full_bytes:
        return UNKNOWN, UNKNOWN, UNKNOWN
    most = "≤ " if size.is_at_most else ""
    shares = percent(size.num_bytes / full_bytes)
    return f"{most}{size.num_slots:,}", f"{most}{human_bytes(size.num_bytes)}", f"{most}{shares}"


def _unit_table(plan: Plan) -> Table:
    table = _table("unit", "contexts", "longest (tokens)", "questions", "rows", "predicted K/V")
    largest = sorted(plan.unit_sizes, key=lambda size: -size.kv_bytes)
    for it in largest[:_MAX_UNITS_SHOWN]:
        numbers = (
            str(it.num_contexts),
            f"{it.context_tokens:,}",
            str(it.num_questions),
            str(it.num_rows),
            human_bytes(it.kv_bytes),
        )
        table.add_row(it.unit_id[:_UNIT_DIGITS], *numbers)
    if len(largest) > _MAX_UNITS_SHOWN:
        table.add_row(f"… and {len(largest) - _MAX_UNITS_SHOWN} smaller ones")
    return table


def _warnings(plan: Plan) -> list[Text]:
    impossible = [
        Text(f"impossible: {it.label} on {it.num_impossible} of {it.num_rows} items: {it.impossible_reason}")
        for it in plan.variants
        if it.num_impossible
    ]
    degenerate = [
        Text(
            f"degenerate: {it.label} leaves the cache as it is on {it.num_degenerate} of {it.num_rows} items"
        )
        for it in plan.variants
        if it.num_degenerate
    ]
    return impossible + degenerate


def _table(*heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, head in enumerate(heads):
        add_folding_column(table, head, "right" if index else "left")
    return table


def render_prompts(checks: Sequence[PromptCheck], end_tokens: Sequence[str]) -> RenderableType:
    """One block per task. `end_tokens` are the tokens that end an answer, as text."""
    blocks: list[ConsoleRenderable] = []
    for check in checks:
        blocks += [_block(check, end_tokens), *_prompt_warnings(check, end_tokens), Text()]
    return Group(*blocks)


def _block(check: PromptCheck, end_tokens: Sequence[str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, title=check.task, title_justify="left")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    truncated = f"{check.num_truncated} of {check.num_items}"
    if check.num_truncated:
        truncated += f" (the longest had {check.longest_untruncated_tokens:,} tokens)"
    facts = {
        "tokens": f"median {check.median_tokens:,}, longest {check.longest_tokens:,}; {_kept_out(check)}",
        "cut in the middle": truncated,
        "chat template": check.template,
        "BOS": check.bos,
        "the prompt ends" if check.is_context_free else "compressed up to": repr(check.compressed_end),
        "tail": repr(check.tail),
        "answer prefix": repr(check.answer_prefix) if check.answer_prefix else "none",
        "first gold answer": repr(check.first_gold) if check.first_gold else "none: only scored without one",
        "answer ends at": f"{check.max_new_tokens:,} tokens, or {' '.join(end_tokens) or 'nothing else'}",
    }
    for head, text in facts.items():
        # As `Text`: a prompt may hold square brackets, which rich would take for its markup.
        table.add_row(head, Text(text))
    return table


def _kept_out(check: PromptCheck) -> str:
    if check.is_context_free:
        return "no context: nothing is compressed before the answer"
    return f"of the first {check.tail_tokens} are tail, never compressed"


def _prompt_warnings(check: PromptCheck, end_tokens: Sequence[str]) -> Iterator[Text]:
    if check.num_without_prompt:
        yield _warning(f"{check.num_without_prompt} of {check.num_items} items have no sound prompt")
    yield from map(_warning, check.warnings)
    if not end_tokens:
        yield _warning("no end token is known: every answer will be as long as it may be")


def _warning(text: str) -> Text:
    return Text(f"warning: {text}", style="yellow")

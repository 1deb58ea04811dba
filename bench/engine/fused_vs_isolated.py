"""One prefill and one batch for all variants, against every variant alone: seconds for the same items, in one run.

    python -m bench.engine.fused_vs_isolated [CONFIG.yaml] [--limit 8] [--set a.b=value]

Each item runs both ways back to back, in alternating order, on one loaded model; a first item warms up and is not
counted. Both ways give the same rows; how far their numbers are apart is printed beside the times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from jobs.planning.preparation import prepare
from jobs.planning.work import WorkUnit
from jobs.settings.schema import Settings, load_settings
from kvmerger.building import Variant, build_variant
from kvmerger.engine import Engine
from kvmerger.generation import Generation, Prompt, Question
from kvmerger.models.loading import load_model
from kvmerger.variants import REFERENCE_LABELS

DEFAULT_CONFIG = Path(__file__).parents[2] / "jobs" / "configs" / "demo.yaml"
EXECUTIONS = ("fused", "isolated")


@dataclass(frozen=True)
class Timed:
    """Seconds of one item by execution, and the rows each gave."""

    seconds: dict[str, float]
    rows: dict[str, dict[tuple[str, int], Generation]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", type=Path, default=DEFAULT_CONFIG)
    parser.add_argument("--limit", type=int, default=8, help="items of each task")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=value")
    options = parser.parse_args()
    # A unit is one prompt here: isolated runs know no together.
    settings = load_settings(options.config, [*options.overrides, "items_at_once=1"], options.limit)
    console = Console(width=110)
    units = owed_units(settings)
    asked = settings.model
    model = load_model(asked.name, revision=asked.revision, dtype=asked.dtype, device=asked.device)
    engine = Engine(model)
    variants = [build_variant(spec) for spec in settings.variants if spec.label not in REFERENCE_LABELS]
    run_once(engine, units[0], variants, EXECUTIONS)
    timed = []
    for index, unit in enumerate(units):
        # Alternating, so that neither way always runs on what the other left warm.
        timed.append(run_once(engine, unit, variants, EXECUTIONS if index % 2 else EXECUTIONS[::-1]))
        seconds = ", ".join(f"{name} {timed[-1].seconds[name]:.1f} s" for name in EXECUTIONS)
        console.print(f"item {index + 1} of {len(units)}: {seconds}", highlight=False)
    info = model.info
    console.print(
        f"\n{info.name}@{info.revision}, {info.dtype} on {info.device}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads; {len(units)} items x {len(variants) + len(REFERENCE_LABELS)} rows",
        highlight=False,
    )
    console.print(table_of(timed))


def owed_units(settings: Settings) -> tuple[WorkUnit, ...]:
    """The sweep's units as if nothing had been computed yet."""
    return prepare(settings, done=(), find_device=lambda: settings.model.device).plan.units


def run_once(engine: Engine, unit: WorkUnit, variants: Sequence[Variant], order: Sequence[str]) -> Timed:
    """Run one unit each way."""
    questions = tuple(
        Question(item.tokens.tail_ids, item.tokens.gold_ids, item.item.max_new_tokens) for item in unit.items
    )
    prompt = Prompt(unit.items[0].tokens.context_ids, questions)
    seconds, rows = {}, {}
    for execution in order:
        start_s = time.perf_counter()
        outcomes = engine.run(prompt, variants, execution=execution)  # type: ignore[arg-type]
        seconds[execution] = time.perf_counter() - start_s
        rows[execution] = {
            (outcome.label, outcome.question_index): outcome
            for outcome in outcomes
            if isinstance(outcome, Generation)
        }
    return Timed(seconds, rows)


def table_of(timed: Sequence[Timed]) -> Table:
    """Times of both ways, and how their numbers agree."""
    pairs = [
        (fused, item.rows["isolated"][key]) for item in timed for key, fused in item.rows["fused"].items()
    ]
    table = Table(box=None)
    for name in ("execution", "seconds in all", "per item (median)", "speed-up"):
        table.add_column(name, justify="left" if name == "execution" else "right")
    totals = {name: sum(item.seconds[name] for item in timed) for name in EXECUTIONS}
    for name in EXECUTIONS:
        median_s = statistics.median(item.seconds[name] for item in timed)
        table.add_row(
            name, f"{totals[name]:.1f}", f"{median_s:.1f}", f"{totals['isolated'] / totals[name]:.2f}x"
        )
    same_slots = sum(fused.slots_LH == alone.slots_LH for fused, alone in pairs)
    same_tokens = sum(fused.token_ids == alone.token_ids for fused, alone in pairs)
    table.caption = (
        f"of {len(pairs)} rows, {same_slots} kept the same slots and {same_tokens} gave the same tokens both ways; "
        f"largest difference in KL {max(abs(fused.kl_mean - alone.kl_mean) for fused, alone in pairs):.2g} nats"
    )
    return table


if __name__ == "__main__":
    main()

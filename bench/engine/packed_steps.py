"""Whole decoding steps over packed prefixes: a step of each form beside the time to read its own bytes.

    python -m bench.engine.packed_steps [--tokens 16384] [--rows 16] [--new 64] [--forms plain,fp8,int8,int4,kivi4,mixed]

Needs CUDA. The model has the shape of Llama-3.1-8B and random weights; every row is the whole prompt in one form, ``mixed``
has a form a row. A step is the recorded loop's wall clock ÷ its steps; its floor is weights, K/V, scales and log mass at the
bandwidth of a copy, which is measured here.

Predicted for an H200 (15 GB of weights, 4.25 TB/s) from one layer's attention: plain 34.4 GB of cache, a floor of 11.6 ms
and 1.15 times that; fp8 7.6 and 1.25; int4 5.7 and 1.35, since the weights, which are read at 85 %, are by then two thirds of
the bytes; kivi4 6.1 and 1.5. mixed: between its forms, and 2 ms more for what 6 forms launch in 32 layers.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table

from bench.clock import copy_bandwidth
from bench.engine.decode_steps import NUM_REPEATS, random_prompt
from bench.random_llama import random_llama, weight_bytes_per_step
from kvmerger.cache.forms import registry
from kvmerger.cache.packed_layer import HeldLayer
from kvmerger.cache.slot_table import storage_addresses
from kvmerger.decoding.batch import Batch, Row
from kvmerger.decoding.step_graphs import graphs_for
from kvmerger.engine.compress import Compressed
from kvmerger.engine.fused import rows_of
from kvmerger.engine.storing import sizes_of, stored
from kvmerger.generation import Prompt
from kvmerger.limits import bucket_for
from kvmerger.models.loading import LoadedModel
from kvmerger.prefill.prefill import Prefilled, prefill

PLAIN, MIXED = "plain", "mixed"
FORMS = (PLAIN, "fp8", "int8", "int4", "kivi4", "kivi2")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--forms", default=",".join((*FORMS, MIXED)))
    options = parser.parse_args()
    options.questions = 1
    if not torch.cuda.is_available():
        parser.error("this benchmark measures a CUDA device, and torch sees none")
    with torch.inference_mode():
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Decode in each form, and print a table."""
    model = random_llama("8b", "cuda")
    prompt = random_prompt(options, model.info.vocab_size)
    prefilled = prefill(model, prompt.context_ids, frozenset())
    bandwidth = copy_bandwidth(model.device)
    weight_bytes = weight_bytes_per_step(model)
    table = Table(
        title=f"{options.rows} rows of {options.tokens:,} tokens, {weight_bytes / 1e9:.1f} GB of weights, "
        f"a copy moves {bandwidth / 1e12:.2f} TB/s"
    )
    for name in ("form", "GB of cache read", "a step ms", "floor ms", "of the floor", "x plain"):
        table.add_column(name, justify="left" if name == "form" else "right")
    plain_s = None
    for name in options.forms.split(","):
        prefixes = make_prefixes(prefilled, name, options.rows)
        cache_bytes = sum(sizes_of(prefix).read for prefix in prefixes)
        labels = {str(row): Compressed(str(row), prefix, None, 0.0) for row, prefix in enumerate(prefixes)}
        step_s = seconds_per_step(model, prompt, rows_of(labels, list(labels), prompt), options.new - 1)
        plain_s = step_s if name == PLAIN else plain_s
        floor_s = (weight_bytes + cache_bytes) / bandwidth
        speed = "" if plain_s is None else f"{plain_s / step_s:.2f}"
        cells = (cache_bytes / 1e9, 1e3 * step_s, 1e3 * floor_s, step_s / floor_s)
        table.add_row(name, *(f"{cell:.2f}" for cell in cells), speed)
        del prefixes, labels
        torch.cuda.empty_cache()
    console = Console(width=120)
    console.print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16", highlight=False)
    console.print(table)


def make_prefixes(prefilled: Prefilled, name: str, num_rows: int) -> list[tuple[HeldLayer, ...]]:
    """The whole prompt once a row, each row in storages of its own."""
    names = FORMS if name == MIXED else (name,)
    return [_prefix(prefilled, names[row % len(names)]) for row in range(num_rows)]


def _prefix(prefilled: Prefilled, name: str) -> tuple[HeldLayer, ...]:
    if name == PLAIN:
        full = storage_addresses(tensor for layer in prefilled.layers for tensor in layer.tensors())
        return tuple(layer.owning(full) for layer in prefilled.layers)
    return tuple(stored(prefilled.layers, registry.get(name)(), set()))


def seconds_per_step(model: LoadedModel, prompt: Prompt, rows: list[Row], num_steps: int) -> float:
    """Of the recorded loop; the first time records it."""
    batch = Batch(model, prompt, dict(enumerate(rows)), bucket_for(len(rows)), graphs_for(model))
    batch.decode()
    seconds = []
    for _ in range(NUM_REPEATS):
        batch.decode()
        seconds.append(batch.decode_s - batch.record_s)
    return min(seconds) / num_steps  # whatever interferes only adds to a time


if __name__ == "__main__":
    main()

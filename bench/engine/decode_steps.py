"""Decoding one prompt under many variants: a step of the eager loop, one of the CUDA graph, and the time to read the bytes.

    python -m bench.engine.decode_steps [--tokens 16384] [--variants 13] [--new 64] [--questions 1] [--decode-rules]

Needs CUDA. The model has the shape of Llama-3.1-8B and random weights. The variants are `knorm` at budgets from 0.2 to 0.8
(with `--decode-rules` every second one slides a window while it answers); full and no-context rows come on top. "a step" is
the decode's wall clock without recording ÷ its steps. The floor is weights and K/V ÷ this device's bandwidth, measured by
copying. Both loops' answers are compared.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table

from bench.clock import copy_bandwidth
from bench.random_llama import random_llama, weight_bytes_per_step
from kvmerger.building import build_variant
from kvmerger.cache.slot_table import storage_bytes
from kvmerger.decoding.batch import Batch
from kvmerger.decoding.decode_loop import Answer
from kvmerger.decoding.step_graphs import StepGraphs, graphs_for
from kvmerger.engine.compress import compress_all
from kvmerger.engine.fused import needs_of, rows_of, with_references
from kvmerger.generation import Prompt, Question
from kvmerger.limits import bucket_for
from kvmerger.models.loading import LoadedModel
from kvmerger.prefill.prefill import prefill
from kvmerger.variants import FULL_AA, parse_policies

GIB = 2**30
NUM_REPEATS = 3
TAIL_TOKENS = 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--variants", type=int, default=13)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--questions", type=int, default=1)
    parser.add_argument("--decode-rules", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark measures a CUDA device, and torch sees none")
    with torch.inference_mode():
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Decode with both loops, and print a table."""
    model = random_llama("8b", "cuda")
    prompt = random_prompt(options, model.info.vocab_size)
    batches = {"eager": None, "CUDA graph": graphs_for(model)}
    rows = make_rows(model, prompt, options)
    kv_bytes = sum(
        storage_bytes(tensor for layer in row.prefix for tensor in layer.tensors()) for row in rows.values()
    )
    floor_s = (weight_bytes_per_step(model) + kv_bytes) / copy_bandwidth(model.device)
    table = Table(
        title=f"{len(rows)} rows, {kv_bytes / GIB:.1f} GiB of K/V, floor {1e3 * floor_s:.1f} ms a step"
    )
    for name in ("loop", "first decode s", "recording s", "decode s", "a step ms", "of the floor"):
        table.add_column(name, justify="left" if name == "loop" else "right")
    said: list[dict[int, Answer]] = []
    for name, graphs in batches.items():
        # A step less than there are new tokens: the tail's pass gives the first.
        cells, answers = timed(model, prompt, rows, graphs, options.new - 1, floor_s)
        said.append(answers)
        table.add_row(name, *cells)
    console = Console(width=120)
    console.print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16", highlight=False)
    console.print(table)
    console.print("the answers are the same" if said[0] == said[1] else "THE ANSWERS DIFFER")
    console.print(f"most memory allocated: {torch.cuda.max_memory_allocated() / GIB:.1f} GiB")


def timed(
    model: LoadedModel, prompt: Prompt, rows: dict, graphs: StepGraphs | None, num_steps: int, floor_s: float
) -> tuple[list[str], dict[int, Answer]]:
    """A table row's cells, and the answers."""
    batch = Batch(model, prompt, rows, bucket_for(len(rows)), graphs)
    answers = batch.decode()
    first_s, record_s = batch.decode_s, batch.record_s
    seconds = []
    for _ in range(NUM_REPEATS):
        batch.decode()
        seconds.append(batch.decode_s - batch.record_s)
    best_s = min(seconds)  # whatever interferes only adds to a time
    step_s = best_s / num_steps
    cells = [first_s, record_s, best_s, 1e3 * step_s, step_s / floor_s]
    return [f"{cell:.2f}" for cell in cells], answers


def random_prompt(options: argparse.Namespace, vocab_size: int) -> Prompt:
    """Random tokens, the same each time."""
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocab_size, (count,), generator=draw).tolist())

    questions = tuple(Question(tokens(TAIL_TOKENS), (), options.new) for _ in range(options.questions))
    return Prompt(tokens(options.tokens), questions)


def make_rows(model: LoadedModel, prompt: Prompt, options: argparse.Namespace) -> dict:
    """Rows of all variants and of the full and no-context references, by index."""
    entries = []
    for index in range(options.variants):
        name = "knorm+streaming_llm_decode" if options.decode_rules and index % 2 else "knorm"
        budget = 0.2 + 0.6 * index / max(options.variants - 1, 1)
        entries.append({"name": name, "budget": round(budget, 3), "label": f"v{index}"})
    variants = [build_variant(spec) for spec in parse_policies(entries)]
    prefilled = prefill(model, prompt.context_ids, needs_of(variants))
    compressed = with_references(compress_all(prefilled, variants), prefilled)
    labels = [label for label in compressed if label != FULL_AA]
    return dict(enumerate(rows_of(compressed, labels, prompt)))


if __name__ == "__main__":
    main()

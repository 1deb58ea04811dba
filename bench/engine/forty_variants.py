"""What it costs to compress one prompt for 40 variants at once: every policy that needs no second pass, at two budgets.

    python -m bench.engine.forty_variants [--shape 8b] [--tokens 16384]

The model has random weights. The prompt is prefilled once for all of them, and compressed three times; the best counts, since
the first compiles kernels and computes what evidence later calls find ready. Its wall clock stands first, then each policy's
own seconds. What evidence costs during prefill is the difference to a prefill without any.

Predicted for an H200, 8B shape, 16k: 2-4 ms a variant of a plain ranking, 7 of a merging one, so 40 take 0.15-0.2 s;
compactor's leverage scores and chunkkv's sums are what could make it 0.3.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table

from bench.random_llama import random_llama, tokens_of
from kvmerger.building import Variant, build_variant
from kvmerger.device import now_s
from kvmerger.engine.compress import Compression, compress_all
from kvmerger.engine.fused import needs_of
from kvmerger.models.loading import LoadedModel
from kvmerger.prefill.prefill import Prefilled, prefill
from kvmerger.variants import parse_policies

BUDGETS = (0.5, 0.25)
POLICIES = (
    "knorm", "streaming_llm", "snapkv", "tova", "keydiff", "h2o", "lagkv", "cur", "expected_attention",
    "observed_attention", "defensivekv", "layer_defensivekv", "compactor", "duo_attention", "snapkv+adakv",
    "snapkv+criticalkv", "snapkv+chunkkv", "kvmerger", "keydiff+keepkv", "snapkv+blocks16",
)  # fmt: skip
NUM_REPEATS = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="8b")
    parser.add_argument("--tokens", type=tokens_of, default=16384)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = random_llama(options.shape, device)
    variants = [
        build_variant(spec)
        for spec in parse_policies([{"name": name, "budget": [*BUDGETS]} for name in POLICIES])
    ]
    ids = torch.randint(
        model.info.vocab_size, (options.tokens,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    with torch.inference_mode():
        measure(model, ids, variants)


def measure(model: LoadedModel, ids: list[int], variants: list[Variant]) -> None:
    """Prefill and compress, and print."""
    console = Console(width=110)
    prefill(model, ids, frozenset())  # what compiles does so here
    _, plain_s = timed_prefill(model, ids, [])
    timed_prefill(model, ids, variants)
    prefilled, evidence_s = timed_prefill(model, ids, variants)
    calls = [timed_compress(prefilled, variants, model.device) for _ in range(NUM_REPEATS)]
    compression, best_s = min(calls, key=lambda call: call[1])
    console.print(
        f"{len(variants)} variants of {len(ids):,} tokens: {best_s:.3f} s to compress "
        f"(calls: {', '.join(f'{seconds:.3f}' for _, seconds in calls)}); prefill {plain_s:.2f} s, with all evidence "
        f"{evidence_s:.2f} s",
        highlight=False,
    )
    for failure in compression.failed.values():
        console.print(f"{failure.label}: {failure.error_type.__name__}: {failure.message}", highlight=False)
    table = Table()
    for name in ("variant", "ms", "kept"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    full_slots = sum(layer.num_slots for layer in prefilled.layers)
    for variant in variants:
        if done := compression.done.get(variant.label):
            share = sum(layer.num_slots for layer in done.prefix) / full_slots
            table.add_row(variant.label, f"{1e3 * done.compress_s:.1f}", f"{share:.1%}")
    console.print(table)


def timed_prefill(model: LoadedModel, ids: list[int], variants: list[Variant]) -> tuple[Prefilled, float]:
    """A prefill with the evidence of ``variants``, and its seconds."""
    start_s = now_s(model.device)
    prefilled = prefill(model, ids, needs_of(variants))
    return prefilled, now_s(model.device) - start_s


def timed_compress(
    prefilled: Prefilled, variants: list[Variant], device: torch.device
) -> tuple[Compression, float]:
    """All variants at once, and the seconds."""
    start_s = now_s(device)
    compression = compress_all(prefilled, variants)
    return compression, now_s(device) - start_s


if __name__ == "__main__":
    main()

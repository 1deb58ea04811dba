"""A prompt of 128k tokens with 8 variants on one GPU: does it fit, how long does it take, and where is the memory's peak?

    python -m bench.engine.long_context [--tokens 130944] [--history $OUT/memory.pickle]

A row for each phase, and for prefill one for each layer's attention: bytes allocated when it ends and the most since the row
before. The trace behind it is written as JSON lines with --output (or $OUT); ``--history`` also writes the allocator's own
record, for https://pytorch.org/memory_viz.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from bench.random_llama import NUM_NEW_TOKENS, SHAPES, make_prompt, random_llama, tokens_of
from kvmerger.building import build_variant
from kvmerger.decoding.extend import _ExtendAttention
from kvmerger.engine import Engine
from kvmerger.generation import Generation
from kvmerger.models.loading import LoadedModel
from kvmerger.prefill.prefill import PrefillAttention
from kvmerger.variants import parse_policies

_GIB = 2**30
_MOST_RECORDED_EVENTS = 100_000
POLICIES: list[dict[str, Any]] = [
    {"name": "streaming_llm", "budget": [0.5, 0.1]},
    {"name": "knorm", "budget": [0.5, 0.1]},
    {"name": "snapkv", "budget": [0.5, 0.1]},
    {"name": "kvmerger_paper", "budget": 0.35},
    {"name": "kvmerger", "budget": 0.35},
]
"""Eight variants; the full cache is the ninth row."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Bytes allocated at a moment, and the most since the moment before."""

    name: str
    at_s: float
    allocated_bytes: int
    peak_bytes: int


@dataclass
class MemoryWatch:
    """Notes a moment whenever it is told to; on a CPU bytes are 0."""

    device: torch.device
    start_s: float = field(default_factory=time.perf_counter)
    moments: list[Moment] = field(default_factory=list)

    def note(self, name: str) -> None:
        """Wait for the device and write down what it holds."""
        allocated = peak = 0
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            # Read before the reset: this peak belongs to what ends here.
            allocated = torch.cuda.memory_allocated(self.device)
            peak = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self.moments.append(Moment(name, time.perf_counter() - self.start_s, allocated, peak))


def main() -> None:
    """Run one prompt and print where memory goes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # Room for the tail and the answer within Llama-3.1's 131,072 positions.
    parser.add_argument("--tokens", type=tokens_of, default=128 * 1024 - 128)
    parser.add_argument("--new-tokens", type=int, default=NUM_NEW_TOKENS)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    out = os.environ.get("OUT")
    parser.add_argument("--output", type=Path, default=Path(out) / "long_context.jsonl" if out else None)
    parser.add_argument("--history", type=Path, help="where the allocator's record goes (a large pickle)")
    options = parser.parse_args()
    model = random_llama(options.shape, options.device)
    if options.history:
        # Private in torch, and the only way to what pytorch.org/memory_viz reads.
        torch.cuda.memory._record_memory_history(max_entries=_MOST_RECORDED_EVENTS)
    watch = MemoryWatch(model.device)
    watch.note("weights loaded")
    try:
        outcomes = run_watched(model, options.tokens, options.new_tokens, watch)
        for outcome in outcomes:
            print(_line(outcome))
    finally:
        # Also when memory has run out, which is when the trace is wanted most.
        watch.note("end")
        print(table(watch.moments))
        if options.output:
            options.output.write_text("".join(json.dumps(asdict(moment)) + "\n" for moment in watch.moments))
        if options.history:
            torch.cuda.memory._dump_snapshot(str(options.history))


def run_watched(model: LoadedModel, num_tokens: int, num_new_tokens: int, watch: MemoryWatch) -> list[Any]:
    """`Engine.run`, with a moment noted after each layer of prefill and each step after it."""
    prompt = make_prompt(model, num_tokens, 2.0, num_new_tokens)
    variants = [build_variant(spec) for spec in parse_policies(POLICIES)]
    # Whoever computes the layers, fused or not, asks a handler once in each.
    with (
        patch.object(PrefillAttention, "attend", _noting(watch, PrefillAttention.attend, "prefill")),
        patch.object(_ExtendAttention, "attend", _noting(watch, _ExtendAttention.attend, None)),
    ):
        return list(Engine(model).run(prompt, variants))


def table(moments: list[Moment]) -> str:
    """Moments as markdown, the highest peak in bold; steps of decoding are one row."""
    highest = max(moments, key=lambda moment: moment.peak_bytes)
    lines = ["| at (s) | after | GiB allocated | most before (GiB) |", "|--:|:--|--:|--:|"]
    for moment in moments:
        mark = "**" if moment is highest else ""
        lines.append(
            f"| {moment.at_s:.1f} | {moment.name} | {moment.allocated_bytes / _GIB:.1f} | "
            f"{mark}{moment.peak_bytes / _GIB:.1f}{mark} |"
        )
    return "\n".join(lines)


def _noting(watch: MemoryWatch, attend: Callable[..., Any], phase: str | None) -> Callable[..., Any]:
    """``attend``, with a moment after each layer's where there is a ``phase``; otherwise one before each pass's first."""

    def noted(handler: Any, layer_index: int, q_BQTD: torch.Tensor, *others: Any) -> Any:
        num_new = q_BQTD.shape[2]
        if phase is None and layer_index == 0 and num_new > 1:
            # All before a batch's first pass was compressing and building the batch.
            watch.note(f"before {num_new} tokens a row")
        out_BTQD = attend(handler, layer_index, q_BQTD, *others)
        if phase is not None:
            watch.note(f"{phase}, attention of layer {layer_index}")
        return out_BTQD

    return noted


def _line(outcome: Any) -> str:
    if not isinstance(outcome, Generation):
        return f"{outcome.label}: failed in {outcome.phase}: {outcome.error_type}: {outcome.message}"
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in outcome.seconds.items())
    return (
        f"{outcome.label}: {outcome.kv_bytes / _GIB:.2f} GiB of {outcome.full_kv_bytes / _GIB:.2f}; {seconds}"
    )


if __name__ == "__main__":
    main()

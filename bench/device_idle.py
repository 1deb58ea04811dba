"""How long the device waits between two items that are run back to back, and how long within them.

    python -m bench.device_idle [--items 200] [--tokens 2k]

All items run; in windows spread over them a profiler notes when kernels and copies begin and end on the device. A marker
kernel stands before each item and after the last: what lies between the work of one and of the next is known. Needs CUDA.

With $OUT set, $OUT/device_idle.jsonl gets a line after each window with what all windows so far say. Exits with 1 if the
target is missed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.race import tokens_of
from bench.random_llama import SHAPES, make_prompt, race_variants, random_llama
from kvmerger.engine import Engine
from kvmerger.generation import Prompt
from kvmerger.models import LoadedModel

_WINDOW_ITEMS = 3
_NUM_WINDOWS = 8
_NUM_WARM_UP = 3
_MARKER = "complex<double>"
"""In the name of the marker's kernel, and in none of a language model's."""
_TARGET = 0.02


@dataclass(frozen=True, slots=True)
class Busy:
    """One stretch of work on the device, ns. is_marker: it opens an item."""

    start: int
    end: int
    is_marker: bool = False


@dataclass(frozen=True, slots=True)
class Idle:
    """Nanoseconds: all of the windows, without any work in them, and of those between one item and the next."""

    span: int
    idle: int
    between: int

    def __add__(self, other: Idle) -> Idle:
        """Of two windows together."""
        return Idle(self.span + other.span, self.idle + other.idle, self.between + other.between)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--tokens", type=tokens_of, default=2048, help="of each prompt")
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark watches a CUDA device, and torch sees none")
    model = random_llama(options.shape, "cuda")
    prompts = [
        make_prompt(model, options.tokens, 2.0, options.new_tokens, seed) for seed in range(options.items)
    ]
    idle, seconds = watch(model, prompts)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}: {options.items} items of {options.tokens} tokens in "
        f"{seconds:.1f} s; in {_NUM_WINDOWS} windows of {_WINDOW_ITEMS} items ({idle.span / 1e9:.2f} s) the device was idle "
        f"{idle.idle / idle.span:.2%}, of it between items {idle.between / idle.span:.2%} (asked: < {_TARGET:.0%})"
    )


def watch(model: LoadedModel, prompts: Sequence[Prompt]) -> tuple[Idle, float]:
    """Run all prompts; idle time of the windows together, and seconds of all items (profiling included)."""
    engine, variants = Engine(model), race_variants()
    for prompt in prompts[:_NUM_WARM_UP]:
        engine.run(prompt, variants)
    stride = max(_WINDOW_ITEMS, len(prompts) // _NUM_WINDOWS)
    idle = Idle(0, 0, 0)
    start_s = time.perf_counter()
    for first in range(0, len(prompts), stride):
        window = prompts[first : first + _WINDOW_ITEMS]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            for prompt in window:
                _mark(model.device)
                engine.run(prompt, variants)
            _mark(model.device)
            torch.cuda.synchronize()
        idle += idle_of(_busy(profiler))
        for prompt in prompts[first + _WINDOW_ITEMS : first + stride]:
            engine.run(prompt, variants)
    return idle, time.perf_counter() - start_s


def idle_of(stretches: Iterable[Busy]) -> Idle:
    """Idle time from the first to the last stretch; gaps just before or after a marker count as between items.

    Stretches may overlap and come in any order.
    """
    ordered = sorted(stretches, key=lambda stretch: stretch.start)
    idle = between = 0
    end, was_marker = ordered[0].end, ordered[0].is_marker
    for stretch in ordered[1:]:
        gap = max(0, stretch.start - end)
        idle += gap
        if stretch.is_marker or was_marker:
            between += gap
        was_marker = stretch.is_marker
        end = max(end, stretch.end)
    return Idle(end - ordered[0].start, idle, between)


def _mark(device: torch.device) -> None:
    torch.empty(1, dtype=torch.complex128, device=device).fill_(1)


def _busy(profiler: Any) -> list[Busy]:
    events = profiler.profiler.kineto_results.events()
    return [
        Busy(event.start_ns(), event.start_ns() + event.duration_ns(), _MARKER in event.name())
        for event in events
        if "CUDA" in str(event.device_type())
    ]


if __name__ == "__main__":
    main()

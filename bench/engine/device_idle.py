"""How long the device waits between two items that are run back to back, and how long within them.

    python -m bench.engine.device_idle [--items 200] [--tokens 2k]

All items run; in windows spread over them a profiler notes when kernels and copies begin and end on the device. A marker
kernel stands before each item and after the last: what lies between the work of one and of the next is known. Needs CUDA.

With $OUT set, $OUT/device_idle.jsonl gets a line after each window with what all windows so far say. Exits with 1 if the
target is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.random_llama import SHAPES, make_prompt, race_variants, random_llama, tokens_of
from bench.records import append, default_path, provenance
from kvmerger.building import Variant
from kvmerger.engine import Engine
from kvmerger.generation import Prompt
from kvmerger.models.loading import LoadedModel

_WINDOW_ITEMS = 3
_NUM_WINDOWS = 8
_NUM_WARM_UP = 3
_MARKER = "complex<double>"  # in the name of the marker's kernel, and in none of a language model's
_WAITS = ("Context Sync", "Stream Sync", "Event Sync", "Stream Wait Event")
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


@dataclass(frozen=True, slots=True)
class Watched:
    """All windows so far; ``seconds`` of all items since the first, profiling included."""

    idle: Idle
    num_windows: int
    seconds: float

    @property
    def record(self) -> dict[str, Any]:
        """Shares of the windows' time (0-1), and whether what lies between items is below the target."""
        between_share = self.idle.between / self.idle.span
        return {
            "windows": self.num_windows,
            "span_s": self.idle.span / 1e9,
            "idle_share": self.idle.idle / self.idle.span,
            "between_share": between_share,
            "target": _TARGET,
            "verdict": "met" if between_share < _TARGET else "missed",
            "seconds": self.seconds,
        }


def main() -> int:
    """Measure and print; 1 when the target is missed."""
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
    asked = {name: getattr(options, name) for name in ("items", "tokens", "new_tokens", "shape")}
    common = {**provenance("cuda"), **asked, "started_at_s": time.time()}
    model = random_llama(options.shape, "cuda")
    prompts = [
        make_prompt(model, options.tokens, 2.0, options.new_tokens, seed) for seed in range(options.items)
    ]

    def note(watched: Watched) -> None:
        append(default_path("device_idle"), {**common, **watched.record})
        print(f"{watched.num_windows}: {watched.record}", flush=True)

    watched = watch(model, prompts, note)
    share, seconds = watched.record["between_share"], watched.idle.span / 1e9
    print(
        f"{common['device']}, torch {torch.__version__}: {options.items} items of {options.tokens} tokens in "
        f"{watched.seconds:.1f} s; in {watched.num_windows} windows of {_WINDOW_ITEMS} items ({seconds:.2f} s) the device "
        f"was idle {watched.record['idle_share']:.2%}, of it between items {share:.2%}: asked < {_TARGET:.0%}, "
        f"{watched.record['verdict']}"
    )
    return int(share >= _TARGET)


def watch(model: LoadedModel, prompts: Sequence[Prompt], note: Callable[[Watched], None]) -> Watched:
    """Run all prompts; ``note`` is told after each window what all of them so far say."""
    engine, variants = Engine(model), race_variants()
    for prompt in prompts[:_NUM_WARM_UP]:
        engine.run(prompt, variants)
    _profiled(engine, prompts[:1], variants)  # the first profile of a process sets its tools up
    stride = max(_WINDOW_ITEMS, len(prompts) // _NUM_WINDOWS)
    watched = Watched(Idle(0, 0, 0), 0, 0.0)
    start_s = time.perf_counter()
    for first in range(0, len(prompts), stride):
        idle = idle_of(_profiled(engine, prompts[first : first + _WINDOW_ITEMS], variants))
        # Not under the profiler, which slows the host down and would make the device wait more.
        for prompt in prompts[first + _WINDOW_ITEMS : first + stride]:
            engine.run(prompt, variants)
        watched = Watched(watched.idle + idle, watched.num_windows + 1, time.perf_counter() - start_s)
        note(watched)
    return watched


def _profiled(engine: Engine, prompts: Sequence[Prompt], variants: Sequence[Variant]) -> list[Busy]:
    """What the device did while it ran ``prompts`` one after the other, a marker before each and behind the last."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for prompt in prompts:
            _mark()
            engine.run(prompt, variants)
        _mark()
        torch.cuda.synchronize()  # inside: what has not run when the profiler stops is missing from its record
    stretches = _busy(profiler)
    num_markers = sum(stretch.is_marker for stretch in stretches)
    if num_markers != len(prompts) + 1:
        raise RuntimeError(
            f"{num_markers} marker kernels were seen where {len(prompts) + 1} ran: this torch names them otherwise, or the "
            f"profiler has dropped events; nothing can be said about what lies between items"
        )
    return stretches


def idle_of(stretches: Iterable[Busy]) -> Idle:
    """Idle time from the first to the last stretch; gaps just before or after a marker count as between items.

    Stretches may overlap and come in any order.
    """
    ordered = sorted(stretches, key=lambda stretch: stretch.start)
    idle = between = 0
    end, was_marker = ordered[0].end, ordered[0].is_marker
    for stretch in ordered[1:]:
        gap = max(0, stretch.start - end)  # work on several streams overlaps
        idle += gap
        if stretch.is_marker or was_marker:
            between += gap
        was_marker = stretch.is_marker
        end = max(end, stretch.end)
    return Idle(end - ordered[0].start, idle, between)


def _mark() -> None:
    torch.empty(1, dtype=torch.complex128, device="cuda").fill_(1)


def _busy(profiler: Any) -> list[Busy]:
    events = profiler.profiler.kineto_results.events()
    return [
        Busy(event.start_ns(), event.start_ns() + event.duration_ns(), _MARKER in event.name())
        for event in events
        # Waiting is an activity too, of the same device type.
        if "CUDA" in str(event.device_type()) and not event.name().startswith(_WAITS)
    ]


if __name__ == "__main__":
    sys.exit(main())

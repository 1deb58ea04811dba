"""What one prompt costs when 1, 2, 4 or 8 of them decode in one batch, for short contexts.

    python -m bench.engine.items_at_once [--shape 8b] [--tokens 512 1k 2k 4k] [--at-once 1 2 4 8] [--items 16]

Random weights; the 14 variants of the race and their references; 64 new tokens that no end token can shorten. Prompts differ
in length by up to a tenth, as a benchmark's do. All items run once to warm up (compilations, recorded steps) and are then
timed, between two synchronisations. Seconds by phase are means of a prompt; what is left of its time is the host's. The last
column says how many of its greedy tokens are those that it says alone: the rest are flips of another batch shape.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from bench.clock import timed
from bench.random_llama import NUM_NEW_TOKENS, SHAPES, make_prompt, race_variants, random_llama, tokens_of
from bench.records import append, default_path, provenance
from kvmerger.device import free_memory
from kvmerger.engine import Engine
from kvmerger.generation import Generation, Prompt, VariantFailure
from kvmerger.limits import Limits, bucket_for
from kvmerger.models.loading import LoadedModel

_S_PER_HOUR = 3600
_RUN_LENGTH = 2.0
_PHASES = ("prefill_shared_s", "compress_s", "decode_shared_s", "fidelity_shared_s")
Rows = Sequence[Generation | VariantFailure]


@dataclass(frozen=True, slots=True)
class Measured:
    """One number of prompts at once: seconds of all items, and means of a prompt by phase."""

    shape: str
    tokens: int
    at_once: int
    num_items: int
    num_failed_rows: int
    seconds: float
    phases_s: dict[str, float]
    peak_bytes: int | None
    same_tokens_ratio: float

    @property
    def items_per_hour(self) -> float:
        """At this pace."""
        return _S_PER_HOUR * self.num_items / self.seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--tokens", nargs="+", type=tokens_of, default=[512, 1024, 2048, 4096])
    parser.add_argument("--at-once", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=NUM_NEW_TOKENS)
    parser.add_argument("--variants", type=int, default=14, help="the first so many of the race")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options = parser.parse_args()
    model = random_llama(options.shape, options.device, getattr(torch, options.dtype))
    print(
        "| tokens | at once | s an item | items per hour | prefill, compress, decode, compare (s) | peak | same tokens |"
    )
    print("|--:|--:|--:|--:|:--|--:|--:|")
    common = provenance(options.device)
    for num_tokens in options.tokens:
        for one in measure(model, num_tokens, options):
            print(line_of(one), flush=True)
            append(default_path("items_at_once"), {**common, **asdict(one)})


def measure(model: LoadedModel, num_tokens: int, options: argparse.Namespace) -> list[Measured]:
    """The same prompts, so many at once."""
    prompts = [
        make_prompt(
            model,
            num_tokens - seed * num_tokens // (10 * options.items),
            _RUN_LENGTH,
            options.new_tokens,
            seed,
        )
        for seed in range(options.items)
    ]
    variants = race_variants()[: options.variants]
    found: list[Measured] = []
    alone: list[Rows] = []
    for at_once in options.at_once:
        # Room for exactly so many prompts; the two rows beside the variants are full and no context.
        engine = Engine(model, Limits(max_rows=at_once * bucket_for(len(variants) + 2)))

        def run(prompts: Sequence[Prompt], engine: Engine = engine, at_once: int = at_once) -> list[Rows]:
            starts = range(0, len(prompts), at_once)
            return [rows for at in starts for rows in engine.run_many(prompts[at : at + at_once], variants)]

        # Warmed up with each length: some kernels are compiled anew for numbers of tokens that 16 does not divide.
        run(prompts)
        free_memory(model.device)
        one = timed(lambda run=run: run(prompts), model.device)  # type: ignore[misc]
        alone = alone or one.result  # of the first number asked for, which is 1 unless told otherwise
        done = [[row for row in rows if isinstance(row, Generation)] for rows in one.result]
        phases = {phase: sum(_phase_s(rows, phase) for rows in done) / len(prompts) for phase in _PHASES}
        num_failed = sum(len(all_rows) - len(rows) for all_rows, rows in zip(one.result, done, strict=True))
        found.append(
            Measured(
                options.shape, num_tokens, at_once, len(prompts), num_failed, one.seconds, phases,
                one.peak_bytes, same_tokens_ratio(one.result, alone),
            )
        )  # fmt: skip
    return found


def same_tokens_ratio(some: Sequence[Rows], others: Sequence[Rows]) -> float:
    """Share of greedy tokens that are the same in both runs of the same prompts."""
    num_same = num_tokens = 0
    for one, other in zip(some, others, strict=True):
        theirs = {
            (row.label, row.question_index): row.token_ids for row in other if isinstance(row, Generation)
        }
        for row in one:
            expected = theirs.get((row.label, row.question_index), ())
            if isinstance(row, Generation) and expected:
                num_tokens += len(expected)
                num_same += sum(a == b for a, b in zip(row.token_ids, expected, strict=False))
    return num_same / max(1, num_tokens)


def line_of(one: Measured) -> str:
    """A row of the table."""
    phases = ", ".join(f"{seconds:.3f}" for seconds in one.phases_s.values())
    peak = "" if one.peak_bytes is None else f"{one.peak_bytes / 2**30:.1f} GiB"
    failed = f" ({one.num_failed_rows} rows failed)" if one.num_failed_rows else ""
    return (
        f"| {one.tokens:,} | {one.at_once} | {one.seconds / one.num_items:.3f} | {one.items_per_hour:,.0f}{failed} | "
        f"{phases} | {peak} | {one.same_tokens_ratio:.1%} |"
    )


def _phase_s(rows: Sequence[Generation], phase: str) -> float:
    """Of one prompt: compression of every variant, and a batch's shared seconds once for each batch (main and A/A)."""
    if phase == "compress_s":
        return sum(row.seconds[phase] for row in rows)
    # A set: all rows of a batch carry the very same number.
    return sum({row.seconds[phase] for row in rows})


if __name__ == "__main__":
    main()

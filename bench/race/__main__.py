"""The race: 15 variants of one prompt, ours against kvpress, on one model in one process.

    python -m bench.race --lengths 8k 16k 32k --sides floor fused service isolated --seconds 540
    .venv-kvpress/bin/python -m bench.race --lengths 8k 16k 32k --sides kvpress kvpress-best@16k --seconds 540
    python -m bench.race --table results.jsonl

A side runs at every length, or at those after its ``@``. What is measured is a line of JSON at once (in $OUT/race.jsonl, or
--output), kvpress's sides after each press they try: a run that is cut off has lost nothing but its last press. A side or a
variant that fails is reported, and the rest goes on. Sides run in the order of the first two lines above. kvpress's need an
older transformers than ours, hence an environment of their own, and are refused in any other.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.clock import Deadline
from bench.race import kvpress, ours
from bench.race.kvpress_environment import refusal
from bench.race.table import markdown
from bench.random_llama import (
    NUM_NEW_TOKENS,
    SHAPES,
    choose_run_length,
    kept_share,
    make_prompt,
    race_variants,
    random_llama,
    tokens_of,
)
from bench.records import append, default_path, provenance, read
from kvmerger.building import Variant
from kvmerger.device import free_memory
from kvmerger.generation import Prompt
from kvmerger.models.loading import LoadedModel

_KIBI = 1024
_SECONDS = 540.0  # machines that are lent allow a command ten minutes
Keep = Callable[[Mapping[str, Any]], None]
"""Told what a side has measured so far."""
Side = Callable[[LoadedModel, Prompt, list[Variant], Deadline, Keep], dict[str, Any]]


def main() -> None:
    """Measure what is asked, or print what was measured."""
    parser = _parser()
    options = parser.parse_args()
    if options.table:
        print(markdown(read(*options.table)))
        return
    if any(side.name in OF_KVPRESS for side in options.sides) and (why := refusal()):
        parser.error(why)
    deadline = Deadline(options.seconds)
    model = random_llama(options.shape, options.device)
    common = {
        **provenance(options.device),
        "model": model.info.name,
        "new_tokens": options.new_tokens,
        "started_at_s": time.time(),
    }
    print(common, flush=True)
    asked = [(side, length) for side in options.sides for length in side.lengths or options.lengths]
    planted = _plant(model, sorted({length for _, length in asked}), options.run_length)
    variants, records = race_variants(), []
    for name in SIDES:
        for length in sorted({length for side, length in asked if side.name == name}):
            at = {"side": name, "length": length, **planted[length], **common}
            prompt = make_prompt(model, length, planted[length]["run_length"], options.new_tokens)

            # `at` as a default: the loop binds the name anew.
            def keep(measured: Mapping[str, Any], at: dict[str, Any] = at) -> None:
                append(options.output, {**at, **measured})

            records.append({**at, **_measure(name, model, prompt, variants, deadline, keep)})
            _say_side(records[-1])
            append(options.output, records[-1])
    print(markdown(records))


# They run in this order, whatever order they are asked in: kvpress, once imported, patches every attention function of
# transformers, ours included.
SIDES: dict[str, Side] = {
    "floor": lambda model, prompt, *_: ours.floor(model, prompt),
    "fused": lambda model, prompt, variants, *_: ours.fused(model, prompt, variants),
    "service": lambda model, prompt, variants, *_: ours.fused(model, prompt, variants, is_service=True),
    "isolated": lambda model, prompt, variants, *_: ours.isolated(model, prompt, variants),
    "kvpress": lambda model, prompt, _, deadline, keep: kvpress.stock(model, prompt, deadline, _say, keep),
    "kvpress-best": lambda model, prompt, _, deadline, keep: kvpress.best(
        model, prompt, deadline, _say, keep
    ),
}

OF_KVPRESS = ("kvpress", "kvpress-best")


@torch.inference_mode()
def _plant(model: LoadedModel, lengths: list[int], run_length: float | None) -> dict[int, dict[str, float]]:
    """For each length how often a prompt repeats a token, and what threshold mode then keeps of it."""
    planted = {}
    for length in lengths:
        if run_length is None:
            chosen, share = choose_run_length(model, length)
        else:
            chosen, share = run_length, kept_share(model, make_prompt(model, length, run_length, 1))
        planted[length] = {"run_length": chosen, "planted_share": share}
        print(
            f"{length} tokens, each {chosen:.2f} times on average: threshold mode keeps {share:.1%}",
            flush=True,
        )
        free_memory(model.device)
    return planted


def _measure(
    side: str, model: LoadedModel, prompt: Prompt, variants: list[Variant], deadline: Deadline, keep: Keep
) -> dict[str, Any]:
    if deadline.left_s() <= 0:
        return {"error": f"not run: the {deadline.seconds:g} s were over"}
    free_memory(model.device)  # so that a side's peak is its own
    start_s = time.monotonic()
    try:
        record = SIDES[side](model, prompt, variants, deadline, keep)
    except Exception as error:  # noqa: BLE001 - what one side cannot do must not cost the others' numbers
        record = {"error": f"{type(error).__name__}: {error}"}
    free_memory(model.device)
    return {**record, "spent_s": time.monotonic() - start_s}


def _say_side(record: Mapping[str, Any]) -> None:
    shown = record.get("error") or f"{record['seconds']:.3f} s for {record['num_variants']} variants"
    cut = " (the time was over before the others)" if record.get("is_partial") else ""
    print(f"{record['side']} at {record['length']}: {shown}{cut}", flush=True)


def _say(what: str, outcome: float | str) -> None:
    print(f"  {what}: {outcome if isinstance(outcome, str) else f'{outcome:.3f} s'}", flush=True)


class AskedSide(NamedTuple):
    """A side, and the lengths it runs at; none: at all of ``--lengths``."""

    name: str
    lengths: tuple[int, ...] = ()


def side_of(text: str) -> AskedSide:
    """``fused`` at all lengths, ``kvpress@8k,16k`` at these."""
    name, at, lengths = text.partition("@")
    if name not in SIDES:
        raise argparse.ArgumentTypeError(f"{name!r} is no side; there are {', '.join(SIDES)}")
    return AskedSide(name, tuple(tokens_of(length) for length in lengths.split(",")) if at else ())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.race",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--lengths", nargs="+", type=tokens_of, default=[8 * _KIBI, 16 * _KIBI, 32 * _KIBI])
    parser.add_argument(
        "--sides",
        nargs="+",
        type=side_of,
        default=[AskedSide(name) for name in SIDES if name not in OF_KVPRESS],
        metavar="SIDE[@LENGTH,...]",
        help=f"of {', '.join(SIDES)}; with lengths, at these alone; default: ours",
    )
    parser.add_argument("--shape", choices=SHAPES, default="8b", help="tiny: to try it out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--new-tokens", type=int, default=NUM_NEW_TOKENS)
    parser.add_argument(
        "--run-length", type=float, help="how often each token is repeated on average; default: searched for"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=_SECONDS,
        help="since the start: no side begins later, and kvpress's begin no press that would end later",
    )
    parser.add_argument("--output", type=Path, default=default_path("race"))
    parser.add_argument(
        "--table", nargs="+", type=Path, metavar="JSONL", help="print these results and do nothing else"
    )
    return parser


if __name__ == "__main__":
    main()

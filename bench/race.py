"""The race: 15 variants of one prompt, ours against kvpress, on one model in one process.

    python -m bench.race --lengths 8k 16k 32k --sides floor fused service isolated kvpress kvpress-best
    python -m bench.race --table results.jsonl

Every side of every length is a line of JSON as soon as it is measured (in $OUT/race.jsonl, or --output). A side or a variant
that fails is reported, and the rest goes on. Sides run in the order of the first line above, whatever order they are asked
in: importing kvpress patches every attention function of transformers, ours included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bench import race_kvpress, race_ours
from bench.race_clock import free_memory
from bench.race_table import markdown
from bench.random_llama import (
    NUM_NEW_TOKENS,
    SHAPES,
    choose_run_length,
    make_prompt,
    race_variants,
    random_llama,
)
from kvmerger.generation import Prompt
from kvmerger.models import LoadedModel
from kvmerger.variants import Variant

_PACKAGES = ("torch", "transformers", "kvpress", "triton")
_KIBI = 1024
Side = Callable[[LoadedModel, Prompt, list[Variant]], dict[str, Any]]


def main() -> None:
    """Measure what is asked, or print what was measured."""
    options = _parser().parse_args()
    if options.table:
        lines = [line for path in options.table for line in path.read_text().splitlines()]
        print(markdown([json.loads(line) for line in lines if line.strip()]))
        return
    start_s = time.monotonic()
    model = random_llama(options.shape, options.device)
    lengths = sorted(options.lengths)
    with torch.inference_mode():
        run_length, share = choose_run_length(model, lengths[0])
    setup = {"device": _device_name(options.device), "versions": _versions(), "model": model.info.name}
    print(f"{setup}\neach token {run_length} times on average: threshold mode keeps {share:.1%}", flush=True)
    variants, records = race_variants(), []
    for side in [side for side in SIDES if side in options.sides]:
        for length in lengths:
            if time.monotonic() - start_s > options.budget_s:
                record: dict[str, Any] = {"error": f"not run: the {options.budget_s} s were over"}
            else:
                prompt = make_prompt(model, length, run_length, options.new_tokens)
                record = _measure(side, model, prompt, variants)
            at = {"side": side, "length": length, "new_tokens": options.new_tokens, "run_length": run_length}
            records.append({**at, **setup, **record})
            _keep(options.output, records[-1])
    print(markdown(records))


SIDES: dict[str, Side] = {
    "floor": lambda model, prompt, _: race_ours.floor(model, prompt),
    "fused": race_ours.fused,
    "service": lambda model, prompt, variants: race_ours.fused(model, prompt, variants, is_service=True),
    "isolated": race_ours.isolated,
    "kvpress": lambda model, prompt, _: race_kvpress.stock(model, prompt, _say),
    "kvpress-best": lambda model, prompt, _: race_kvpress.best(model, prompt, _say),
}


def _measure(side: str, model: LoadedModel, prompt: Prompt, variants: list[Variant]) -> dict[str, Any]:
    free_memory(model.device)
    start_s = time.monotonic()
    try:
        record = SIDES[side](model, prompt, variants)
    except Exception as error:  # noqa: BLE001 - what one side cannot do must not cost the others' numbers
        record = {"error": f"{type(error).__name__}: {error}"}
    free_memory(model.device)
    return {**record, "spent_s": time.monotonic() - start_s}


def _keep(path: Path | None, record: dict[str, Any]) -> None:
    shown = record.get("error") or f"{record['seconds']:.3f} s for {record['num_variants']} variants"
    print(f"{record['side']} at {record['length']}: {shown}", flush=True)
    if path is not None:
        with path.open("a") as stream:
            stream.write(json.dumps(record) + "\n")


def _say(what: str, outcome: float | str) -> None:
    print(f"  {what}: {outcome if isinstance(outcome, str) else f'{outcome:.3f} s'}", flush=True)


def tokens_of(text: str) -> int:
    """``16k`` is 16,384 tokens, ``500`` is 500."""
    number, factor = (text[:-1], _KIBI) if text.lower().endswith("k") else (text, 1)
    if not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of tokens; write 16k for 16,384, or a whole number"
        )
    return int(number) * factor


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or "cpu"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", nargs="+", type=tokens_of, default=[8 * _KIBI, 16 * _KIBI, 32 * _KIBI])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--shape", choices=SHAPES, default="8b", help="tiny: to try it out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--new-tokens", type=int, default=NUM_NEW_TOKENS)
    parser.add_argument(
        "--budget-s", type=float, default=330.0, help="after so many seconds no further side starts"
    )
    out = os.environ.get("OUT")
    parser.add_argument("--output", type=Path, default=Path(out) / "race.jsonl" if out else None)
    parser.add_argument(
        "--table", nargs="+", type=Path, metavar="JSONL", help="print these results and do nothing else"
    )
    return parser


if __name__ == "__main__":
    main()

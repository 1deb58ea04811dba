"""Find what a form needs to know of a model: `python jobs/calibrate.py kvtuner [CONFIG.yaml] --mean-bits 4 --out FILE`.

Reads the first contexts of the settings' items, which are then refused for judging what was found; no answer is generated, no
score looked at, and `policies` are not read.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.console.command_line import (
    EXIT_OK,
    Parser,
    add_settings_arguments,
    config_of,
    overrides_of,
    told_to_users,
)
from jobs.console.whole_file import write_whole
from jobs.planning.identity import context_digest
from jobs.reporting.terminal import report_console
from jobs.settings.schema import DEMO_CONFIG, Settings, load_settings
from kvmerger.bits_table import FORM, SHOWN_DIGITS, WIDTHS, pair_name, sealed

if TYPE_CHECKING:
    from jobs.planning.work import PlannedItem
    from kvmerger.cache.forms.bits_search import Pair
    from kvmerger.models.loading import LoadedModel

_MEAN_BITS = 4.0
_NUM_CONTEXTS = 4
_EPILOG = """\
kvtuner: bits of every layer's keys and values (8, 4 or 2 each), at a mean of so many bits, by what each costs that layer's
attention output on the first contexts of the settings (docs/policies.md, Forms). The contexts are refused for judging.
examples:
  calibrate.py kvtuner my.yaml --mean-bits 4 --out table.json --set tasks.0.seed=7
  then, in the policies of settings: {name: kvtuner, table: table.json}
"""


class CalibrationError(ValueError):
    """Settings or numbers that nothing can be found with."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table; 0, or 2 with a sentence on standard error."""
    parser = Parser(
        prog="calibrate.py",
        description="What a form needs to know of a model, from a few contexts.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=(FORM,), help="the form that is calibrated")
    add_settings_arguments(parser, "the demo")
    parser.add_argument(
        "--mean-bits",
        type=_bits,
        default=_MEAN_BITS,
        metavar="BITS",
        help="the most that keys and values may have, on the mean of all layers (default: 4)",
    )
    parser.add_argument(
        "--contexts", type=_positive, default=_NUM_CONTEXTS, metavar="N", help="how many (default: 4)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the table")
    options = parser.parse_args(arguments)
    return told_to_users(lambda: _calibrate(options))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _bits(text: str) -> float:
    try:
        bits = float(text)
    except ValueError:
        bits = math.nan
    if not min(WIDTHS) <= bits <= max(WIDTHS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {min(WIDTHS)} to {max(WIDTHS)}")
    return bits


def _calibrate(options: argparse.Namespace) -> int:
    # As for a diagnosis: whatever the settings say, no policy is looked at and the model runs here.
    overrides = [*overrides_of(options), "policies=full", "executor=inline"]
    settings = load_settings(config_of(options, DEMO_CONFIG), overrides, options.limit)
    from jobs.planning.preparation import prepare

    console = report_console(None)
    with console.status("reading the model's configuration, tokenizer and items …"):
        prepared = prepare(settings, frozenset(), lambda: settings.model.device)
    contexts = prepared.plan.contexts[: options.contexts]
    if not contexts:
        raise CalibrationError(
            "no item of these settings has a context that can be prefilled; name a task with one, such as "
            "`--set tasks=[ruler/niah_single_2]`"
        )
    from kvmerger.models.loading import load_model

    asked = prepared.settled(settings).model
    with console.status("loading the model …"):
        model = load_model(asked.name, revision=asked.revision, dtype=asked.dtype, device=asked.device)
    with console.status(f"prefilling {len(contexts)} contexts …"):
        errors_L = mean_errors([_errors_of(model, it) for it in contexts])
    table = table_from(model, contexts, settings, errors_L, options.mean_bits)
    write_whole(options.out, json_lines(table).encode())
    for line in sentences(table, errors_L):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"written to {options.out}", highlight=False, soft_wrap=True)
    return EXIT_OK


def _errors_of(model: LoadedModel, planned: PlannedItem) -> list[dict[Pair, float]]:
    import torch

    from kvmerger.prefill.bits_errors import bits_errors

    ids = planned.tokens.context_ids
    try:
        return bits_errors(model, ids)
    except torch.OutOfMemoryError as error:
        raise CalibrationError(
            f"{len(ids):,} tokens of context do not fit into the memory of {model.device}: {error}; lower "
            f"model.max_prompt_tokens, or a task's length"
        ) from error


def mean_errors(of_contexts: Sequence[Sequence[Mapping[Pair, float]]]) -> list[dict[Pair, float]]:
    """Each layer's errors, the mean over contexts."""
    return [
        {pair: sum(errors[pair] for errors in layer) / len(layer) for pair in layer[0]}
        for layer in zip(*of_contexts, strict=True)
    ]


def table_from(
    model: LoadedModel,
    contexts: Sequence[PlannedItem],
    settings: Settings,
    errors_L: Sequence[Mapping[Pair, float]],
    mean_bits: float,
) -> dict[str, Any]:
    """The table of least summed error at ``mean_bits``, as its file holds it."""
    from kvmerger.cache.forms.bits_search import best_pairs

    info = model.info
    return sealed(
        {
            "model": {"name": info.name, "revision": info.revision, "dtype": info.dtype},
            "items": sorted({context_digest(it.item) for it in contexts}),
            "seed": settings.seed,
            "mean_bits": mean_bits,
            "pairs": [list(pair) for pair in best_pairs(errors_L, mean_bits)],
            "errors": [{pair_name(*pair): error for pair, error in errors.items()} for errors in errors_L],
        }
    )


def json_lines(table: Mapping[str, Any]) -> str:
    """JSON with a line for each layer's numbers, to be read and compared by people too."""
    import json

    lines = []
    for key, value in table.items():
        if isinstance(value, list):
            inner = ",\n".join(f"  {json.dumps(it)}" for it in value)
            lines.append(f" {json.dumps(key)}: [\n{inner}\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def sentences(table: Mapping[str, Any], errors_L: Sequence[Mapping[Pair, float]]) -> Iterator[str]:
    """What was found, beside uniform tables of the same or fewer bits."""
    from kvmerger.cache.forms.bits_search import PAIRS

    pairs = [tuple(pair) for pair in table["pairs"]]
    mean_k, mean_v = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
    summed = sum(errors[bits_k, bits_v] for errors, (bits_k, bits_v) in zip(errors_L, pairs, strict=True))
    yield (
        f"{table['model']['name']}, {len(table['items'])} contexts: keys {mean_k:.2f} bits, values {mean_v:.2f}, scales "
        f"apart; table {table['hash'][:SHOWN_DIGITS]}"
    )
    yield f"summed relative error of the layers' attention outputs: {summed:.4g}"
    uniform = {pair: sum(errors[pair] for errors in errors_L) for pair in PAIRS}
    near = {pair: error for pair, error in uniform.items() if sum(pair) <= 2 * table["mean_bits"]}
    told = ", ".join(f"{pair_name(*pair)} {error:.4g}" for pair, error in sorted(near.items(), reverse=True))
    yield f"uniform, with as many bits or fewer: {told}"
    yield f"layers from 0: {' '.join(pair_name(*pair) for pair in pairs)}"


if __name__ == "__main__":
    sys.exit(main())

"""What a model does with a text, without any policy: `python jobs/diagnose.py massive [CONFIG.yaml]`.

Loads the model of the settings and prefills the first contexts of their items; writes nothing, and does not read `policies`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from evaluators.tokenizer import Tokenizer, decode
from jobs.console.command_line import (
    EXIT_OK,
    Parser,
    add_settings_arguments,
    config_of,
    overrides_of,
    told_to_users,
)
from jobs.reporting.terminal import report_console
from jobs.settings.schema import DEMO_CONFIG, load_settings

if TYPE_CHECKING:
    from jobs.planning.plan import Plan
    from jobs.planning.work import PlannedItem
    from kvmerger.models.loading import LoadedModel
    from kvmerger.prefill.massive_layers import LayerMagnitudes

_MASSIVE = "massive"
_MOST_CHARS = 24  # of a token's text
_EPILOG = """\
massive: the largest magnitudes of the stream that each layer starts from, before any norm, and the tokens that have
them; those above 1,000 medians of the stream's magnitudes are massive (docs/policies.md).
examples:
  diagnose.py massive                                              the packaged demo model on the demo's first item
  diagnose.py massive my.yaml --contexts 3
  diagnose.py massive --set model.name=HUB_ID_OR_FOLDER
"""


class DiagnoseError(ValueError):
    """Settings that give nothing to look at."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the diagnosis; 0, or 2 with a sentence on standard error."""
    parser = Parser(
        prog="diagnose.py",
        description="What a model does with a text, without any policy.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=(_MASSIVE,), help="what is looked at")
    add_settings_arguments(parser, "the demo")
    parser.add_argument("--contexts", type=_positive, default=1, metavar="N", help="how many (default: 1)")
    parser.add_argument(
        "--width", type=int, metavar="N", help="columns to print on (default: the terminal's)"
    )
    options = parser.parse_args(arguments)
    return told_to_users(lambda: _diagnose(options))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _diagnose(options: argparse.Namespace) -> int:
    # Policies are not looked at, nor is a cluster: whatever the settings say, the model runs here.
    overrides = [*overrides_of(options), "policies=full", "executor=inline"]
    settings = load_settings(config_of(options, DEMO_CONFIG), overrides, options.limit)
    from jobs.planning.preparation import prepare

    console = report_console(options.width)
    with console.status("reading the model's configuration, tokenizer and items …"):
        prepared = prepare(settings, frozenset(), lambda: settings.model.device)
    items = contexts_of(prepared.plan, options.contexts)
    from kvmerger.models.loading import load_model

    asked = prepared.settled(settings).model
    with console.status("loading the model …"):
        model = load_model(asked.name, revision=asked.revision, dtype=asked.dtype, device=asked.device)
    for planned in items:
        ids = planned.tokens.context_ids
        console.print(
            f"{model.info.name} ({model.info.dtype}) on {planned.item.item_id}: {len(ids):,} tokens of context"
        )
        for shown in rendered(_magnitudes(model, ids), ids, prepared.tokenizer):
            console.print(shown)
    return EXIT_OK


def _magnitudes(model: LoadedModel, ids: Sequence[int]) -> list[LayerMagnitudes]:
    import torch

    from kvmerger.prefill.massive_layers import layer_magnitudes

    try:
        return layer_magnitudes(model, ids)
    except torch.OutOfMemoryError as error:
        raise DiagnoseError(
            f"{len(ids):,} tokens of context do not fit into the memory of {model.device}: {error}; lower "
            f"model.max_prompt_tokens, or a task's length"
        ) from error


def contexts_of(plan: Plan, count: int) -> list[PlannedItem]:
    """An item for each of the first ``count`` contexts that can be prefilled.

    Raises:
        DiagnoseError: there is none.
    """
    if not plan.contexts:
        raise DiagnoseError(
            "no item of these settings has a context that can be prefilled; name a task with one, such as "
            "`--set tasks=[ruler/niah_single_2]`"
        )
    return list(plan.contexts[:count])


def rendered(
    layers: Sequence[LayerMagnitudes], ids: Sequence[int], tokenizer: Tokenizer
) -> Iterator[RenderableType]:
    """A table with a line a layer, then a sentence for each massive token and one on where they arise."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    heads = ("layer", "median", "largest", "in medians", "channel", "token", "next token's", "massive")
    for head in heads:
        table.add_column(head, justify="left" if head == "token" else "right", no_wrap=head != "token")
    for index, layer in enumerate(layers):
        first, *others = layer.largest
        cells = (
            str(index),
            f"{layer.median:.3g}",
            f"{first.magnitude:,.4g}",
            f"{first.times_median:,.0f}",
            str(first.channel),
            _named(first.token, ids, tokenizer),
            f"{others[0].times_median:,.0f}" if others else "",
            str(len(layer.massive)),
        )
        table.add_row(*map(Text, cells))
    yield table
    yield Text()
    yield from map(Text, sentences(layers, ids, tokenizer))


def sentences(layers: Sequence[LayerMagnitudes], ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[str]:
    """What the table comes to."""
    most: dict[int, float] = {}
    channels: dict[int, set[int]] = {}
    found_in: dict[int, list[int]] = {}
    for index, layer in enumerate(layers):
        for it in layer.massive:
            most[it.token] = max(most.get(it.token, 0.0), it.times_median)
            channels.setdefault(it.token, set()).add(it.channel)
            found_in.setdefault(it.token, []).append(index)
    if not most:
        largest = max(layer.largest[0].times_median for layer in layers)
        yield f"no token is massive: the largest magnitude of all layers is {largest:,.0f} medians"
        return
    for token, indices in found_in.items():
        yield (
            f"massive: token {_named(token, ids, tokenizer)} in layers {_stretches(indices)}, at most "
            f"{most[token]:,.0f} medians, channel {', '.join(map(str, sorted(channels[token])))}"
        )
    first = min(indices[0] for indices in found_in.values())
    written = f"layer {first - 1} writes the first of them" if first else "they are in the embeddings already"
    yield f"onset: {written}; layers are counted from 0, and each line shows the stream that its layer starts from"


def _named(token: int, ids: Sequence[int], tokenizer: Tokenizer) -> str:
    text = repr(decode([ids[token]], tokenizer, skip_special_tokens=False))
    return f"{token} {text if len(text) <= _MOST_CHARS else text[: _MOST_CHARS - 1] + '…'}"


def _stretches(indices: Iterable[int]) -> str:
    """`2 to 5, 7` for neighbouring numbers."""
    found = []
    for _, group in groupby(enumerate(indices), lambda it: it[1] - it[0]):
        stretch = [index for _, index in group]
        found.append(str(stretch[0]) if len(stretch) == 1 else f"{stretch[0]} to {stretch[-1]}")
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main())

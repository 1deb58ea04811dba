"""How far numbers of 2, 4 and 8 bits are from those they stand for: where the tables of `policies.widths.rdkv` are from.

    python -m bench.engine.width_errors [--model demo] [--tokens 768]

The text is our own licence, in passages: prose that no benchmark asks about. Of values, the squared error of all tokens over
their mean square; of keys, that of a head's channel over its variance within the passage, the mean over channels. Both are
stored by `MixedWidths`, whole passages, as `rdkv` stores what it keeps. Means over passages and heads stand layer by layer
between the least and the largest; the tables have their mean over layers. With $OUT set they also go to
$OUT/width_errors.json.

Shapes: S slots, H KV heads, D head size.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from rich.table import Table

from kvmerger.cache.forms.mixed_widths import MixedWidths
from kvmerger.cache.forms.widths import CODED_WIDTHS, Widths
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.models.loading import load_model, load_tokenizer
from kvmerger.prefill.prefill import prefill

LICENCE = Path(__file__).parents[2] / "LICENSE"
Errors = dict[tuple[str, int], list[float]]
"""Of each side and width, layer by layer."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int, default=768, help="of a passage")
    options = parser.parse_args()
    found = measured(options.model, options.tokens)
    table = Table("side", "bits", "mean", "least layer", "largest layer")
    for (side, width), errors in found.items():
        table.add_row(side, str(width), *(f"{it:.3g}" for it in (fmean(errors), min(errors), max(errors))))
    Console(width=100).print(table)
    if folder := os.environ.get("OUT"):
        rows = [{"side": side, "bits": width, "layers": errors} for (side, width), errors in found.items()]
        Path(folder, "width_errors.json").write_text(json.dumps(rows, indent=1))


def measured(model_name: str, num_tokens: int) -> Errors:
    """Errors of every layer, each the mean over the passages."""
    model = load_model(model_name)
    token_ids = load_tokenizer(model_name).encode(LICENCE.read_text(encoding="utf-8"))
    starts = range(0, len(token_ids) - num_tokens + 1, num_tokens)
    if not starts:
        raise ValueError(f"--tokens {num_tokens}: the licence has {len(token_ids)}; give fewer")
    passages: list[Errors] = []
    for start in starts:
        layers = prefill(model, token_ids[start : start + num_tokens], frozenset()).layers
        of_layers = [errors_of(layer) for layer in layers]
        passages.append({key: [layer[key] for layer in of_layers] for key in of_layers[0]})
    return {key: _means([passage[key] for passage in passages]) for key in passages[0]}


def errors_of(layer: LayerCache) -> dict[tuple[str, int], float]:
    """Relative mean squared errors of a whole layer's keys and values, by side and width."""
    form, found = MixedWidths(), {}
    k_HSD, v_HSD = (x.unflatten(0, (layer.num_heads, -1)).double() for x in (layer.k_SD, layer.v_SD))
    for width in CODED_WIDTHS:
        v_S = torch.full((layer.num_slots,), width, dtype=torch.uint8, device=layer.device)
        widths = Widths(v_S, v_S.new_full((layer.num_heads, layer.head_dim), width))
        parts = form.encode_in(layer.k_SD, layer.v_SD, layer.num_slots_H, widths)
        ours_HSD = [
            x.unflatten(0, (layer.num_heads, -1)).double()
            for x in form.decode(parts, layer.num_slots_H, layer.head_dim)
        ]
        k_error_HD = (ours_HSD[0] - k_HSD).square().mean(dim=1) / k_HSD.var(dim=1, correction=0)
        v_error_H = (ours_HSD[1] - v_HSD).square().mean(dim=(1, 2)) / v_HSD.square().mean(dim=(1, 2))
        found["keys", width], found["values", width] = float(k_error_HD.mean()), float(v_error_H.mean())
    return found


def _means(passages: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(of_layer) for of_layer in zip(*passages, strict=True)]


if __name__ == "__main__":
    main()

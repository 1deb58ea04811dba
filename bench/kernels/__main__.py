"""Each kernel of one layer's attention, and of compressing, against its reference, torch's own, and the time none beats.

    python -m bench.kernels [--only packed] [--cache-tokens 4096,16384] [--prompt-tokens 4096,16384,65536] [--rows 16]
    python -m bench.kernels --tune [--only packed] [--seconds 500]

Needs CUDA; measures at the shape of an 8B model's layer, in bf16 and once in fp32. `ragged`, `packed`, `mass` and `compress`
in this folder say what is measured and what was predicted. "device" is between two CUDA events with a cold L2 cache; "a call"
is wall clock per call of many in a row; "floor" uses the ceilings of the second line, which are measured first. With OUT set,
all numbers also go to $OUT/kernels.json. Nothing new is begun after --seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench.kernels.compress import measure_compress
from bench.kernels.mass import measure_backends, measure_fp32_mass, measure_mass
from bench.kernels.packed import measure_packed
from bench.kernels.ragged import Heads, measure_ragged
from bench.kernels.timing import Ceilings, Measured, measure_ceilings
from bench.kernels.tuning import tune_all, tune_packed

EXTEND_TOKENS = (1, 64)
TUNING_SECONDS = 500
COMPRESSED_TOKENS = 16384
COLUMNS = (
    "kernel",
    "case",
    "implementation",
    "device",
    "a call",
    "floor",
    "floor/device",
    "difference",
    "note",
)
TEXT_COLUMNS = ("kernel", "case", "implementation", "note")


def main() -> None:
    """Measure and print."""
    options = _options()
    start_s = time.monotonic()
    console = Console(width=160, highlight=False, markup=False)
    found: dict[str, Any] = {"device": _device(), "rows": []}
    console.print(found["device"])
    ceilings = measure_ceilings()
    found["ceilings"] = asdict(ceilings)
    console.print(
        f"ceilings: a copy moves {ceilings.bytes_per_s / 1e12:.2f} TB/s, a bf16 product does "
        f"{ceilings.flop_per_s / 1e12:.0f} TFLOP/s, one in fp32 {ceilings.fp32_flop_per_s / 1e12:.0f}"
    )
    try:
        if options.tune:
            deadline_s = start_s + (options.seconds or TUNING_SECONDS)
            num_slots = max(options.cache_tokens)
            tune_these = tune_packed if options.only == "packed" else tune_all
            found["tuning"] = tune_these(Heads(), options.rows, num_slots, deadline_s, console.print)
        else:
            _measure_all(options, ceilings, start_s + (options.seconds or 100), found["rows"].append)
    finally:
        # Whatever ended it, what was measured is shown and kept.
        if found["rows"]:
            console.print(table_of([Measured(**row) for row in found["rows"]]))
        console.print(f"{time.monotonic() - start_s:.0f} s")
        _save(found)


def _measure_all(
    options: argparse.Namespace,
    ceilings: Ceilings,
    deadline_s: float,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    def report(measured: Measured) -> None:
        keep(asdict(measured))

    if options.only in (None, "compress"):
        measure_compress(Heads(), COMPRESSED_TOKENS, ceilings, deadline_s, report)
    if options.only in (None, "packed"):
        num_slots = max(options.cache_tokens)
        measure_packed(Heads(), options.rows, num_slots, ceilings, deadline_s, report)
    if options.only in (None, "attention"):
        _measure_attention(options, ceilings, deadline_s, report)


def _measure_attention(
    options: argparse.Namespace,
    ceilings: Ceilings,
    deadline_s: float,
    report: Callable[[Measured], None],
) -> None:
    for num_tokens in options.prompt_tokens:
        measure_mass(Heads(), num_tokens, ceilings, deadline_s, report)
    for num_slots in sorted(options.cache_tokens, reverse=True):
        for num_tokens in EXTEND_TOKENS:
            measure_ragged(Heads(), options.rows, num_slots, num_tokens, ceilings, deadline_s, report)
    measure_fp32_mass(Heads(), min(options.prompt_tokens), ceilings, deadline_s, report)
    measure_backends(Heads(), max(options.cache_tokens), ceilings, deadline_s, report)


def table_of(rows: list[Measured]) -> Table:
    """Microseconds, one implementation a line."""
    table = Table(box=None, caption="device, a call, floor: µs of one layer")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in TEXT_COLUMNS else "right", overflow="fold")
    before: tuple[str, str] | None = None
    for row in rows:
        subject = (row.kernel, row.case)
        names = ("", "") if subject == before else subject
        before = subject
        times = [f"{1e6 * s:,.0f}" if s is not None else "" for s in (row.device_s, row.call_s, row.floor_s)]
        share = f"{row.floor_s / row.device_s:.0%}" if row.device_s else ""
        difference = f"{row.difference:.1e}" if row.difference is not None else ""
        table.add_row(*names, row.implementation, *times, share, difference, row.note)
    return table


def _device() -> str:
    import triton

    properties = torch.cuda.get_device_properties(0)
    return (
        f"{properties.name}, {properties.multi_processor_count} multiprocessors, "
        f"{properties.total_memory / 2**30:.0f} GiB; torch {torch.__version__}, triton {triton.__version__}, "
        f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    )


def _save(found: dict[str, Any]) -> None:
    folder = os.environ.get("OUT")
    if folder:
        path = Path(folder) / "kernels.json"
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cache-tokens", type=_whole_numbers, default=(4096, 16384), help="of a full row")
    parser.add_argument("--prompt-tokens", type=_whole_numbers, default=(4096, 16384, 65536))
    parser.add_argument("--rows", type=int, default=16, help="of the decode batch; two hold the whole cache")
    parser.add_argument(
        "--only", choices=("attention", "compress", "packed"), help="measure these kernels alone"
    )
    parser.add_argument("--seconds", type=float, help="begin nothing new after this time")
    parser.add_argument("--tune", action="store_true", help="try other ways to cut the work instead")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark measures a CUDA device, and torch sees none")
    return options


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()

"""Ragged attention of one layer: Triton's kernel against the reference and against the time to read the bytes once.

    python bench/kernels.py [--tokens 1] [--rows 16,32,64] [--slots 1024,4096,16384] [--no-reference]

Needs CUDA. Every row has a prefix in storages of its own. "a call" is wall clock per call of many in a row, Python and
launches included: what the engine pays while it is launch-bound. "on the device" is between two CUDA events, with a cold L2
cache. The floor is bytes of all keys and values ÷ this device's bandwidth, which is measured first, by copying.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from kvmerger.kernels import dispatch, reference
from kvmerger.layer_cache import LayerCache
from kvmerger.ragged_cache import RaggedCache
from kvmerger.ragged_layer import RaggedLayer

NUM_CALLS = 20
TAIL_TOKENS = 64
COPY_BYTES = 2**30
HEADS = {"8B-like": (8, 4, 128), "demo": (3, 3, 64)}
"""KV heads, query heads of each, head size."""


@dataclass(frozen=True)
class Timing:
    """Seconds per call, wall clock and on the device, and the largest difference between two kernels' outputs."""

    triton_wall_s: float
    triton_device_s: float
    reference_wall_s: float | None
    floor_s: float
    difference: float | None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1, help="new tokens of each row; 1 is decoding")
    parser.add_argument("--rows", type=_whole_numbers, default=(16, 32, 64))
    parser.add_argument("--slots", type=_whole_numbers, default=(1024, 4096, 16384))
    parser.add_argument("--no-reference", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark measures a CUDA device, and torch sees none")
    bytes_per_s = copy_bandwidth()
    console = Console(width=120)
    console.print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16, {options.tokens} new tokens a row; "
        f"copying moves {bytes_per_s / 1e12:.2f} TB/s",
        highlight=False,
    )
    table = _table()
    for name, heads in HEADS.items():
        for num_rows in options.rows:
            for num_slots in options.slots:
                timing = measure(
                    heads, num_rows, num_slots, options.tokens, bytes_per_s, not options.no_reference
                )
                table.add_row(name, str(num_rows), str(num_slots), *_cells(timing))
    console.print(table)


def copy_bandwidth() -> float:
    """Bytes per second that a large copy reads and writes, together."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / device_s(lambda: target.copy_(source))


def measure(
    heads: tuple[int, int, int],
    num_rows: int,
    num_slots: int,
    num_tokens: int,
    bytes_per_s: float,
    has_reference: bool,
) -> Timing:
    """Time one shape; ``num_slots`` in every head of every row."""
    q_RQTD, layer = make_layer(heads, num_rows, num_slots, num_tokens)
    scaling = heads[2] ** -0.5

    def ours() -> torch.Tensor:
        return dispatch.ragged_attention(q_RQTD, layer, scaling).out_RTQD

    def theirs() -> torch.Tensor:
        return reference.ragged_attention(q_RQTD, layer, scaling).out_RTQD

    tail_bytes = (TAIL_TOKENS + num_tokens) * num_rows * heads[0] * heads[2] * q_RQTD.element_size() * 2
    prefix_bytes = sum(
        prefix.k_SD.nbytes + prefix.v_SD.nbytes for prefix in layer.prefix_R if prefix is not None
    )
    return Timing(
        wall_s(ours),
        device_s(ours),
        wall_s(theirs) if has_reference else None,
        (prefix_bytes + tail_bytes) / bytes_per_s,
        float((ours() - theirs()).abs().max()) if has_reference else None,
    )


def make_layer(
    heads: tuple[int, int, int], num_rows: int, num_slots: int, num_tokens: int
) -> tuple[torch.Tensor, RaggedLayer]:
    """Queries and one layer of a batch, as `extend` has them."""
    num_heads, num_groups, head_dim = heads
    options = {"dtype": torch.bfloat16, "device": "cuda"}
    prefixes = [
        (LayerCache.from_dense(*torch.randn(2, num_heads, num_slots, head_dim, **options).unbind()),)
        for _ in range(num_rows)
    ]
    cache = RaggedCache(prefixes, [num_slots] * num_rows, TAIL_TOKENS + num_tokens)
    for num_new in (TAIL_TOKENS, num_tokens):
        k_RHTD, v_RHTD = torch.randn(2, num_rows, num_heads, num_new, head_dim, **options)
        layer = cache.append(0, k_RHTD, v_RHTD, (num_new,) * num_rows)
        cache.advance((num_new,) * num_rows)
    q_RTQD = torch.randn(num_rows, num_tokens, num_heads * num_groups, head_dim, **options)
    return q_RTQD.transpose(1, 2), layer


def wall_s(call: Callable[[], object]) -> float:
    """Seconds per call when many are made in a row."""
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    start_s = time.perf_counter()
    for _ in range(NUM_CALLS):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start_s) / NUM_CALLS


def device_s(call: Callable[[], object]) -> float:
    """Seconds per call on the device (median)."""
    import triton.testing

    return float(triton.testing.do_bench(call, return_mode="median")) / 1000


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _table() -> Table:
    table = Table(box=None, caption="µs of one layer's attention")
    for name in (
        "heads",
        "rows",
        "slots",
        "Triton, a call",
        "on the device",
        "floor",
        "of bandwidth",
        "reference, a call",
        "speed-up",
        "largest difference",
    ):
        table.add_column(name, justify="left" if name == "heads" else "right")
    return table


def _cells(timing: Timing) -> list[str]:
    measured = [timing.triton_wall_s, timing.triton_device_s, timing.floor_s]
    cells = [*(f"{1e6 * seconds:.0f}" for seconds in measured)]
    cells.append(f"{timing.floor_s / timing.triton_device_s:.0%}")
    if timing.reference_wall_s is None or timing.difference is None:
        return [*cells, "", "", ""]
    return [
        *cells,
        f"{1e6 * timing.reference_wall_s:.0f}",
        f"{timing.reference_wall_s / timing.triton_wall_s:.0f}x",
        f"{timing.difference:.2g}",
    ]


if __name__ == "__main__":
    main()

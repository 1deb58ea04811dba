"""A decode-like step on the processor, alone and beside busy processes, by how threads that wait for each other wait.

    python -m bench.engine.busy_steps [--threads 2] [--steps 150]

A step is that of a model like the demo's: thirty layers of two products of 8 rows. Each way runs in a process of its own,
since OpenMP reads its environment once; ways take turns, three times each, and the median step of all turns is printed. Busy
are as many processes as there are cores, which do nothing but count. For an idle column the machine has to be idle.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

_WAYS = {"spinning (OpenMP's default)": {}, "sleeping (GOMP_SPINCOUNT=0)": {"GOMP_SPINCOUNT": "0"}}
_TURNS = 3
_ROWS, _WIDTH, _LAYERS = 8, 576, 30
_STEPS = """
import statistics, sys, time, torch
threads, steps, rows, width, layers = map(int, sys.argv[1:])
torch.set_num_threads(threads)
x = torch.randn(rows, width)
pairs = [(torch.randn(width, 4 * width), torch.randn(4 * width, width)) for _ in range(layers)]
took = []
with torch.inference_mode():
    for _ in range(steps):
        start = time.perf_counter()
        y = x
        for up, down in pairs:
            y = torch.nn.functional.layer_norm(torch.relu(y @ up) @ down, (width,))
        took.append(time.perf_counter() - start)
print(statistics.median(took))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    table = Table("threads that wait are", "alone", f"beside {cores} busy processes")
    columns = [_measured(options.threads, options.steps)]
    with _busy(cores):
        columns.append(_measured(options.threads, options.steps))
    for way in _WAYS:
        table.add_row(way, *(f"{1e3 * statistics.median(column[way]):.0f} ms" for column in columns))
    Console().print(table)


def _measured(threads: int, steps: int) -> dict[str, list[float]]:
    """Median seconds of a step by way, once for each turn."""
    took: dict[str, list[float]] = {way: [] for way in _WAYS}
    shape = [threads, steps, _ROWS, _WIDTH, _LAYERS]
    for _ in range(_TURNS):
        for way, variables in _WAYS.items():
            done = subprocess.run(
                [sys.executable, "-c", _STEPS, *map(str, shape)],
                env={**os.environ, **variables}, capture_output=True, text=True, check=True,
            )  # fmt: skip
            took[way].append(float(done.stdout))
    return took


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """So many processes that count meanwhile."""
    counting = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in counting:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()

"""How bench.kernels measures: device time with a cold L2 cache, wall clock of many calls in a row, and the two ceilings.

What cannot be measured (an operator that this torch lacks, memory, time) is a row with its reason, and stops nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DEVICE = "cuda"
NUM_TIMINGS, CALLS_OF_A_TIMING = 5, 4
MOST_WALL_S = 0.5  # a call that takes so long is not launch-bound
COPY_BYTES = 2**31
MOST_REASON = 70  # characters of an error
MATMUL_SIZE = 8192


@dataclass(frozen=True)
class Ceilings:
    """What this device reaches: bytes read and written by a large copy, operations of a large product in bf16 and fp32."""

    bytes_per_s: float
    flop_per_s: float
    fp32_flop_per_s: float

    def floor_s(self, num_bytes: float, num_flop: float = 0) -> float:
        """Seconds that no kernel can do with less."""
        return max(num_bytes / self.bytes_per_s, num_flop / self.flop_per_s)


@dataclass(frozen=True)
class Measured:
    """One implementation of one case; None where it was not measured, and ``note`` says why."""

    kernel: str
    case: str
    implementation: str
    floor_s: float
    device_s: float | None = None
    call_s: float | None = None
    difference: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Bench:
    """One case of one kernel: measures its implementations against one floor until the time is up."""

    kernel: str
    case: str
    floor_s: float
    deadline_s: float
    report: Callable[[Measured], None]

    def run(
        self,
        implementation: str,
        make: Callable[[], Callable[[], Tensor]],
        *,
        expected: Tensor | None = None,
        floor_s: float | None = None,
        note: Callable[[float], str] = lambda _: "",
    ) -> Measured:
        """Report ``make()``'s call: its times, and how far its result is from ``expected``; ``note`` gets device seconds."""
        subject = (self.kernel, self.case, implementation, self.floor_s if floor_s is None else floor_s)
        measured = Measured(*subject, note="left out: the time is up")
        if time.monotonic() < self.deadline_s:
            try:
                call = make()
                out = call()  # the first call compiles, and shows what fails
                difference = None if expected is None else _largest_difference(out, expected)
                seconds = device_s(call)
                measured = Measured(*subject, seconds, call_s(call), difference, note(seconds))
            # A rival may fail in any way there is; the others are measured all the same.
            except Exception as error:  # noqa: BLE001
                reason = next(iter(str(error).splitlines()), "")
                measured = Measured(*subject, note=f"{type(error).__name__}: {reason}"[:MOST_REASON])
        self.report(measured)
        return measured


def measure_ceilings() -> Ceilings:
    """Measure both, on random numbers: zeros can run faster than data does."""
    source = torch.randint(256, (COPY_BYTES,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    copy_s = device_s(lambda: target.copy_(source))
    a, b = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE, device=DEVICE)
    half_a, half_b = a.bfloat16(), b.bfloat16()
    num_flop = 2 * MATMUL_SIZE**3
    return Ceilings(
        2 * COPY_BYTES / copy_s,
        num_flop / device_s(lambda: half_a @ half_b),
        num_flop / device_s(lambda: a @ b),  # TF32 is off in torch unless asked for
    )


def device_s(call: Callable[[], object]) -> float:
    """Median seconds between two events around a call, the L2 cache overwritten before each."""
    import triton.testing

    return float(triton.testing.do_bench(call, return_mode="median")) / 1000  # it gives milliseconds


def call_s(call: Callable[[], object]) -> float:
    """Wall-clock seconds per call of many in a row, Python and launches included: what a launch-bound engine pays."""
    synchronize()
    seconds: list[float] = []
    while len(seconds) < NUM_TIMINGS and sum(seconds) * CALLS_OF_A_TIMING < MOST_WALL_S:
        start_s = time.perf_counter()
        for _ in range(CALLS_OF_A_TIMING):
            call()  # no wait in between: launches of the next overlap with the work of the last, as in an engine
        synchronize()
        seconds.append((time.perf_counter() - start_s) / CALLS_OF_A_TIMING)
    return statistics.median(seconds)


def first_call_s(call: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, made now: what a length never seen before costs."""
    synchronize()
    start_s = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start_s


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _largest_difference(out: Tensor, expected: Tensor) -> float:
    return float((out.float() - expected.float()).abs().max())

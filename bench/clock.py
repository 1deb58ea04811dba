"""Seconds and peak memory of a call, the bandwidth of a copy, and a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from kvmerger.device import now_s

T = TypeVar("T")
_COPY_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """peak_bytes: most allocated at once, weights included; None without CUDA."""

    result: T
    seconds: float
    peak_bytes: int | None


def timed(call: Callable[[], T], device: torch.device) -> Timed[T]:
    """Run ``call`` once, from an idle device to an idle device."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start_s = now_s(
        device
    )  # waits for the device, here and below: a launch returns long before its kernel has run
    result = call()
    seconds = now_s(device) - start_s
    return Timed(result, seconds, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a large copy reads and writes, together (best of several)."""
    # Less for a processor, which would take seconds for ten copies of a GiB.
    num_bytes = _COPY_BYTES if device.type == "cuda" else _COPY_BYTES // 16
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    # Each byte is read once and written once.
    return 2 * num_bytes / min(timed(lambda: target.copy_(source), device).seconds for _ in range(10))


class Deadline:
    """Seconds that a command may take, from here on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end_s = time.monotonic() + seconds  # time.time() can be set back

    def left_s(self) -> float:
        """Seconds that are left; below 0 when they are over."""
        return self._end_s - time.monotonic()

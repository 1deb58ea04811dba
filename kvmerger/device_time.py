"""Wall-clock seconds that include the work a device has been given, not just the time to hand it over."""

from __future__ import annotations

import time

import torch


def now_s(device: torch.device) -> float:
    """Seconds on a clock with no particular start, once ``device`` has finished all it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

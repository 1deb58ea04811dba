"""Memory that nothing uses any more, handed back: garbage that refers to itself, and what torch's allocator keeps."""

from __future__ import annotations

import gc

import torch


def free_memory(device: torch.device) -> None:
    """Give back what a finished or failed run left behind, so that the next one starts as it did."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

"""A device's memory, clock and uploads: seconds include the work that was queued, and an upload waits for none of it."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence

import torch
from torch import Tensor

_BESIDE_TORCH_BYTES = 2**30
"""What CUDA's context, kernels and libraries take outside torch's allocator; 0.75 GiB on an H200 with torch 2.11."""


def keep_to(share: float) -> None:
    """Let this process take no more than ``share`` (0 to 1) of its GPU, so that others can have theirs."""
    if torch.cuda.is_available():
        _, total_bytes = torch.cuda.mem_get_info()
        # torch counts what its allocator holds and nothing else. The smallest shares must not come out as nothing.
        beside = min(_BESIDE_TORCH_BYTES / total_bytes, share / 2)
        torch.cuda.set_per_process_memory_fraction(share - beside)


def available_bytes(device: torch.device) -> int:
    """Bytes of a GPU that torch could still allocate here."""
    unused_bytes, total_bytes = torch.cuda.mem_get_info(device)
    allocated_bytes = torch.cuda.memory_allocated(device)
    # What the allocator holds without using it is as good as free.
    unused_bytes += torch.cuda.memory_reserved(device) - allocated_bytes
    share = torch.cuda.get_per_process_memory_fraction(device)
    return max(0, min(unused_bytes, int(share * total_bytes) - allocated_bytes))


def free_memory(device: torch.device) -> None:
    """Give back what a finished or failed run left behind, so that the next one starts as it did."""
    # In this order: only tensors that are gone leave blocks for the allocator to give back.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def now_s(device: torch.device) -> float:
    """Seconds on a clock with no particular start, once ``device`` has finished all it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def upload(numbers: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """``numbers`` (int64 where they are no tensor yet) on ``device``. Does not wait for it."""
    # Unlike ``torch.tensor(numbers, device=…)``, which returns once everything queued before the copy is done.
    return torch.as_tensor(numbers).to(device, non_blocking=True)

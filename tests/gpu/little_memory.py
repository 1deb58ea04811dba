"""A device that is too small, without one: the allocator is held to a share of what a run takes."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def with_share_of_memory(share: float, run: Callable[[], Result]) -> Result:
    """What ``run`` gives when it may allocate only ``share`` of what it allocates at most, which a run before this measures.

    Of what it *allocates*: the blocks that the allocator keeps for later it gives up by itself where memory is short.
    """
    _release()
    before_bytes = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    limit_bytes = before_bytes + int(share * (torch.cuda.max_memory_allocated() - before_bytes))
    _release()
    torch.cuda.set_per_process_memory_fraction(limit_bytes / torch.cuda.get_device_properties(0).total_memory)
    try:
        return run()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _release() -> None:
    gc.collect()
    torch.cuda.empty_cache()

"""A device that is too small, without one: the allocator is held to fewer bytes than a run takes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from kvmerger.device import free_memory


def bytes_for(share: float, run: Callable[[], object]) -> int:
    """What is allocated now, and ``share`` of what ``run`` allocates at most on top of that; it is run once.

    Of what it *allocates*: blocks that the allocator keeps for later it gives up by itself where memory is short.
    """
    free_memory(torch.device("cuda"))
    before_bytes = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return before_bytes + int(share * (torch.cuda.max_memory_allocated() - before_bytes))


@contextmanager
def at_most(num_bytes: int, *, is_foreseen: bool) -> Iterator[None]:
    """The allocator reserves no more than this; whether a plan knows."""
    free_memory(torch.device("cuda"))
    torch.cuda.set_per_process_memory_fraction(num_bytes / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.MonkeyPatch.context() as patch:
            if not is_foreseen:
                patch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device=None: 1.0)
            yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

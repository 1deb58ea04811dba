"""Launches that do not wait for each other, side by side on the device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

NUM_STREAMS = 8
"""More launches than these share streams: each stream has its own, one behind the other."""


@functools.cache
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, ...]:
    return tuple(torch.cuda.Stream(device) for _ in range(NUM_STREAMS))


def launch_all(launches: Sequence[Callable[[], None]], device: torch.device) -> None:
    """Call ``launches``, none of which needs another; what is queued afterwards waits for all of them.

    They must allocate nothing on the device: the allocator knows of the caller's stream alone. Recorded in a CUDA graph they
    are branches of it.
    """
    if len(launches) < 2 or device.type != "cuda":
        for launch in launches:
            launch()
        return
    callers = torch.cuda.current_stream(device)
    first, *others = launches
    used = _streams(device)[: len(others)]
    for stream in used:
        stream.wait_stream(callers)
    for index, launch in enumerate(others):
        with torch.cuda.stream(used[index % NUM_STREAMS]):
            launch()
    first()
    for stream in used:
        callers.wait_stream(stream)

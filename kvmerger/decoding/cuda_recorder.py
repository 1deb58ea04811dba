"""A step as a CUDA graph: recorded once, then started with one call, whatever the number of kernels in it.

All graphs of a recorder take their intermediate tensors from one pool: they never run at the same time, and none leaves
anything there for the next, so the pool is as large as the largest of them needs.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

NUM_WARM_UPS = 2
"""Kernels are compiled, and libraries take their work spaces, before anything is recorded."""


@functools.cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One per device and process: matrix products keep a work space for every stream they ever ran on."""
    return torch.cuda.Stream(device)


class CudaRecorder:
    """Records on a stream of its own, as PyTorch asks for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _recording_stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        # Weakly: a graph goes, and its memory with it, when nobody holds its `replay` any more.
        self._alive: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
        # Pinned, or the copy would wait for the device. Two, since one is asked for before the one before it is read.
        self._numbers = [torch.zeros((), dtype=torch.int64, pin_memory=True) for _ in range(2)]

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Run ``step`` a few times and record it; the call that is returned starts it and waits for nothing.

        Raises:
            RuntimeError: the step waits for the device, or does something else that a graph cannot hold.
        """
        if not self._alive:
            # The last graph that goes takes its pool with it, and the allocator lets nobody join what is going.
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        callers = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(callers)
        try:
            # Around all of it: a recording that fails leaves its stream set.
            with torch.cuda.stream(self._stream):
                for _ in range(NUM_WARM_UPS):
                    step()
                with self._recording(graph):
                    step()
        except BaseException:
            self._break_off()
            raise
        finally:
            callers.wait_stream(self._stream)
        self._alive.add(graph)
        return graph.replay

    def _recording(self, graph: torch.cuda.CUDAGraph) -> torch.cuda.graph:
        # Other threads of an actor may use the device meanwhile.
        return torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )

    def _break_off(self) -> None:
        """Let the allocator be as it is when nobody records, and leave a pool in which a recording broke off alone."""
        # torch 2.11 leaves it waiting for the recording's end (pytorch/pytorch#180395): no memory would go back to the driver
        # any more, and where it runs out torch would not look at what it keeps. Where torch has ended it, it says so here.
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)
        self._pool, self._alive = torch.cuda.graph_pool_handle(), weakref.WeakSet()
        # Its random numbers would wait for the end as well, and only that of a recording that succeeds puts them right.
        with suppress(RuntimeError), self._recording(torch.cuda.CUDAGraph()):
            torch.zeros((), device=self._device)

    def read_later(self, number: Tensor) -> Callable[[], int]:
        """Copy ``number`` to the host behind the work that is queued; the call waits until it is there."""
        self._numbers.reverse()
        on_host, is_there = self._numbers[0], torch.cuda.Event()
        on_host.copy_(number, non_blocking=True)
        is_there.record(torch.cuda.current_stream(self._device))

        def read() -> int:
            is_there.synchronize()
            return int(on_host)

        return read

"""A device's name, memory, clock and uploads: seconds include queued work, and an upload waits for none of it."""

from __future__ import annotations

import gc
import platform
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

_BESIDE_TORCH_BYTES = 2**30
"""What CUDA's context, kernels and libraries take outside torch's allocator; 0.75 GiB on an H200 with torch 2.11."""

_CPU_FACTS = ("model name", "cpu family", "model", "CPU implementer", "CPU part")
"""What Linux says of a processor's kind; the first three on x86, the last two on ARM."""
_SYSCTL_TIMEOUT_S = 5


def device_name(device: torch.device) -> str | None:
    """What kind of GPU or processor ``device`` is, the same on every machine that has one; None where nobody says so."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # An Apple GPU is a part of the processor and has no name of its own.
    return _mac_processor() if platform.system() == "Darwin" else _linux_processor(Path("/proc/cpuinfo"))


def _linux_processor(cpuinfo: Path) -> str | None:
    # Not `platform.processor()`, which is "x86_64" or "" here. And not the name alone: virtual machines shorten it, and
    # "AMD EPYC" is a server of any year. Clock and microcode change on one machine, so they stay out.
    try:
        first = cpuinfo.read_text().partition("\n\n")[0]
    except OSError:
        return None
    split = [line.partition(":") for line in first.splitlines()]
    facts = {key.strip(): value.strip() for key, _, value in split}
    known = [(key, facts[key]) for key in _CPU_FACTS if facts.get(key)]
    return ", ".join(value if key == "model name" else f"{key} {value}" for key, value in known) or None


def _mac_processor() -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=_SYSCTL_TIMEOUT_S)
        return done.stdout.strip() or None
    return None


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

"""The device a model is put on: one that torch has, or a sentence, before anything is loaded."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import torch

from kvmerger.models.errors import ModelError

_FORMS = "auto, cpu, cuda, cuda:N and mps"
_KNOWN = re.compile(r"cpu|mps|cuda(?::(?P<index>\d+))?")
# What people write who mean a GPU; the rest is told the list.
_MEANT = {"gpu": "cuda", "nvidia": "cuda", "metal": "mps"}


def chosen_device(device: str, *, is_run_here: bool = True) -> str:
    """The device that ``device`` names: ``auto`` becomes ``cuda`` where torch sees a GPU, otherwise ``cpu``.

    With ``is_run_here=False`` another machine has the device, and only its name is checked.

    Raises:
        ModelError: no such device, here or anywhere, or none that kernels can be compiled for.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    known = _KNOWN.fullmatch(device)
    if known is None:
        raise ModelError(f"device {device!r} is none of {_FORMS}{_did_you_mean(device)}")
    if is_run_here:
        _check_is_here(device, known["index"])
        if device.startswith("cuda"):
            _check_kernel_cache()
    return device


def _did_you_mean(device: str) -> str:
    word = device.strip().lower()
    near = _MEANT.get(word) or (f"cuda:{word}" if word.isdecimal() else word)
    return f"; did you mean {near!r}?" if _KNOWN.fullmatch(near) else ""


def _check_is_here(device: str, index: str | None) -> None:
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(
            f"device {device!r} was asked for, but torch sees no CUDA device; use `device: auto` or `cpu`"
        )
    if index is not None and int(index) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise ModelError(f"device {device!r} was asked for, but the last that torch sees is 'cuda:{last}'")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ModelError(
            f"device {device!r} was asked for, but torch sees no Apple GPU; use `device: auto` or `cpu`"
        )


def _check_kernel_cache() -> None:
    """Triton keeps each kernel that it compiles in a folder, and can run none where it cannot make that folder."""
    # Its own rule, without importing it. What fails here would fail every compressed row once the model is loaded.
    home = os.environ.get("TRITON_HOME") or "~"
    try:
        asked = os.environ.get("TRITON_CACHE_DIR") or Path(home).expanduser() / ".triton" / "cache"
        folder = Path(asked)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    # RuntimeError: a container's user without a name has no home folder.
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"GPU kernels cannot be kept ({error}); set TRITON_CACHE_DIR to a folder that can be written"
        ) from error

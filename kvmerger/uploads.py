"""Numbers of the host on the device, without waiting for what the device still has to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(numbers: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """``numbers`` (int64 where they are no tensor yet) on ``device``.

    ``torch.tensor(numbers, device=…)`` waits until everything queued before the copy is done.
    """
    return torch.as_tensor(numbers).to(device, non_blocking=True)

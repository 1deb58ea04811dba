"""Which kernel computes ragged attention: Triton's on a GPU where it can, the reference everywhere else."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Collection

from torch import Tensor

from kvmerger.kernels import reference
from kvmerger.kernels.reference import Attended
from kvmerger.ragged_cache import RaggedLayer

MOST_HEAD_DIM = 256
SLOT_ALIGNMENT_BYTES = 16  # one vector load


def ragged_attention(
    q_RQTD: Tensor, layer: RaggedLayer, scaling: float, mass_rows: Collection[int] = ()
) -> Attended:
    """`reference.ragged_attention`, computed by the fastest kernel for these tensors."""
    if not (q_RQTD.is_cuda and has_triton() and is_supported(q_RQTD)):
        return reference.ragged_attention(q_RQTD, layer, scaling, mass_rows)
    from kvmerger.kernels import triton_ragged

    return triton_ragged.ragged_attention(q_RQTD, layer, scaling, mass_rows)


def backend_name(device: str, head_dim: int, element_bytes: int) -> str:
    """Who computes ragged attention on ``device``, for heads of this size and numbers of this many bytes: triton or torch."""
    is_triton = device.startswith("cuda") and has_triton() and _takes(head_dim, element_bytes)
    return "triton" if is_triton else "torch"


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed; torch's CUDA builds bring it. Does not import it."""
    return importlib.util.find_spec("triton") is not None


def is_supported(q_RQTD: Tensor) -> bool:
    """Whether the Triton kernels take heads of this size and dtype."""
    return _takes(q_RQTD.shape[3], q_RQTD.element_size())


def _takes(head_dim: int, element_bytes: int) -> bool:
    return head_dim * element_bytes % SLOT_ALIGNMENT_BYTES == 0 and head_dim <= MOST_HEAD_DIM

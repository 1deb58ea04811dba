"""Which kernel computes ragged attention: Triton's on a GPU where it can, the reference everywhere else."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Collection

from torch import Tensor

from kvmerger.kernels import reference
from kvmerger.kernels.reference import Attended
from kvmerger.ragged_layer import RaggedLayer

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


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed; torch's CUDA builds bring it. Does not import it."""
    return importlib.util.find_spec("triton") is not None


def is_supported(q_RQTD: Tensor) -> bool:
    """Whether the Triton kernels take heads of this size and dtype."""
    head_dim = q_RQTD.shape[3]
    is_aligned = head_dim * q_RQTD.element_size() % SLOT_ALIGNMENT_BYTES == 0
    return is_aligned and head_dim <= MOST_HEAD_DIM

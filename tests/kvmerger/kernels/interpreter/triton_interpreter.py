"""Triton's CPU interpreter, made to do what the compiler does; import this before any of our kernels, with
TRITON_INTERPRET=1 set before the process starts.

Four gaps of triton 3.6 and 3.7 are closed: loop bounds under numpy ≥ 2.4, dots of bfloat16, which it multiplies as the
integers it stores them in, dots with equal columns, to which numpy's BLAS gives different last bits on some processors,
and fp32 made bfloat16, which it cuts off where the compiler rounds to the nearest.
"""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_patch_lang_tensor = interpreter._patch_lang_tensor
_cast = interpreter.InterpreterBuilder.cast_impl


def _patch_with_loop_bounds(tensor, scope) -> None:
    _patch_lang_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


def _dot_of_numbers(self, a, b, d, input_precision, max_num_imprecise_acc):
    product = np.matmul(_as_float32(a).data, _as_float32(b).data, dtype=np.float64)
    return interpreter.TensorHandle((product + d.data).astype(d.data.dtype), d.dtype.scalar)


def _as_float32(handle):
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = handle.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


def _cast_to_nearest(self, src, dst_type):
    if src.dtype.scalar != tl.float32 or dst_type.scalar != tl.bfloat16:
        return _cast(self, src, dst_type)
    bits = src.data.view(np.uint32).astype(np.uint64)
    to_even = (bits >> 16 & 1) + 0x7FFF
    # A NaN's fraction must not be rounded away.
    nearest = np.where(np.isnan(src.data), bits >> 16 | 0x40, bits + to_even >> 16)
    return interpreter.TensorHandle(nearest.astype(np.uint16), tl.bfloat16)


interpreter._patch_lang_tensor = _patch_with_loop_bounds
interpreter.InterpreterBuilder.create_dot = _dot_of_numbers
interpreter.InterpreterBuilder.cast_impl = _cast_to_nearest

"""How many operations a piece of code hands to torch, and how often it makes a device's queue run empty.

Counted on any device, a CPU included: what is counted is what would be launched, or waited for, on CUDA.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Ops whose result's shape, or whose result itself, the host must know before it goes on.
_WAITING_OPS = {
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
# Read or written by the host without an op of its own where the device is a CPU.
_WAITING_FUNCTIONS = {"tolist", "numpy", "cpu"}
# Memory alone, or a copy that is counted as a wait.
_WITHOUT_LAUNCH = {"_local_scalar_dense", "empty", "empty_like", "empty_strided", "new_empty"}


class OpCounter:
    """Counts while inside ``with``: ``launches`` (ops that are no views; a sort is several kernels) and ``waits``."""

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self._modes = (_Functions(self.waits), _Ops(self.launches, self.waits))

    @property
    def num_launches(self) -> int:
        """All launches."""
        return self.launches.total()

    @property
    def num_waits(self) -> int:
        """All waits."""
        return self.waits.total()

    def __enter__(self) -> OpCounter:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)


class _Ops(TorchDispatchMode):
    def __init__(self, launches: Counter[str], waits: Counter[str]) -> None:
        super().__init__()
        self._launches, self._waits = launches, waits

    def __torch_dispatch__(
        self, op: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = op.overloadpacket.__name__
        if name in _WAITING_OPS or _waits_for_its_shape(name, args, kwargs):
            self._waits[name] += 1
        if not op.is_view and name not in _WITHOUT_LAUNCH:
            self._launches[name] += 1
        return op(*args, **kwargs)  # torch leaves the mode in here, so that an op is not counted twice


def _waits_for_its_shape(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if name in ("index", "index_put", "index_put_"):
        # A mask as an index: the host must know how many of it are true.
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    if name == "segment_reduce":  # it fetches the lengths to check them
        return not kwargs.get("unsafe")
    return name == "repeat_interleave" and kwargs.get("output_size") is None


class _Functions(TorchFunctionMode):
    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(function, "__name__", "")
        # A list made into a tensor on a device is copied there, and the copy is waited for.
        if name in _WAITING_FUNCTIONS or (name == "tensor" and (kwargs or {}).get("device") is not None):
            self._waits[name] += 1
        return function(*args, **(kwargs or {}))

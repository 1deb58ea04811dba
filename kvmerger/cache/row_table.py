"""A batch's rows as a device kernel reads them: addresses and lengths in tensors, where `RaggedLayer` has tuples.

A table describes the prefixes it was last told of. Whoever uses it calls `PrefixTable.follow` with the current ones first.

Shapes: R rows, L layers, H KV heads, five columns: address of the head's first key, of its first value and of its first
log mass (0 for none), its first slot's flat index, its number of slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kvmerger.cache.layer_cache import LayerCache

NUM_COLUMNS = 5
LOG_MASS_BYTES = 4  # of one fp32


class DeviceRows(NamedTuple):
    """One layer's rows on the device.

    Attributes:
        prefix_RH5: int64, the columns above; all 0 for a row without a prefix.
        tail_start_R, num_new_R: int32, as in `RaggedLayer`.
        most_slots: of any row's and head's prefix; a kernel's grid must reach that far.
    """

    prefix_RH5: Tensor
    tail_start_R: Tensor
    num_new_R: Tensor
    most_slots: int


class PrefixTable:
    """Addresses and lengths of all rows' prefixes. Changes only by `follow`."""

    def __init__(
        self,
        prefixes: Sequence[Sequence[LayerCache] | None],
        device: torch.device,
        out_LRH5: Tensor | None = None,
    ) -> None:
        """Describe ``prefixes`` (at least one not None), one per row, whose tensors must be contiguous.

        ``out_LRH5``: int64 on ``device``, to be overwritten; by default a tensor of the table's own.
        """
        self._template = next(prefix for prefix in prefixes if prefix is not None)
        # Held for as long as the device may follow their addresses: freed memory would be somebody else's.
        self._prefixes = list(prefixes)
        # Rows share prefixes, and describing one costs a Python loop over layers and heads.
        described = {id(prefix): self._describe(prefix) for prefix in prefixes}
        columns_RLH5 = torch.stack([described[id(prefix)] for prefix in prefixes])
        # On the CPU still, so that this waits for nothing.
        self._most_slots_RL = columns_RLH5[..., -1].amax(dim=2).tolist()
        columns_LRH5 = columns_RLH5.transpose(0, 1).contiguous()
        self._columns_LRH5 = columns_LRH5.to(device) if out_LRH5 is None else out_LRH5.copy_(columns_LRH5)

    @classmethod
    def joined(
        cls,
        table_by_start: Mapping[int, PrefixTable],
        prefixes: Sequence[Sequence[LayerCache] | None],
        columns_LRH5: Tensor,
    ) -> PrefixTable:
        """One table over ``columns_LRH5``, where the tables' own columns lie already, each from its start on.

        ``prefixes`` are those of all rows, None outside the tables; their columns are overwritten with zeros.
        """
        # Not through __init__, which would describe every prefix a second time.
        joined = cls.__new__(cls)
        joined._template = next(iter(table_by_start.values()))._template
        joined._prefixes = list(prefixes)
        joined._most_slots_RL = [[0] * len(joined._template) for _ in prefixes]
        is_dummy_R = torch.ones(len(prefixes), dtype=torch.bool)
        for start, table in table_by_start.items():
            rows = slice(start, start + len(table._prefixes))
            joined._most_slots_RL[rows] = table._most_slots_RL
            is_dummy_R[rows] = False
        # Between the tables an earlier batch's columns may stand, whose addresses are no longer anybody's.
        columns_LRH5.masked_fill_(is_dummy_R.to(columns_LRH5.device)[:, None, None], 0)
        joined._columns_LRH5 = columns_LRH5
        return joined

    def follow(self, prefixes: Sequence[Sequence[LayerCache] | None]) -> None:
        """Describe anew the rows whose prefix is no longer the same object."""
        for row, prefix in enumerate(prefixes):
            # By identity: slots that change in place keep their addresses, equal ones elsewhere do not have them.
            if prefix is not self._prefixes[row]:
                columns_LH5 = self._describe(prefix)
                self._prefixes[row] = prefix
                self._most_slots_RL[row] = columns_LH5[..., -1].amax(dim=1).tolist()
                # Queued behind the kernels that read the old columns: nobody has to wait for those.
                self._columns_LRH5[:, row] = columns_LH5.to(self._columns_LRH5.device, non_blocking=True)

    def layer(self, layer_index: int, lengths_2R: Tensor, most_slots: int | None = None) -> DeviceRows:
        """One layer's rows; ``lengths_2R`` holds tail starts and numbers of new tokens, int32.

        ``most_slots``: a bound to use in place of the true number.
        """
        if most_slots is None:
            most_slots = max(most_slots_L[layer_index] for most_slots_L in self._most_slots_RL)
        return DeviceRows(self._columns_LRH5[layer_index], lengths_2R[0], lengths_2R[1], most_slots)

    def _describe(self, prefix: Sequence[LayerCache] | None) -> Tensor:
        """A prefix's columns, on the CPU: int64 (L, H, 5)."""
        if prefix is None:
            return torch.zeros(
                len(self._template), self._template[0].num_heads, NUM_COLUMNS, dtype=torch.int64
            )
        return torch.tensor([_describe_heads(layer) for layer in prefix])


def lengths_on_device(tail_start_R: Sequence[int], num_new_R: Sequence[int], device: torch.device) -> Tensor:
    """Tail starts and numbers of new tokens as int32 (2, R); does not wait for the device."""
    return torch.tensor([tail_start_R, num_new_R], dtype=torch.int32).to(device, non_blocking=True)


def _describe_heads(layer: LayerCache) -> list[tuple[int, ...]]:
    k_SD, v_SD, log_mass_S = layer.k_SD, layer.v_SD, layer.log_mass_S
    assert k_SD.is_contiguous() and v_SD.is_contiguous(), "a cache's slots lie one after the other"
    assert log_mass_S is None or (log_mass_S.dtype == torch.float32 and log_mass_S.is_contiguous())
    slot_bytes = k_SD.shape[1] * k_SD.element_size()
    return [
        (
            k_SD.data_ptr() + first * slot_bytes,
            v_SD.data_ptr() + first * slot_bytes,
            0 if log_mass_S is None else log_mass_S.data_ptr() + first * LOG_MASS_BYTES,
            first,
            num_slots,
        )
        for first, num_slots in zip(layer.head_starts, layer.num_slots_H, strict=True)
    ]

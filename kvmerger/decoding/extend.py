"""Feed new tokens to every row of a batch, each over its own cache: questions, decoding and teacher forcing alike.

Shapes: R rows, T new tokens (rows with fewer are padded on the right), E hidden size, Q, H, D as in `attention`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from kvmerger.decoding.periodic_rule import NewQueries
from kvmerger.decoding.ragged_cache import RaggedCache
from kvmerger.kernels.dispatch import ragged_attention
from kvmerger.kernels.reference.ragged import SlotMass
from kvmerger.models.loading import LoadedModel

# Any token will do where a row has none: what it computes is never read.
_PAD_ID = 0
_NONE: Mapping[int, int] = MappingProxyType({})


class Extended(NamedTuple):
    """hidden_RTE: last hidden states, meaningful for each row's own new tokens. mass_by_row_L: per layer, row → mass.

    queries_by_row_L: per layer, row → the queries of its newest tokens, of rows that asked for some.
    """

    hidden_RTE: Tensor
    mass_by_row_L: list[dict[int, SlotMass]]
    queries_by_row_L: list[dict[int, NewQueries]]


class _ExtendAttention:
    def __init__(
        self,
        cache: RaggedCache,
        num_new_R: tuple[int, ...],
        mass_rows: Collection[int],
        num_queries_by_row: Mapping[int, int],
    ) -> None:
        self._cache = cache
        self._num_new_R = num_new_R
        self._mass_rows = mass_rows
        self._num_queries_by_row = num_queries_by_row
        self.mass_by_row_L: list[dict[int, SlotMass]] = []
        self.queries_by_row_L: list[dict[int, NewQueries]] = []

    def attend(
        self, layer_index: int, q_BQTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scaling: float
    ) -> Tensor:
        # Appended before anything attends: a new token sees itself and, causally, those that came with it.
        layer = self._cache.append(layer_index, k_BHTD, v_BHTD, self._num_new_R)
        attended = ragged_attention(q_BQTD, layer, scaling, self._mass_rows)
        self.mass_by_row_L.append(attended.mass_by_row)
        self.queries_by_row_L.append(
            {
                row: NewQueries(_newest(q_BQTD[row, :, : self._num_new_R[row]], count), scaling)
                for row, count in self._num_queries_by_row.items()
            }
        )
        return attended.out_RTQD


def extend(
    model: LoadedModel,
    cache: RaggedCache,
    tokens_RT: Tensor,
    num_new_R: Sequence[int],
    mass_rows: Collection[int] = (),
    num_queries_by_row: Mapping[int, int] = _NONE,
) -> Extended:
    """Append each row's first ``num_new_R[r]`` tokens to its tail and return their hidden states.

    Changes ``cache``: tails grow by ``num_new_R``. A row with 0 new tokens changes nothing and attends to nothing.

    Args:
        tokens_RT: int64 on the model's device.
        mass_rows: rows whose attention mass per slot is wanted (costs a sum per layer).
        num_queries_by_row: rows of whose newest tokens so many queries are wanted, where there are as many.
    """
    num_new = tuple(num_new_R)
    position_RT = _positions(cache, num_new, tokens_RT.shape[1], tokens_RT.device)
    handler = _ExtendAttention(cache, num_new, mass_rows, num_queries_by_row)
    hidden_RTE = model.hidden_states(tokens_RT, position_RT, handler)
    # Once for all layers, and after the last: each one appends behind the old lengths.
    cache.advance(num_new)
    return Extended(hidden_RTE, handler.mass_by_row_L, handler.queries_by_row_L)


def pad_tokens(ids_R: Sequence[Sequence[int]], num_tokens: int, device: torch.device) -> Tensor:
    """Rows of at most ``num_tokens`` ids as one int64 tensor (R, T), padded on the right."""
    return torch.tensor([[*ids, *[_PAD_ID] * (num_tokens - len(ids))] for ids in ids_R], device=device)


def _newest(q_QTD: Tensor, count: int) -> Tensor:
    # A copy: a view would keep all rows' queries of all tokens alive.
    return q_QTD[:, -count:].clone()


def _positions(
    cache: RaggedCache, num_new_R: tuple[int, ...], num_tokens: int, device: torch.device
) -> Tensor:
    """New tokens continue at the true prompt length, however few slots a row has kept: int64 (R, T)."""
    # Padding repeats a row's last position: one further on may be more than the model has.
    last_R = [max(num_new - 1, 0) for num_new in num_new_R]
    offset_RT = torch.arange(num_tokens, device=device).minimum(torch.tensor(last_R, device=device)[:, None])
    return torch.tensor(cache.next_position_R, device=device)[:, None] + offset_RT

"""One decode step of a whole batch, at fixed addresses and without a host: what a CUDA graph can record.

All that changes from step to step lives in tensors that are made once: the token each row reads, its position, its tail's
length, how many tokens it may still say, and all that was said. `aim_at` says which batch the step works for; batches whose
tails and prefix tables lie at the same addresses are served by one recording. A row that has ended reads nothing, as in the
eager loop, and nothing of it changes.

Shapes: R rows, L layers, T steps, M end tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvmerger.cache.ragged_layer import OneEach
from kvmerger.decoding.acting_rows import ActingRows
from kvmerger.decoding.decode_loop import Progress
from kvmerger.decoding.periodic_rule import NewQueries
from kvmerger.decoding.ragged_cache import RaggedCache
from kvmerger.kernels.dispatch import ragged_attention
from kvmerger.kernels.reference.ragged import SlotMass
from kvmerger.models.loading import LoadedModel

_NO_TOKEN = -1  # no token's id, so that what fills up a row's end tokens ends nothing


class StaticStep:
    """The step and its state. `start` writes the state, calling the step moves it on, `said` reads it."""

    def __init__(
        self, model: LoadedModel, num_rows: int, most_tokens: int, most_ends: int, most_slots: int
    ) -> None:
        """Make room for so many rows, steps and end tokens per row; ``most_slots`` bounds the length of any prefix."""
        self.most_slots = most_slots
        self._model = model
        self._cache: RaggedCache | None = None
        self._acting: ActingRows | None = None
        device = model.device
        # Never bound anew: a recording holds these addresses, so everything below writes in place.
        self._row_R = torch.arange(num_rows, device=device)
        self._token_R1 = torch.zeros(num_rows, 1, dtype=torch.int64, device=device)
        self._position_R1 = torch.zeros_like(self._token_R1)
        self._lengths_2R = torch.zeros(2, num_rows, dtype=torch.int32, device=device)
        self._grows_R = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self._left_R = torch.zeros_like(self._row_R)
        self._ends_RM = torch.zeros(num_rows, most_ends, dtype=torch.int64, device=device)
        self._said_RT = torch.zeros(num_rows, most_tokens, dtype=torch.int64, device=device)
        self._step_11 = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self.num_going = torch.zeros((), dtype=torch.int64, device=device)
        """Rows that will read a token in the next step."""

    def aim_at(self, cache: RaggedCache | None, acting: ActingRows | None) -> None:
        """Work for this batch from now on; None lets go of the last one. Every row is idle until `start`."""
        self._cache, self._acting = cache, acting
        if cache is not None:
            cache.follow()
            # The reference writes an idle row's token all the same: behind its tail, where nobody looks.
            self._lengths_2R.copy_(torch.tensor([cache.tail_length_R, [0] * cache.num_rows]))

    def start(self, progress: Progress) -> None:
        """Begin where ``progress`` stands, with the batch as it is."""
        assert self._cache is not None, "aim_at comes first"
        num_rows, lent = progress.num_rows, self._cache.lent_rows
        rows = range(num_rows)
        newest_R = [feed[0] if feed else 0 for feed in progress.feed_R]
        lengths_2R = [self._cache.tail_length_R, [int(row in progress.left) for row in rows]]
        ends_RM = [sorted(progress.ends.get(row, ())) for row in rows]
        most_ends = self._ends_RM.shape[1]
        self._token_R1.copy_(torch.tensor(newest_R)[:, None])
        self._position_R1.copy_(torch.tensor(self._cache.next_position_R)[:, None])
        self._lengths_2R.copy_(torch.tensor(lengths_2R))
        self._grows_R.copy_(torch.tensor([int(row not in lent) for row in rows]))
        self._left_R.copy_(torch.tensor([progress.left.get(row, 0) for row in rows]))
        self._ends_RM.copy_(
            torch.tensor([[*ends, *[_NO_TOKEN] * (most_ends - len(ends))] for ends in ends_RM])
        )
        self._step_11.zero_()

    def __call__(self) -> None:
        """Every row that goes on reads its token, and says the next."""
        assert self._cache is not None and self._acting is not None, "aim_at comes first"
        num_new_R = self._lengths_2R[1]
        # Places are a copy (`long` of int32), the lengths are not: they move only after all layers have attended.
        arrival = OneEach(self._row_R, self._lengths_2R[0].long(), self._lengths_2R, self.most_slots)
        handler = _StaticAttention(self._cache, arrival, self._acting.asking, self._acting.asking_queries)
        hidden_R1E = self._model.hidden_states(self._token_R1, self._position_R1, handler)
        next_R = self._model.logits(hidden_R1E[:, 0]).argmax(dim=-1)
        self._acting.settle_on_device(handler.mass_by_row_L, handler.queries_by_row_L, num_new_R)
        # A step number of the host's would be recorded as the number that it was.
        self._said_RT.scatter_(1, self._step_11.expand(len(self._row_R), 1), next_R[:, None])
        self._step_11 += 1
        self._position_R1 += num_new_R[:, None]
        self._lengths_2R[0] += num_new_R * self._grows_R
        is_end_R = (next_R[:, None] == self._ends_RM).any(dim=1)
        goes_on_R = (num_new_R > 0) & (self._left_R > 1) & ~is_end_R
        self._left_R -= num_new_R
        # Overwrites `num_new_R`, a view of it: whatever needs the step's own number stands above.
        self._lengths_2R[1] = goes_on_R
        self._token_R1.copy_(torch.where(goes_on_R, next_R, 0)[:, None])
        self.num_going.copy_(goes_on_R.sum())

    def said(self, num_steps: int) -> list[list[int]]:
        """Each row's most likely token after each of the last `start`'s first ``num_steps`` steps: (T, R)."""
        return self._said_RT[:, :num_steps].T.tolist()


class _StaticAttention:
    """Answers the attention calls of one static step."""

    def __init__(
        self, cache: RaggedCache, arrival: OneEach, mass_rows: Sequence[int], query_rows: Sequence[int]
    ) -> None:
        self._cache = cache
        self._arrival = arrival
        self._mass_rows = mass_rows
        self._query_rows = query_rows
        self.mass_by_row_L: list[dict[int, SlotMass]] = []
        self.queries_by_row_L: list[dict[int, NewQueries]] = []

    def attend(
        self, layer_index: int, q_BQTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scaling: float
    ) -> Tensor:
        layer = self._cache.append_one_each(layer_index, k_BHTD, v_BHTD, self._arrival)
        attended = ragged_attention(q_BQTD, layer, scaling, self._mass_rows)
        self.mass_by_row_L.append(attended.mass_by_row)
        self.queries_by_row_L.append({row: NewQueries(q_BQTD[row], scaling) for row in self._query_rows})
        return attended.out_RTQD

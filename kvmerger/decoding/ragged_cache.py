"""Every row of a batch: an immutable compressed prefix, shared by reference, and a tail of its own.

A row is one question under one variant. New tokens only ever go to the tail, so rewinding a row is resetting its tail's
length. Rows without a prefix (None) are dummies that fill a bucket up: they hold nothing and attend to nothing. A row
whose policy acts during decoding trades its prefix and tail for slots of its own (`lend_slots`), which change under it.

Shapes: R rows, L layers, H KV heads, T new tokens, C tail capacity, D head size.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from kvmerger.cache.packed_layer import HeldLayer, are_read_where_they_lie, tail_position
from kvmerger.cache.ragged_layer import Arrival, OneEach, RaggedLayer, Room, new_tails
from kvmerger.cache.row_table import PrefixTable
from kvmerger.cache.slot_table import storage_bytes
from kvmerger.kernels.dispatch import write_tails

Prefix = tuple[HeldLayer, ...]
"""One variant's cache, layer by layer."""


class RaggedCache:
    """The caches of a batch of rows.

    Changes only by `append` + `advance`, by `append_one_each` + `count_read`, by `rewind`, and, for rows with a decode
    rule, by `lend_slots`, `exchange`, `forget_newest` and `restore`.
    """

    def __init__(
        self,
        prefixes: Sequence[Prefix | None],
        context_tokens_R: Sequence[int],
        tail_capacity: int,
        room: Room | None = None,
        table: PrefixTable | None = None,
    ) -> None:
        """Reserve tails of ``tail_capacity`` tokens for each of ``prefixes`` (at least one not None).

        ``context_tokens_R`` are the true lengths of the compressed parts, where each row's positions continue unless its
        prefix says otherwise (`LayerCache.next_position`). With ``room`` nothing is reserved: tails live there, with as much
        capacity as it has, and whatever it holds is overwritten. ``table`` describes the same prefixes already, in that room.
        """
        self._prefixes = list(prefixes)
        self._tail_position_R = tuple(
            tail_position(*row) for row in zip(self._prefixes, context_tokens_R, strict=True)
        )
        self._room = room
        template = next(prefix for prefix in self._prefixes if prefix is not None)
        tails = room or new_tails(len(self._prefixes), tail_capacity, template)
        self._tail_k, self._tail_v = tails[:2]
        self._tail_token_bytes = sum(
            2 * tail.shape[1] * tail.shape[3] * tail.element_size() for tail in self._tail_k
        )
        self._tail_length_R = (0,) * len(self._prefixes)
        self._num_read_R = self._tail_length_R
        self._lent_rows: set[int] = set()
        self._exchanged_rows: set[int] = set()
        self._arrival: Arrival | None = None
        self._table = table
        self.has_kernels = all(are_read_where_they_lie(prefix) for prefix in self._prefixes if prefix)
        """Whether kernels read every row's prefix where it lies: there is no table of others, and no recorded step."""
        if table is None and self.has_kernels and (device := template[0].device).type == "cuda":
            self._table = PrefixTable(self._prefixes, device, None if room is None else room.columns_LRHJ)

    @classmethod
    def joined(cls, cache_by_start: Mapping[int, RaggedCache], num_rows: int, room: Room) -> RaggedCache:
        """The rows of several caches as one of ``num_rows``, each from its start on, dummies elsewhere; nothing is copied.

        Their tails must lie in ``room`` likewise, and none may have lent slots. They are not told what the joined cache
        reads: to them it is as good as rewound.
        """
        assert not any(cache._lent_rows for cache in cache_by_start.values()), "lent slots stay in one cache"
        prefixes: list[Prefix | None] = [None] * num_rows
        context_R, tail_R = [0] * num_rows, [0] * num_rows
        for start, cache in cache_by_start.items():
            rows = slice(start, start + cache.num_rows)
            prefixes[rows], context_R[rows] = cache._prefixes, cache._tail_position_R
            tail_R[rows] = cache._tail_length_R
        tables = {start: cache._table for start, cache in cache_by_start.items() if cache._table is not None}
        table = (
            PrefixTable.joined(tables, prefixes, room.columns_LRHJ)
            if len(tables) == len(cache_by_start)
            else None
        )
        joined = cls(prefixes, context_R, room.tail_k_L[0].shape[2], room, table)
        joined.count_read(tail_R)
        return joined

    @property
    def num_rows(self) -> int:
        """Rows, dummies included."""
        return len(self._prefixes)

    @property
    def tail_length_R(self) -> tuple[int, ...]:
        """Tokens in each row's tail."""
        return self._tail_length_R

    @property
    def next_position_R(self) -> tuple[int, ...]:
        """Where each row's next token stands: by default the true length of all it has read, however few slots are left."""
        return _sums(self._tail_position_R, self._num_read_R)

    def append(
        self, layer_index: int, k_RHTD: Tensor, v_RHTD: Tensor, num_new_R: tuple[int, ...]
    ) -> RaggedLayer:
        """Write each row's first ``num_new_R[r]`` new keys and values of one layer behind its tail.

        The tails' lengths change only with `advance`, once every layer has been written.
        """
        arrival = self._arrival_of(num_new_R, k_RHTD.shape[2], k_RHTD.device)
        tails = (self._tail_k[layer_index], self._tail_v[layer_index])
        write_tails(
            tails, (k_RHTD, v_RHTD), arrival.row_N, arrival.token_N, arrival.place_N, arrival.lengths_2R
        )
        device_rows = None
        if self._table is not None:
            self._table.follow(self._prefixes)
            device_rows = self._table.layer(layer_index, arrival.lengths_2R)
        return RaggedLayer(
            self._prefixes_of(layer_index), *tails, self._tail_length_R, num_new_R, device_rows
        )

    def append_one_each(
        self, layer_index: int, k_RH1D: Tensor, v_RH1D: Tensor, arrival: OneEach
    ) -> RaggedLayer:
        """Write one new key and value of one layer behind every row's tail; nothing waits for the device.

        A row that reads no token may get one all the same, behind its end, where nobody looks. A prefix table must be up to
        date (`follow`); with one, the lengths of the layer that is returned are bounds.
        """
        tails = (self._tail_k[layer_index], self._tail_v[layer_index])
        write_tails(tails, (k_RH1D, v_RH1D), arrival.row_R, 0, arrival.place_R, arrival.lengths_2R)
        prefix_R = self._prefixes_of(layer_index)
        if self._table is None:
            # The reference wants numbers, and this waits for them: only where nothing is recorded, on the CPU.
            tail_start_R, num_new_R = (tuple(counts) for counts in arrival.lengths_2R.tolist())
            return RaggedLayer(prefix_R, *tails, tail_start_R, num_new_R)
        # A recorded grid must reach as far as any repetition needs; kernels read the true lengths on the device.
        longest_R = tuple(
            0 if row in self._lent_rows else self.tail_capacity - 1 for row in range(self.num_rows)
        )
        device_rows = self._table.layer(layer_index, arrival.lengths_2R, arrival.most_slots)
        return RaggedLayer(prefix_R, *tails, longest_R, (1,) * self.num_rows, device_rows)

    def follow(self) -> None:
        """Bring the prefix table up to date with lent slots, as `append_one_each` needs it."""
        if self._table is not None:
            self._table.follow(self._prefixes)

    def count_read(self, num_read_R: Sequence[int]) -> None:
        """Count tokens that `append_one_each` has written; a row with lent slots keeps an empty tail."""
        grown_R = [0 if row in self._lent_rows else count for row, count in enumerate(num_read_R)]
        self._tail_length_R = _sums(self._tail_length_R, grown_R)
        self._num_read_R = _sums(self._num_read_R, num_read_R)

    @property
    def group_key(self) -> Hashable:
        """What the launches of a recorded step depend on besides sizes: which rows are stored in which form."""
        return () if self._table is None else self._table.group_key

    def is_in(self, room: Room | None) -> bool:
        """Whether the tails live in this very ``room``."""
        return room is not None and self._room is room

    @property
    def lent_rows(self) -> frozenset[int]:
        """Rows whose slots are lent, by index."""
        return frozenset(self._lent_rows)

    @property
    def most_slots(self) -> int:
        """Slots of the longest prefix of any row, layer and head."""
        return max(max(layer.num_slots_H) for prefix in self._prefixes if prefix for layer in prefix)

    def newest_of(self, row: int) -> tuple[Tensor, Tensor]:
        """Key and value (L, H, D) of the token that a row with lent slots has just read: the only one of its tail."""
        k_LHD, v_LHD = (
            torch.stack([tail[row, :, 0] for tail in tails]) for tails in (self._tail_k, self._tail_v)
        )
        return k_LHD, v_LHD

    def _prefixes_of(self, layer_index: int) -> tuple[HeldLayer | None, ...]:
        return tuple(None if prefix is None else prefix[layer_index] for prefix in self._prefixes)

    def _arrival_of(self, num_new_R: tuple[int, ...], num_tokens: int, device: torch.device) -> Arrival:
        # Every layer of an extend asks for the same.
        asked = (self._tail_length_R, num_new_R, num_tokens)
        if self._arrival is None or self._arrival[:3] != asked:
            self._arrival = Arrival.of(*asked, device)
        return self._arrival

    def advance(self, num_new_R: tuple[int, ...]) -> None:
        """Count the tokens just appended to every layer as part of the tails."""
        self._tail_length_R = _sums(self._tail_length_R, num_new_R)
        self._num_read_R = _sums(self._num_read_R, num_new_R)

    def rewind(self, tail_length_R: Sequence[int | None]) -> None:
        """Forget what came after these tail lengths, each between 0 and the current one; None leaves a row as it is.

        Raises:
            ValueError: a length the row has not reached, or a row with lent slots, which only `restore` takes back.
        """
        # All rows are checked before any is changed.
        for row, (wanted, current) in enumerate(zip(tail_length_R, self._tail_length_R, strict=True)):
            if wanted is None:
                continue
            if row in self._lent_rows | self._exchanged_rows:
                raise ValueError(f"row {row} has lent slots and cannot be rewound; restore it")
            if not 0 <= wanted <= current:
                raise ValueError(f"row {row} has {current} tail tokens and cannot be rewound to {wanted}")
        self._tail_length_R, self._num_read_R = (
            tuple(
                now if wanted is None else wanted for now, wanted in zip(counts, tail_length_R, strict=True)
            )
            for counts in (self._tail_length_R, self._num_read_R)
        )

    def prefix_of(self, row: int) -> Prefix:
        """What stands before a row's tail; the row must not be a dummy."""
        prefix = self._prefixes[row]
        assert prefix is not None, f"row {row} is a dummy"
        return prefix

    def tail_of(self, row: int) -> tuple[Tensor, Tensor]:
        """Copies of a row's tail, keys and values (L, H, T, D) in the order they were read."""
        num_tokens = self._tail_length_R[row]
        k_LHTD, v_LHTD = (
            torch.stack([tail[row, :, :num_tokens] for tail in tails])
            for tails in (self._tail_k, self._tail_v)
        )
        return k_LHTD, v_LHTD

    def lend_slots(self, row: int, slots: Prefix) -> None:
        """Let a row attend to ``slots``, which may change, in place of its prefix and its tail, which is empty then."""
        self._prefixes[row] = slots
        self._lent_rows.add(row)
        self._tail_length_R = _with(self._tail_length_R, row, 0)

    def exchange(self, row: int, prefix: Prefix) -> None:
        """Put ``prefix`` in the place of a row's prefix and tail; new tokens begin its tail anew. `restore` undoes it."""
        self._prefixes[row] = prefix
        self._exchanged_rows.add(row)
        self._tail_length_R = _with(self._tail_length_R, row, 0)

    def forget_newest(self, row: int) -> None:
        """Take the newest token off a row's tail (at least one) but not out of the count of those it has read."""
        self._tail_length_R = _with(self._tail_length_R, row, self._tail_length_R[row] - 1)

    def restore(self, row: int, prefix: Prefix, k_LHTD: Tensor, v_LHTD: Tensor) -> None:
        """Undo `lend_slots`, `exchange` and all that came after: ``prefix`` and this tail are the row's again."""
        num_tokens = k_LHTD.shape[2]
        for layer_index, (tail_k, tail_v) in enumerate(zip(self._tail_k, self._tail_v, strict=True)):
            tail_k[row, :, :num_tokens] = k_LHTD[layer_index]
            tail_v[row, :, :num_tokens] = v_LHTD[layer_index]
        self._prefixes[row] = prefix
        self._lent_rows.discard(row)
        self._exchanged_rows.discard(row)
        self._tail_length_R = _with(self._tail_length_R, row, num_tokens)
        self._num_read_R = _with(self._num_read_R, row, num_tokens)

    @property
    def tail_capacity(self) -> int:
        """Tokens each row's tail has room for."""
        return self._tail_k[0].shape[2]

    @property
    def prefix_bytes(self) -> int:
        """Bytes of the distinct storages behind all prefixes: a shared prefix counts once."""
        layers = [layer for prefix in self._prefixes if prefix is not None for layer in prefix]
        return storage_bytes(tensor for layer in layers for tensor in layer.tensors())

    def tail_bytes_of(self, num_tokens: int) -> int:
        """Bytes that ``num_tokens`` of one row's tail take, over all layers."""
        return num_tokens * self._tail_token_bytes

    def check_integrity(self) -> None:
        """Raise ValueError unless every prefix is sound and every tail fits its room."""
        if any(length > self.tail_capacity for length in self._tail_length_R):
            raise ValueError(
                f"tail lengths {self._tail_length_R} exceed the reserved {self.tail_capacity} tokens"
            )
        row_of = {id(prefix): row for row, prefix in enumerate(self._prefixes) if prefix is not None}
        for row in row_of.values():  # one of all that share a prefix
            for layer in self.prefix_of(row):
                layer.check_integrity(is_in_order=row not in self._lent_rows)


def _sums(count_R: Sequence[int], more_R: Sequence[int]) -> tuple[int, ...]:
    return tuple(count + more for count, more in zip(count_R, more_R, strict=True))


def _with(count_R: tuple[int, ...], row: int, count: int) -> tuple[int, ...]:
    return (*count_R[:row], count, *count_R[row + 1 :])

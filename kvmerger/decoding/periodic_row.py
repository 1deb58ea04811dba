"""One row whose policy cuts its slots down once in a while: when a cut is due, and how the row starts again.

Between two cuts the row's tail grows as any other's, so nothing of it has to be told apart from rows without a rule; only
where a ranking reads queries, those of the newest tokens are kept. A cut puts prefix and tail together, layer by layer, and
what stays becomes the row's own prefix. When cuts are due the host knows beforehand, by counting.

Shapes: L layers, H KV heads, Q query heads, N slots held per head, T tail tokens, W newest queries, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.packed_layer import HeldLayer
from kvmerger.cache.slot_table import storage_bytes
from kvmerger.decoding.decode_rule import DecodeRuleError
from kvmerger.decoding.periodic_rule import HeldSlots, NewQueries, PeriodicRule
from kvmerger.decoding.ragged_cache import RaggedCache
from kvmerger.generation import MemoryPoint
from kvmerger.kernels.dispatch import highest_places, take_slots


class PeriodicRow:
    """Keeps one row of a `RaggedCache` under a periodic rule; the batch calls `settle` after each token the row reads."""

    has_own_slots = True
    """Nothing but a cut changes its shape, and cuts come between steps."""

    def __init__(
        self,
        rule: PeriodicRule,
        cache: RaggedCache,
        row: int,
        tail_queries_L: Sequence[NewQueries],
        rotary: nn.Module | None = None,
    ) -> None:
        """Take over ``row``, which has just read its tail and nothing else; `restart` makes it ready to answer.

        ``tail_queries_L``: of the tail's newest tokens, at most as many as the rule asks for; empty where it asks for none.
        ``rotary``: the model's rotary embedding, for rules that turn queries.

        Raises:
            DecodeRuleError: heads of a layer hold unlike numbers of slots.
        """
        self.rule = rule
        self.has_acted = False
        """Whether a slot ever left, in the row's own answer or in one forced on it."""
        self._cache, self._row, self._rotary = cache, row, rotary
        self._prefix = cache.prefix_of(row)
        if not all(layer.is_uniform for layer in self._prefix):
            raise DecodeRuleError("a periodic rule needs as many slots in every head of a layer")
        self._target_L = [
            layer.num_slots_H[0] if rule.target is None else rule.target for layer in self._prefix
        ]
        self.num_nan = torch.zeros((), dtype=torch.int64, device=self._prefix[0].device)
        """Layers, at all cuts of all answers, that had a score which is NaN; on the device."""
        self._tail_LHTD = cache.tail_of(row)
        self._tail_queries_L = list(tail_queries_L)
        self._restarts = 0
        self._reset()

    @property
    def counters(self) -> dict[str, float]:
        """What happened since the last `restart`, over all layers and heads, and that the prompt was not streamed."""
        heads_L = [layer.num_heads for layer in self._prefix]
        most = sum(
            heads * (target + self.rule.every) for heads, target in zip(heads_L, self._target_L, strict=True)
        )
        return {
            "num_decode_evicted": float(self._num_evicted),
            "num_decode_cuts": float(self._num_cuts),
            "num_decode_slots": float(most),
            "is_prompt_streamed": 0.0,
        }

    @property
    def token(self) -> object:
        """Equal as long as what a recorded step writes for this row lies where it lay."""
        return self._restarts

    @property
    def steps_until_cut(self) -> int:
        """Tokens that the row reads before the next cut."""
        num_tail = self._cache.tail_length_R[self._row]
        longest = max(
            layer.num_slots_H[0] - target
            for layer, target in zip(self._cache.prefix_of(self._row), self._target_L, strict=True)
        )
        return max(self.rule.every - longest - num_tail, self.rule.num_queries - self._num_seen)

    def restart(self) -> None:
        """Put the row back to where it had just read its tail."""
        self._cache.restore(self._row, self._prefix, *self._tail_LHTD)
        self._reset()
        self._cut_if_due()

    def settle(self, queries_L: Sequence[NewQueries]) -> None:
        """Act on the one token the row has just read; ``queries_L`` are its own, layer by layer."""
        if self._queries_LQXD is not None:
            self._note([queries.q_QTD for queries in queries_L], None)
        self.count_settled(1)

    def settle_on_device(self, queries_L: Sequence[NewQueries], is_read: Tensor) -> None:
        """Note the queries of the token the row has just read, if it has (bool of no dimension): work of fixed shapes."""
        if self._queries_LQXD is not None:
            self._note([queries.q_QTD for queries in queries_L], is_read)

    def count_settled(self, num_read: int) -> None:
        """Note that the row has read ``num_read`` tokens, and cut where that is due; the cache has counted them."""
        self._num_read += num_read
        self._num_seen += num_read
        self._cut_if_due()

    def memory_points(self, num_new_tokens: int) -> list[MemoryPoint]:
        """What was held at each step of the answer; where a cut came, what was held before it."""
        points, stretch = [], 0
        for step in range(1, num_new_tokens + 1):
            num_read = step - 1
            while stretch + 1 < len(self._stretches) and self._stretches[stretch + 1][0] < num_read:
                stretch += 1
            begin, held_bytes, reserved_bytes, num_tail = self._stretches[stretch]
            tail_bytes = self._cache.tail_bytes_of(num_tail + num_read - begin)
            points.append(MemoryPoint(step, "decode", held_bytes + tail_bytes, reserved_bytes))
        return points

    def _reset(self) -> None:
        self._restarts += 1
        num_tail = self._tail_LHTD[0].shape[2]
        self._num_evicted = self._num_cuts = self._num_read = 0
        self._num_seen = num_tail
        self._queries_LQXD, self._place = self._first_queries()
        self._stretches: list[tuple[int, int, int, int]] = []
        """From which token read on, bytes held and reserved but for the tail, and the tail's tokens then."""
        self._note_bytes()

    # --- queries of the newest tokens, in a ring with a spare place at its end for what was not read

    def _first_queries(self) -> tuple[Tensor | None, Tensor]:
        """The ring after the tail, and the place of the next query: int64 on the device."""
        num_places, device = self.rule.num_queries, self.num_nan.device
        if not num_places:
            return None, torch.zeros((), dtype=torch.int64, device=device)
        q_LQTD = torch.stack([queries.q_QTD for queries in self._tail_queries_L])
        ring_LQXD = q_LQTD.new_zeros(*q_LQTD.shape[:2], num_places + 1, q_LQTD.shape[3])
        ring_LQXD[:, :, : q_LQTD.shape[2]] = q_LQTD
        place = torch.tensor(q_LQTD.shape[2] % num_places, device=device)
        return ring_LQXD, place

    def _note(self, q_L: Sequence[Tensor], is_read: Tensor | None) -> None:
        assert self._queries_LQXD is not None, "the rule reads queries"
        num_places = self.rule.num_queries
        place = self._place if is_read is None else torch.where(is_read, self._place, num_places)
        self._queries_LQXD.index_copy_(2, place[None], torch.stack(list(q_L)))
        # In place: a recorded step goes on counting in this very tensor.
        self._place += 1 if is_read is None else is_read
        self._place %= num_places

    # --- cuts

    def _cut_if_due(self) -> None:
        if self.steps_until_cut <= 0:
            self._cut()

    def _cut(self) -> None:
        prefix, (k_LHTD, v_LHTD) = self._cache.prefix_of(self._row), self._cache.tail_of(self._row)
        first_position = self._cache.next_position_R[self._row] - k_LHTD.shape[2]
        queries_LQWD = None
        if self._queries_LQXD is not None:
            # Oldest first: the next place is that of the oldest.
            order_W = (self._place + torch.arange(self.rule.num_queries, device=self._place.device)) % (
                self.rule.num_queries
            )
            queries_LQWD = self._queries_LQXD.index_select(2, order_W)
        kept: list[HeldLayer] = []
        for index, layer in enumerate(prefix):
            joined = _joined(layer.plain(), k_LHTD[index], v_LHTD[index], first_position)
            held = HeldSlots(
                joined.k_HND,
                joined.v_HND,
                joined.position_HS,
                None if queries_LQWD is None else queries_LQWD[index],
                self._tail_queries_L[index].scaling if self._tail_queries_L else 1.0,
                index,
                len(prefix),
                self._num_cuts,
                self._rotary,
            )
            kept.append(self._kept(joined, held, self._target_L[index]))
        self._cache.exchange(self._row, tuple(kept))
        self._num_cuts += 1
        self.has_acted = True
        self._note_bytes()

    def _kept(self, layer: LayerCache, held: HeldSlots, target: int) -> LayerCache:
        num_tokens = layer.num_slots_H[0]
        if num_tokens <= target:
            return layer
        scores_HN = self.rule.scores(held, target)
        self.num_nan += scores_HN.isnan().any()
        num_slots_H = (target,) * layer.num_heads
        self._num_evicted += layer.num_heads * (num_tokens - target)
        return take_slots(layer, highest_places(scores_HN, num_slots_H), num_slots_H)

    # --- bytes

    def _note_bytes(self) -> None:
        queries = [] if self._queries_LQXD is None else [self._queries_LQXD]
        held = [*_tensors(self._cache.prefix_of(self._row)), *queries]
        to_start_again = [
            *_tensors(self._prefix),
            *self._tail_LHTD,
            *(queries.q_QTD for queries in self._tail_queries_L),
        ]
        reserved_bytes = storage_bytes([*held, *to_start_again])
        room_bytes = self._cache.tail_bytes_of(self._cache.tail_capacity)
        num_tail = self._cache.tail_length_R[self._row]
        self._stretches.append((self._num_read, storage_bytes(held), reserved_bytes + room_bytes, num_tail))


def _tensors(prefix: Sequence[HeldLayer]) -> list[Tensor]:
    return [tensor for layer in prefix for tensor in layer.tensors()]


def _joined(prefix: LayerCache, k_HTD: Tensor, v_HTD: Tensor, first_position: int) -> LayerCache:
    """A layer's prefix, as many slots in every head, and behind each head its tail."""
    num_heads, num_tail = k_HTD.shape[:2]
    position_T = torch.arange(first_position, first_position + num_tail, device=k_HTD.device)
    log_mass_S = None
    if prefix.log_mass_S is not None:
        log_mass_HS = prefix.log_mass_S.view(num_heads, -1)
        log_mass_S = torch.cat([log_mass_HS, log_mass_HS.new_zeros(num_heads, num_tail)], dim=1).flatten()
    return LayerCache(
        torch.cat([prefix.k_HND, k_HTD], dim=1).flatten(0, 1),
        torch.cat([prefix.v_HND, v_HTD], dim=1).flatten(0, 1),
        torch.cat(
            [prefix.position_HS, position_T.to(prefix.position_S.dtype).expand(num_heads, -1)], dim=1
        ).flatten(),
        tuple(count + num_tail for count in prefix.num_slots_H),
        log_mass_S,
    )

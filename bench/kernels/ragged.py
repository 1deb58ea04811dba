"""Ragged attention of one layer of a batch, against the reference and against what torch offers for the same numbers.

16 rows of an 8B model's layer: two hold the whole cache, half of the others about 50 % and half about 35 % of it, every head
another number of slots, each row in storages of its own. Rivals get all slots and tail tokens packed or padded beforehand,
which is not timed; of them flash varlen could not carry a merged slot's log mass. The floor is the larger of: keys and values
read once at the bandwidth of a copy; two products of queries and slots at the rate of a matrix product.

Predicted for an H100 (copy 3.0 TB/s, bf16 products 790 TFLOP/s), 16,384 tokens, before it was run: 538 MB, so a floor of
0.18 ms for both T = 1 and T = 64 (0.17 ms of products). T = 1: 60 to 75 % of it, 0.24-0.30 ms, and a call is launch-bound
(0.1 ms of Python and two launches) only below 4,096 tokens; the reference 10 to 20 times slower (per row and head a cast to
fp32, twice the bytes again, and launches); flash varlen within 30 % of ours, padded SDPA 3 times slower. T = 64: 0.6-0.9 ms,
because four blocks of queries read the same slots and the remainders of probabilities cost a third product.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.kernels import timing
from bench.kernels.timing import Bench, Ceilings, Measured
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.ragged_layer import RaggedLayer
from kvmerger.decoding.ragged_cache import RaggedCache
from kvmerger.kernels import dispatch
from kvmerger.kernels.reference import ragged as reference

TAIL_TOKENS = 64
FULL_ROWS = 2
RATIOS = (0.5, 0.35)
SPREAD = 0.4  # a head's share of slots is this much above or below its row's, at most
PADDING = 128  # kernels want lengths in multiples


@dataclass(frozen=True)
class Heads:
    """Of one layer: KV heads, query heads of each, head size."""

    num_heads: int = 8
    num_groups: int = 4
    head_dim: int = 128


@dataclass(frozen=True)
class Batch:
    """Queries (R, Q, T, D) and one layer, as `extend` has them."""

    q_RQTD: Tensor
    layer: RaggedLayer
    scaling: float

    def ours(self) -> Tensor:
        """Output (R, T, Q, D) by the kernel that the engine takes."""
        return dispatch.ragged_attention(self.q_RQTD, self.layer, self.scaling).out_RTQD

    def with_mass(self) -> Tensor:
        """The same, with attention mass of all rows."""
        every_row = range(len(self.layer.prefix_R))
        return dispatch.ragged_attention(self.q_RQTD, self.layer, self.scaling, every_row).out_RTQD

    def by_reference(self) -> Tensor:
        """The same by the definition."""
        return reference.ragged_attention(self.q_RQTD, self.layer, self.scaling).out_RTQD

    def visible(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every row and head: prefix slots, then its tail up to the last new token."""
        held = []
        for row, prefix in enumerate(self.layer.prefix_R):
            assert prefix is not None, "every row of this benchmark has a prefix"
            end = self.layer.tail_start_R[row] + self.layer.num_new_R[row]
            for head, (first, length) in enumerate(zip(prefix.head_starts, prefix.num_slots_H, strict=True)):
                tails = (self.layer.tail_k_RHCD[row, head, :end], self.layer.tail_v_RHCD[row, head, :end])
                slots = (prefix.k_SD[first : first + length], prefix.v_SD[first : first + length])
                k_ND, v_ND = (torch.cat(parts) for parts in zip(slots, tails, strict=True))
                held.append((k_ND, v_ND))
        return held


def measure_ragged(
    heads: Heads,
    num_rows: int,
    num_slots: int,
    num_tokens: int,
    ceilings: Ceilings,
    deadline_s: float,
    report: Callable[[Measured], None],
) -> None:
    """Report all implementations at ``num_tokens`` new tokens a row."""
    batch = make_batch(heads, num_rows, num_slots, num_tokens)
    bench = Bench(
        f"ragged attention, T={num_tokens}",
        f"{num_rows} rows of {num_slots}",
        floor_s(batch, ceilings),
        deadline_s,
        report,
    )
    expected_RTQD = batch.by_reference()
    ours = bench.run("Triton, ours", lambda: batch.ours, expected=expected_RTQD)
    bench.run("Triton, ours, with mass", lambda: batch.with_mass, expected=expected_RTQD)

    def rival(name: str, make: Callable[[], Callable[[], Tensor]]) -> None:
        bench.run(
            name,
            make,
            expected=expected_RTQD,
            note=lambda s: f"{s / ours.device_s:.2f} x ours" if ours.device_s else "",
        )

    rival("reference loop", lambda: batch.by_reference)
    rival("torch flash varlen, packed", lambda: flash_varlen(batch, heads))
    rival("torch SDPA, padded, mask", lambda: padded_sdpa(batch, heads))
    rival("torch flex, padded", lambda: padded_flex(batch, heads))


def make_batch(heads: Heads, num_rows: int, num_slots: int, num_tokens: int) -> Batch:
    """A batch with ragged rows behind full ones, in bf16; the same lengths each time."""
    options = {"dtype": torch.bfloat16, "device": timing.DEVICE}
    rng = random.Random(0)
    prefixes = []
    for row in range(num_rows):
        ratio = 1.0 if row < FULL_ROWS else RATIOS[row % len(RATIOS)]
        spread = 0.0 if row < FULL_ROWS else SPREAD
        lengths = tuple(
            round(num_slots * ratio * rng.uniform(1 - spread, 1 + spread)) for _ in range(heads.num_heads)
        )
        k_SD, v_SD = torch.randn(2, sum(lengths), heads.head_dim, **options).unbind()
        position_S = torch.cat([torch.arange(length) for length in lengths]).int().to(timing.DEVICE)
        # Cloned: unbind gives two views of one storage, and compression leaves each tensor in its own.
        prefixes.append((LayerCache(k_SD.clone(), v_SD.clone(), position_S, lengths),))
    cache = RaggedCache(prefixes, [num_slots] * num_rows, TAIL_TOKENS + num_tokens)
    for num_new in (TAIL_TOKENS, num_tokens):
        k_RHTD, v_RHTD = torch.randn(2, num_rows, heads.num_heads, num_new, heads.head_dim, **options)
        layer = cache.append(0, k_RHTD, v_RHTD, (num_new,) * num_rows)
        cache.advance((num_new,) * num_rows)
    num_query_heads = heads.num_heads * heads.num_groups
    q_RTQD = torch.randn(num_rows, num_tokens, num_query_heads, heads.head_dim, **options)
    return Batch(q_RTQD.transpose(1, 2), layer, heads.head_dim**-0.5)


def floor_s(batch: Batch, ceilings: Ceilings) -> float:
    """Seconds to read all visible keys and values once, or to do the products once."""
    num_visible = sum(
        sum(prefix.num_slots_H) + prefix.num_heads * (start + num_new)
        for prefix, start, num_new in zip(
            batch.layer.prefix_R, batch.layer.tail_start_R, batch.layer.num_new_R, strict=True
        )
        if prefix is not None
    )
    num_query_heads, num_tokens, head_dim = batch.q_RQTD.shape[1:]
    num_queries = num_query_heads // batch.layer.tail_k_RHCD.shape[1] * num_tokens
    slot_bytes = 2 * head_dim * batch.q_RQTD.element_size()
    # Two products, each a multiplication and an addition.
    return ceilings.floor_s(num_visible * slot_bytes, 4 * num_visible * head_dim * num_queries)


def flash_varlen(batch: Batch, heads: Heads) -> Callable[[], Tensor]:
    """Torch's flash kernel for packed sequences, a row's head each; causal from the last query and key backwards."""
    held = batch.visible()
    k_N1D, v_N1D = (torch.cat(each)[:, None] for each in zip(*held, strict=True))
    q_PGD = _by_row_and_head(batch, heads).transpose(1, 2).reshape(-1, heads.num_groups, heads.head_dim)
    num_tokens, lengths = batch.q_RQTD.shape[2], [len(k_ND) for k_ND, _ in held]
    ends_q, ends_k = (
        F.pad(torch.tensor(each).cumsum(0), (1, 0)).int().to(timing.DEVICE)
        for each in ([num_tokens] * len(held), lengths)
    )

    def call() -> Tensor:
        # Private: torch's public attention takes no packed sequences.
        attend = torch.ops.aten._flash_attention_forward
        out_PGD = attend(
            q_PGD,
            k_N1D,
            v_N1D,
            ends_q,
            ends_k,
            num_tokens,
            max(lengths),
            0.0,
            True,
            False,
            scale=batch.scaling,
        )[0]
        return _as_rows(out_PGD.view(len(held), num_tokens, heads.num_groups, -1), heads)

    return call


def padded_sdpa(batch: Batch, heads: Heads) -> Callable[[], Tensor]:
    """`scaled_dot_product_attention` over padded slots and a mask; a row's head each, its group as more queries."""
    q_P1XD, k_P1ND, v_P1ND, last_seen_PX = _padded(batch, heads)
    column_N = torch.arange(k_P1ND.shape[2], device=q_P1XD.device)
    # Added to the scores, not boolean: torch would make this of a boolean one in every call.
    mask_PXN = torch.zeros(*last_seen_PX.shape, len(column_N), dtype=q_P1XD.dtype, device=q_P1XD.device)
    mask_PXN.masked_fill_(column_N > last_seen_PX[:, :, None], float("-inf"))

    def call() -> Tensor:
        out_P1XD = F.scaled_dot_product_attention(
            q_P1XD, k_P1ND, v_P1ND, attn_mask=mask_PXN[:, None], scale=batch.scaling
        )
        return _as_rows(
            out_P1XD.view(len(out_P1XD), heads.num_groups, -1, heads.head_dim).transpose(1, 2), heads
        )

    return call


def padded_flex(batch: Batch, heads: Heads) -> Callable[[], Tensor]:
    """`flex_attention`, compiled, over padded slots and a block mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q_P1XD, k_P1ND, v_P1ND, last_seen_PX = _padded(batch, heads)
    block_mask = create_block_mask(
        lambda p, _, x, n: n <= last_seen_PX[p, x],
        B=len(q_P1XD),
        H=None,
        Q_LEN=q_P1XD.shape[2],
        KV_LEN=k_P1ND.shape[2],
        device=timing.DEVICE,
    )
    attend = torch.compile(flex_attention, dynamic=False)  # compiled for these shapes alone: its best case

    def call() -> Tensor:
        out_P1XD = attend(q_P1XD, k_P1ND, v_P1ND, block_mask=block_mask, scale=batch.scaling)
        return _as_rows(
            out_P1XD.view(len(out_P1XD), heads.num_groups, -1, heads.head_dim).transpose(1, 2), heads
        )

    return call


def _padded(batch: Batch, heads: Heads) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries (P, 1, X, D), keys and values (P, 1, N, D), each query's last column (P, X); P is a row's KV head."""
    held, num_tokens = batch.visible(), batch.q_RQTD.shape[2]
    longest = max(len(k_ND) for k_ND, _ in held)
    room = -(-longest // PADDING) * PADDING
    k_PND, v_PND = (
        torch.stack([F.pad(tensor, (0, 0, 0, room - len(tensor))) for tensor in each])
        for each in zip(*held, strict=True)
    )
    q_P1XD = _by_row_and_head(batch, heads).reshape(len(held), 1, -1, heads.head_dim)
    length_P = torch.tensor([len(k_ND) for k_ND, _ in held], device=q_P1XD.device)
    token_X = torch.arange(num_tokens, device=q_P1XD.device).repeat(heads.num_groups)
    return q_P1XD, k_PND[:, None], v_PND[:, None], length_P[:, None] - num_tokens + token_X


def _by_row_and_head(batch: Batch, heads: Heads) -> Tensor:
    """Queries (P, G, T, D)."""
    return batch.q_RQTD.unflatten(1, (heads.num_heads, heads.num_groups)).flatten(0, 1)


def _as_rows(out_PTGD: Tensor, heads: Heads) -> Tensor:
    """Output (R, T, Q, D) as ours has it."""
    return out_PTGD.unflatten(0, (-1, heads.num_heads)).transpose(1, 2).flatten(2, 3)

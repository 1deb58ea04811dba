"""Scores of packed keys: codes go into the dot, scales and offsets into the queries before it or the scores behind it.

Slots are the rows of every dot and queries its columns, so that few queries fill few columns. A query that the dtype cannot
hold stands in two neighbouring columns, rounded and what rounding left, whose scores are added up.

Shapes: S slots of a block, X queries of a KV head, U units of a tile; tiles go by block, plane and parity.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvmerger.kernels.programs.packed_codes import (
    channels,
    fetch_group,
    load_high,
    load_units,
    numbers,
    opened,
)


@triton.jit
def halved(x, dtype: tl.constexpr):
    """``x`` in ``dtype``, and what that leaves of it, in ``dtype`` too."""
    if dtype == tl.bfloat16:
        # Cut off, not rounded: converting is slow, and the rest holds what is cut off as well.
        bits = x.to(tl.int32, bitcast=True)
        rest = x - (bits & -65536).to(tl.float32, bitcast=True)
        return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True), rest.to(dtype)
    else:
        return x.to(dtype), (x - x.to(dtype).to(tl.float32)).to(dtype)


@triton.jit
def twins(x_NX, dtype: tl.constexpr, IS_TWIN: tl.constexpr):
    """``x_NX`` as a dot takes it; IS_TWIN: each column in two, of which the second has what the first leaves."""
    if IS_TWIN:
        first_NX, rest_NX = halved(x_NX, dtype)
        return tl.reshape(tl.join(first_NX, rest_NX), (x_NX.shape[0], 2 * x_NX.shape[1]))
    else:
        return x_NX.to(dtype)


@triton.jit
def summed(x_NX, IS_TWIN: tl.constexpr):
    """A dot's result with `twins` added up."""
    if IS_TWIN:
        return tl.sum(tl.reshape(x_NX, (x_NX.shape[0], x_NX.shape[1] // 2, 2)), axis=2)
    else:
        return x_NX


@triton.jit
def load_queries(q_X, is_query_X, L: tl.constexpr):
    """The queries at the pointers ``q_X``, as tiles (U, X) in fp32."""
    q = ()
    for block in tl.static_range(L.num_blocks):
        for plane in tl.static_range(L.planes):
            for parity in tl.static_range(2):
                channel_U, is_channel_U = channels(block, plane, parity, L)
                is_held_UX = is_channel_U[:, None] & is_query_X[None, :]
                tile_UX = tl.load(q_X[None, :] + channel_U[:, None], mask=is_held_UX, other=0.0)
                q = q + (tile_UX.to(tl.float32),)
    return q


@triton.jit
def rotated(tiles, dtype: tl.constexpr, IS_TWIN: tl.constexpr, L: tl.constexpr):
    """Tiles (U, X) times the orthonormal Hadamard matrix: within a tile by a dot, between tiles by sums and differences."""
    i_U = tl.arange(0, L.block_units)
    odd_UU = i_U[:, None] & i_U[None, :]
    odd_UU = odd_UU ^ (odd_UU >> 4)
    odd_UU = odd_UU ^ (odd_UU >> 2)
    odd_UU = odd_UU ^ (odd_UU >> 1)
    sign_UU = (1 - 2 * (odd_UU & 1)).to(tl.float32).to(dtype)
    # Padding would be turned into numbers.
    is_channel_U1 = (i_U < L.num_units)[:, None] | (L.num_blocks > 1)
    turned = ()
    for index in tl.static_range(len(tiles)):
        tile_UX = tl.dot(sign_UU, twins(tiles[index], dtype, IS_TWIN), input_precision="ieee")
        tile_UX = summed(tile_UX, IS_TWIN) * L.head_dim**-0.5
        turned = turned + (tl.where(is_channel_U1, tile_UX, 0.0),)
    # The index of a tile has the channel's other bits: parity, then plane and block. Two tiles differ in one of them.
    for bit in tl.static_range(8):
        if 2**bit < len(tiles):
            mixed = ()
            for index in tl.static_range(len(tiles)):
                if index // 2**bit % 2 == 1:
                    mixed = mixed + (turned[index - 2**bit] - turned[index],)
                else:
                    mixed = mixed + (turned[index] + turned[index + 2**bit],)
            turned = mixed
    return turned


@triton.jit
def fold_queries(q, dtype: tl.constexpr, IS_TWIN: tl.constexpr, K: tl.constexpr):
    """What every block of slots is multiplied by: the dots' operands, and for each scale of a slot the sum of queries (X).

    Where scales are a channel's, they change from block to block and queries stay as they are.
    """
    operands, sums = (), ()
    if K.per == "channel":
        operands = q
    else:
        for index in tl.static_range(len(q)):
            operands = operands + (twins(q[index], dtype, IS_TWIN),)
        if K.has_offset or K.bias != 0:
            for scale in tl.static_range(K.num_scales):
                sum_X = tl.zeros([q[0].shape[1]], dtype=tl.float32)
                for index in tl.static_range(len(q)):
                    if K.first_scales[index // 2] <= scale and scale < K.past_scales[index // 2]:
                        sum_X += tl.sum(_of_scale(q[index], index, scale, K), axis=0)
                sums = sums + (sum_X,)
    return operands, sums


@triton.jit
def _of_scale(tile_UX, index: tl.constexpr, scale: tl.constexpr, K: tl.constexpr):
    """A tile with zeros in the channels that have another scale."""
    if K.first_scales[index // 2] + 1 == K.past_scales[index // 2]:
        return tile_UX
    else:
        channel_U, _ = channels(index // 2 // K.planes, index // 2 % K.planes, index % 2, K)
        return tl.where((channel_U // K.group == scale)[:, None], tile_UX, 0.0).to(tile_UX.dtype)


@triton.jit
def scores(
    operands, sums, keys, fetched, start, end, s_S,
    X: tl.constexpr, dtype: tl.constexpr, IS_TWIN: tl.constexpr, WHOLE_GROUPS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Products (S, X) of queries and the block of slots ``s_S`` from ``start`` on, without the head's own scale.

    ``keys`` are the addresses of codes, scales and offsets, and a pointer to points; ``fetched`` the block's scales. Behind
    ``end`` the last slot stands again: nothing has to be masked but what its rows are used for.
    """
    if K.per == "channel":
        if WHOLE_GROUPS:
            return _by_whole_groups(operands, keys, fetched, start, end, s_S, X, dtype, IS_TWIN, K)
        else:
            return _by_any_groups(operands, keys, start, end, s_S, X, dtype, IS_TWIN, K)
    elif K.per == "block":
        score_SX = _by_blocks(operands, keys, fetched, s_S, X, dtype, IS_TWIN, K)
        for scale in tl.static_range(len(sums)):
            _, shift_S = opened(fetched, scale, K)
            score_SX += shift_S[:, None] * sums[scale][None, :]
        return score_SX
    else:
        score_SX = _products(operands, keys, s_S, X, dtype, IS_TWIN, K)
        if K.per == "slot":
            scale_S, shift_S = opened(fetched, 0, K)
            score_SX *= scale_S[:, None]
            if len(sums) > 0:
                score_SX += shift_S[:, None] * sums[0][None, :]
        elif len(sums) > 0:
            score_SX -= K.bias * sums[0][None, :]
        return score_SX


@triton.jit
def _products(
    operands, keys, s_S,
    X: tl.constexpr, dtype: tl.constexpr, IS_TWIN: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Queries times unscaled keys (S, X)."""
    product_SX = tl.zeros([s_S.shape[0], X * (2 if IS_TWIN else 1)], dtype=tl.float32)
    for block in tl.static_range(K.num_blocks):
        u_1U = block * K.block_units + tl.arange(0, K.block_units)[None, :]
        unit_SU = load_units(keys[0], s_S[:, None], u_1U, K)
        high_SU = load_high(keys[0], s_S[:, None], u_1U, K)
        for parity in tl.static_range(2):
            for plane in tl.static_range(K.planes):
                for term in tl.static_range(K.terms):
                    key_SU = numbers(unit_SU, high_SU, keys[3], term, plane, parity, dtype, K)
                    query_UX = operands[(block * K.planes + plane) * 2 + parity]
                    product_SX = tl.dot(key_SU, query_UX, product_SX, input_precision="ieee")
    return summed(product_SX, IS_TWIN)


@triton.jit
def _by_blocks(
    operands, keys, fetched, s_S,
    X: tl.constexpr, dtype: tl.constexpr, IS_TWIN: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Queries times keys (S, X) whose channels have a scale in groups: each group's product is scaled by itself."""
    score_SX = tl.zeros([s_S.shape[0], X], dtype=tl.float32)
    for block in tl.static_range(K.num_blocks):
        u_1U = block * K.block_units + tl.arange(0, K.block_units)[None, :]
        unit_SU = load_units(keys[0], s_S[:, None], u_1U, K)
        high_SU = load_high(keys[0], s_S[:, None], u_1U, K)
        for plane in tl.static_range(K.planes):
            for scale in tl.static_range(
                K.first_scales[block * K.planes + plane], K.past_scales[block * K.planes + plane]
            ):
                product_SX = tl.zeros([s_S.shape[0], X * (2 if IS_TWIN else 1)], dtype=tl.float32)
                for parity in tl.static_range(2):
                    query_UX = _of_scale(
                        operands[(block * K.planes + plane) * 2 + parity],
                        (block * K.planes + plane) * 2 + parity,
                        scale,
                        K,
                    )
                    for term in tl.static_range(K.terms):
                        key_SU = numbers(unit_SU, high_SU, keys[3], term, plane, parity, dtype, K)
                        product_SX = tl.dot(key_SU, query_UX, product_SX, input_precision="ieee")
                scale_S, _ = opened(fetched, scale, K)
                score_SX += summed(product_SX, IS_TWIN) * scale_S[:, None]
    return score_SX


@triton.jit
def _of_group(
    q, keys, fetched, first: tl.constexpr, s_S,
    X: tl.constexpr, dtype: tl.constexpr, IS_TWIN: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Queries times keys (S, X) of one group of slots, whose channel scales are ``fetched`` from the ``first`` on."""
    operands = ()
    shift_UX = tl.zeros_like(q[0])
    for index in tl.static_range(len(q)):
        scale_U, offset_U = opened(fetched, first + index, K)
        operands = operands + (twins(q[index] * scale_U[:, None], dtype, IS_TWIN),)
        shift_UX += q[index] * offset_U[:, None]
    score_SX = _products(operands, keys, s_S, X, dtype, IS_TWIN, K)
    if K.has_offset or K.bias != 0:
        # Over all tiles first: one sum over lanes in place of one a tile.
        score_SX += tl.sum(shift_UX, axis=0)[None, :]
    return score_SX


@triton.jit
def _by_whole_groups(
    q, keys, fetched, start, end, s_S,
    X: tl.constexpr, dtype: tl.constexpr, IS_TWIN: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The same (S, X) for a block of one group's slots, or of two or four whole groups."""
    BLOCK_S: tl.constexpr = s_S.shape[0]
    NUM_GROUPS: tl.constexpr = max(1, BLOCK_S // K.group)
    OF_GROUP: tl.constexpr = BLOCK_S // NUM_GROUPS
    parts = ()
    for index in tl.static_range(NUM_GROUPS):
        part_S = tl.minimum(start + index * OF_GROUP + tl.arange(0, OF_GROUP), end - 1)
        part_SX = _of_group(q, keys, fetched, index * len(q), part_S, X, dtype, IS_TWIN, K)
        parts = parts + (part_SX,)
    if NUM_GROUPS == 1:
        return parts[0]
    elif NUM_GROUPS == 2:
        return tl.reshape(tl.permute(tl.join(parts[0], parts[1]), (2, 0, 1)), (BLOCK_S, X))
    else:
        both = tl.join(tl.join(parts[0], parts[2]), tl.join(parts[1], parts[3]))
        return tl.reshape(tl.permute(both, (2, 3, 0, 1)), (BLOCK_S, X))


@triton.jit
def _by_any_groups(
    q, keys, start, end, s_S,
    X: tl.constexpr, dtype: tl.constexpr, IS_TWIN: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The same (S, X) however groups and blocks lie: one product of the block for every group in it."""
    score_SX = tl.zeros([s_S.shape[0], X], dtype=tl.float32)
    last = tl.minimum(start + s_S.shape[0], end) - 1
    for group in range(start // K.group, last // K.group + 1):
        fetched = fetch_group(keys[1], keys[2], group, K)
        of_group_SX = _of_group(q, keys, fetched, 0, s_S, X, dtype, IS_TWIN, K)
        score_SX = tl.where((s_S // K.group == group)[:, None], of_group_SX, score_SX)
    return score_SX

"""Attention that reads packed codes where they lie: what one program computes. Knows nothing of torch.

A program attends to one part of one row's packed prefix; `programs.ragged` puts it together with the row's tail. As there, a
program's numbers come from its own row alone. Softmax runs in fp32 over scores (`packed_keys`); scales of values go into the
probabilities before their dot, whose rounding goes into a second column, and offsets into sums of probabilities.

Shapes: R rows, M rows of one form, H KV heads, G query heads of a KV head, T tokens, X = T·G queries of a KV head, S slots
of a block, U units of a tile, D head size, P parts, J columns of the row table, W flat slots of a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvmerger.kernels.programs.packed_codes import (
    channels,
    fetch_block,
    fetch_group,
    load_high,
    load_units,
    numbers,
    opened,
)
from kvmerger.kernels.programs.packed_keys import (
    fold_queries,
    load_queries,
    rotated,
    scores,
    summed,
    twins,
)
from kvmerger.kernels.programs.table import (
    K_GLOBAL,
    K_OFFSET,
    K_SCALE,
    KEYS,
    LOG_MASS,
    NUM_COLUMNS,
    NUM_SLOTS,
    V_GLOBAL,
    V_OFFSET,
    V_SCALE,
    VALUES,
    split_slots,
)

LANES = tl.constexpr(8)  # that a dot's rows are spread over


# One argument a line, signatures would be longer than what they introduce.
# fmt: off
@triton.jit(do_not_specialize=["num_parts"])
def packed_attend_kernel(
    q_RQTD, columns_RHJ, row_M, tail_start_R, num_new_R, k_points, v_points, part_out_RHPXD, part_lse_RHPX,
    scaling, num_heads, num_groups, num_tokens, num_parts, q_stride_R, q_stride_Q, q_stride_T,
    BLOCK_X: tl.constexpr, BLOCK_S: tl.constexpr, SPLIT_SLOTS: tl.constexpr, MOST_PARTS: tl.constexpr,
    TAIL_SLOTS: tl.constexpr, IS_TWIN: tl.constexpr, WHOLE_GROUPS: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr,
):
    # fmt: on
    """One row of a form, KV head and block of queries, over one part of the prefix, behind the parts of the row's tail."""
    part, head = tl.program_id(0), tl.program_id(1) % num_heads
    row = tl.load(row_M + tl.program_id(1) // num_heads).to(tl.int64)
    head_columns = columns_RHJ + (row * num_heads + head) * NUM_COLUMNS
    num_slots, num_new = tl.load(head_columns + NUM_SLOTS).to(tl.int32), tl.load(num_new_R + row)
    part_slots = split_slots(num_slots, SPLIT_SLOTS, MOST_PARTS)
    begin, first_x = part * part_slots, tl.program_id(2) * BLOCK_X
    if (begin < num_slots) & (first_x // num_groups < num_new):
        x_X = first_x + tl.arange(0, BLOCK_X)
        token_X = x_X // num_groups
        query_head_X = head * num_groups + x_X % num_groups
        q_X = q_RQTD + row * q_stride_R + query_head_X * q_stride_Q + token_X.to(tl.int64) * q_stride_T
        acc, max_X, sum_X, shifts = _over_part(
            q_X, token_X < num_new, head_columns, begin, tl.minimum(begin + part_slots, num_slots),
            k_points, v_points, scaling, BLOCK_X, BLOCK_S, IS_TWIN, WHOLE_GROUPS, K, V,
        )  # fmt: skip
        acc = _finished(acc, shifts, head_columns, q_RQTD.dtype.element_ty, V)
        tail_parts = tl.cdiv(tl.load(tail_start_R + row) + num_new, TAIL_SLOTS)
        place_X = ((row * num_heads + head) * num_parts + tail_parts + part) * num_tokens * num_groups + x_X
        is_place_X = token_X < num_tokens
        for index in tl.static_range(len(acc)):
            channel_U, is_channel_U = channels(index // 2 // V.planes, index // 2 % V.planes, index % 2, V)
            tl.store(
                part_out_RHPXD + place_X[None, :] * V.head_dim + channel_U[:, None],
                tl.where((token_X < num_new)[None, :], acc[index] / sum_X[None, :], 0.0),
                mask=is_place_X[None, :] & is_channel_U[:, None],
            )
        lse_X = tl.where(token_X < num_new, max_X + tl.log(sum_X), float("-inf"))
        tl.store(part_lse_RHPX + place_X, lse_X, mask=is_place_X)


@triton.jit
def _over_part(
    q_X, is_query_X, head_columns, begin, end, k_points, v_points, scaling,
    BLOCK_X: tl.constexpr, BLOCK_S: tl.constexpr, IS_TWIN: tl.constexpr, WHOLE_GROUPS: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Attention over slots from ``begin`` to ``end``, at least one: tiles of sums, largest score, sum, sums for offsets."""
    dtype: tl.constexpr = q_X.dtype.element_ty
    operands, sums = folded_queries(q_X, is_query_X, dtype, IS_TWIN, K)
    keys, scaling = key_addresses(head_columns, k_points, scaling, K)
    values = (
        tl.load(head_columns + VALUES), tl.load(head_columns + V_SCALE), tl.load(head_columns + V_OFFSET), v_points
    )  # fmt: skip
    IS_HALF: tl.constexpr = dtype != tl.float32
    acc, shifts = (), ()
    for _ in tl.static_range(2 * V.planes * V.num_blocks):
        acc = acc + (tl.zeros([V.block_units, BLOCK_X * (2 if IS_HALF else 1)], dtype=tl.float32),)
    if (V.has_offset or V.bias != 0) and V.per != "channel":
        for _ in tl.static_range(V.num_scales):
            shifts = shifts + (tl.zeros([LANES, BLOCK_X], dtype=tl.float32),)
    max_X = tl.full([BLOCK_X], float("-inf"), dtype=tl.float32)
    sum_LX = tl.zeros([LANES, BLOCK_X], dtype=tl.float32)
    k_next = fetch_block(keys[1], keys[2], begin, end, BLOCK_S, WHOLE_GROUPS, K)
    v_next = fetch_block(values[1], values[2], begin, end, BLOCK_S, False, V)
    for start in range(begin, end, BLOCK_S):
        k_scales, v_scales = k_next, v_next
        # Two bytes a slot are no copy that the compiler would make ahead, so the next block's are asked for here.
        ahead = start + BLOCK_S
        k_next = fetch_block(keys[1], keys[2], ahead, end, BLOCK_S, WHOLE_GROUPS, K)
        v_next = fetch_block(values[1], values[2], ahead, end, BLOCK_S, False, V)
        if K.per != "slot":
            k_scales = fetch_block(keys[1], keys[2], start, end, BLOCK_S, WHOLE_GROUPS, K)
        if V.per != "slot":
            v_scales = fetch_block(values[1], values[2], start, end, BLOCK_S, False, V)
        s_S = tl.minimum(start + tl.arange(0, BLOCK_S), end - 1)
        score_SX = scores(
            operands, sums, keys, k_scales, start, end, s_S, BLOCK_X, dtype, IS_TWIN, WHOLE_GROUPS, K
        ) * scaling + logits(head_columns, start, end, s_S)[:, None]  # fmt: skip
        new_max_X = tl.maximum(max_X, tl.max(score_SX, axis=0))
        # A log mass may be -inf, and -inf - -inf is no number.
        base_X = tl.where(new_max_X == float("-inf"), 0.0, new_max_X)
        prob_SX = tl.exp(score_SX - base_X[None, :])
        decay_X = tl.exp(max_X - base_X)
        max_X = new_max_X
        sum_LX = sum_LX * decay_X[None, :] + lane_sums(prob_SX)
        acc, shifts = _take_in(
            acc, shifts, prob_SX, decay_X, values, v_scales, start, end, s_S, BLOCK_X, dtype, IS_HALF, V
        )
    return acc, max_X, tl.sum(sum_LX, axis=0), shifts


@triton.jit
def lane_sums(x_SX):
    """Sums of every LANES-th slot (L, X): one lane has all of their numbers, and nothing goes from lane to lane."""
    return tl.sum(tl.reshape(x_SX, (x_SX.shape[0] // LANES, LANES, x_SX.shape[1])), axis=0)


@triton.jit
def folded_queries(q_X, is_query_X, dtype: tl.constexpr, IS_TWIN: tl.constexpr, K: tl.constexpr):
    """`fold_queries` of the queries at the pointers ``q_X``, rotated if keys are."""
    q = load_queries(q_X, is_query_X, K)
    if K.is_rotated:
        # As they were loaded the dtype holds them.
        q = rotated(q, dtype, False, K)
    return fold_queries(q, dtype, IS_TWIN, K)


@triton.jit
def key_addresses(head_columns, k_points, scaling, K: tl.constexpr):
    """What `scores` reads, and ``scaling`` times the head's own scale."""
    if K.grid == "e2m1":
        scaling *= tl.load(tl.load(head_columns + K_GLOBAL).to(tl.pointer_type(tl.float32)))
    codes, scale, offset = (
        tl.load(head_columns + KEYS), tl.load(head_columns + K_SCALE), tl.load(head_columns + K_OFFSET)
    )  # fmt: skip
    return (codes, scale, offset, k_points), scaling


@triton.jit
def logits(head_columns, start, end, s_S):
    """What is added to slots' scores: their log masses; -inf behind ``end``."""
    address = tl.load(head_columns + LOG_MASS)
    log_mass_S = address.to(tl.pointer_type(tl.float32)) + s_S
    logit_S = tl.load(log_mass_S, mask=address != 0, other=0.0)
    return tl.where(start + tl.arange(0, s_S.shape[0]) < end, logit_S, float("-inf"))


@triton.jit
def _take_in(
    acc, shifts, prob_SX, decay_X, values, fetched, start, end, s_S,
    X: tl.constexpr, dtype: tl.constexpr, IS_HALF: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Take a block's values into the running sums, which decay first."""
    decayed = ()
    both_X = decay_X
    if IS_HALF:
        both_X = tl.reshape(tl.join(decay_X, decay_X), (2 * X,))
    for index in tl.static_range(len(acc)):
        decayed = decayed + (acc[index] * both_X[None, :],)
    if V.per == "channel":
        # The group of every slot, one after the other: the sums are scaled, not what goes into them.
        last = tl.minimum(start + s_S.shape[0], end) - 1
        for group in range(start // V.group, last // V.group + 1):
            of_group_SX = tl.where((s_S // V.group == group)[:, None], prob_SX, 0.0)
            decayed = _of_group(decayed, of_group_SX, values, group, s_S, dtype, IS_HALF, V)
        return decayed, shifts
    else:
        operands, moved = (), ()
        for scale in tl.static_range(V.num_scales):
            scaled_SX = prob_SX
            if V.per != "nothing":
                scale_S, shift_S = opened(fetched, scale, V)
                scaled_SX = prob_SX * scale_S[:, None]
                if len(shifts) > 0:
                    shift_LX = lane_sums(prob_SX * shift_S[:, None])
                    moved = moved + (shifts[scale] * decay_X[None, :] + shift_LX,)
            elif len(shifts) > 0:
                moved = moved + (shifts[scale] * decay_X[None, :] - V.bias * lane_sums(prob_SX),)
            operands = operands + (twins(scaled_SX, dtype, IS_HALF),)
        return _sums(decayed, operands, values, s_S, dtype, V), moved


@triton.jit
def _sums(acc, operands, values, s_S, dtype: tl.constexpr, V: tl.constexpr):
    """``acc`` and unscaled values times the probabilities of their scale."""
    added = ()
    for block in tl.static_range(V.num_blocks):
        u_U1 = block * V.block_units + tl.arange(0, V.block_units)[:, None]
        unit_US = load_units(values[0], s_S[None, :], u_U1, V)
        high_US = load_high(values[0], s_S[None, :], u_U1, V)
        for plane in tl.static_range(V.planes):
            for parity in tl.static_range(2):
                acc_UX = acc[(block * V.planes + plane) * 2 + parity]
                for term in tl.static_range(V.terms):
                    value_US = numbers(unit_US, high_US, values[3], term, plane, parity, dtype, V)
                    acc_UX = _dot_by_scale(acc_UX, value_US, operands, block, plane, parity, V)
                added = added + (acc_UX,)
    return added


@triton.jit
def _dot_by_scale(
    acc_UX, value_US, operands, block: tl.constexpr, plane: tl.constexpr, parity: tl.constexpr, V: tl.constexpr
):
    """``acc_UX`` and a tile of values times the probabilities of its scale, or of each channel's."""
    FIRST: tl.constexpr = V.first_scales[block * V.planes + plane]
    PAST: tl.constexpr = V.past_scales[block * V.planes + plane]
    if FIRST + 1 == PAST:
        return tl.dot(value_US, operands[FIRST], acc_UX, input_precision="ieee")
    else:
        channel_U, _ = channels(block, plane, parity, V)
        for scale in tl.static_range(FIRST, PAST):
            sum_UX = tl.dot(value_US, operands[scale], input_precision="ieee")
            acc_UX += tl.where((channel_U // V.group == scale)[:, None], sum_UX, 0.0)
        return acc_UX


@triton.jit
def _of_group(
    acc, prob_SX, values, group, s_S, dtype: tl.constexpr, IS_HALF: tl.constexpr, V: tl.constexpr
):
    """``acc`` and the values of one group of slots that have a scale of each channel; other slots' ``prob_SX`` is 0."""
    zeros = ()
    for index in tl.static_range(len(acc)):
        zeros = zeros + (tl.zeros_like(acc[index]),)
    sums = _sums(zeros, (twins(prob_SX, dtype, IS_HALF),), values, s_S, dtype, V)
    sum_X = tl.sum(prob_SX, axis=0)
    fetched = fetch_group(values[1], values[2], group, V)
    added = ()
    for index in tl.static_range(len(acc)):
        scale_U, shift_U = opened(fetched, index, V)
        acc_UX = acc[index] + sums[index] * scale_U[:, None]
        if V.has_offset or V.bias != 0:
            shift_UX = shift_U[:, None] * sum_X[None, :]
            if IS_HALF:
                both_UX = tl.join(shift_UX, tl.zeros_like(shift_UX))
                shift_UX = tl.reshape(both_UX, (V.block_units, 2 * prob_SX.shape[1]))
            acc_UX += shift_UX
        added = added + (acc_UX,)
    return added


@triton.jit
def _finished(acc, shifts, head_columns, dtype: tl.constexpr, V: tl.constexpr):
    """Sums of values (U, X), not yet divided, as they were before they were packed."""
    IS_HALF: tl.constexpr = dtype != tl.float32
    out = ()
    for index in tl.static_range(len(acc)):
        channel_U, is_channel_U = channels(index // 2 // V.planes, index // 2 % V.planes, index % 2, V)
        tile_UX = summed(acc[index], IS_HALF)
        if len(shifts) > 0:
            for scale in tl.static_range(V.first_scales[index // 2], V.past_scales[index // 2]):
                shift_X = tl.sum(shifts[scale], axis=0)
                if V.per == "block":
                    is_mine_U = channel_U // V.group == scale
                    tile_UX += tl.where(is_mine_U[:, None], shift_X[None, :], 0.0)
                else:
                    tile_UX += shift_X[None, :]
        if V.grid == "e2m1":
            tile_UX *= tl.load(tl.load(head_columns + V_GLOBAL).to(tl.pointer_type(tl.float32)))
        # Padding has the bias's and offsets' sums, and a rotation would spread them.
        out = out + (tl.where(is_channel_U[:, None], tile_UX, 0.0),)
    if V.is_rotated:
        out = rotated(out, dtype, IS_HALF, V)
    return out

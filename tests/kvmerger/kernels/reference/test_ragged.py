"""Ragged attention against a loop over single queries in float64, written from the definition of attention alone."""

import math
import random

import pytest
import torch
from torch import Tensor

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.ragged_layer import RaggedLayer
from kvmerger.kernels.reference.ragged import ragged_attention

HEAD_DIM, TAIL_CAPACITY, SCALING = 8, 9, 0.4
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def random_prefix(
    generator: torch.Generator, lengths: tuple[int, ...], dtype: torch.dtype, has_mass: bool
) -> LayerCache:
    num_slots = sum(lengths)
    k_SD, v_SD = (torch.randn(num_slots, HEAD_DIM, generator=generator).to(dtype) for _ in range(2))
    position_S = torch.cat([torch.arange(length) for length in lengths]).int()
    log_mass_S = torch.rand(num_slots, generator=generator) * 3 if has_mass else None
    return LayerCache(k_SD, v_SD, position_S, lengths, log_mass_S)


def random_layer(seed: int, num_kv_heads: int, dtype: torch.dtype) -> tuple[RaggedLayer, int]:
    """Rows with ragged, uniform, one-slot and empty prefixes, a dummy, and different tails and new tokens."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    ragged = (*(rng.randrange(0, 40) for _ in range(num_kv_heads - 1)), 41)
    shapes = [(23,) * num_kv_heads, ragged, (0,) * num_kv_heads, (1,) * num_kv_heads, ragged[::-1]]
    prefixes = [
        random_prefix(generator, shape, dtype, has_mass=index % 2 == 1) for index, shape in enumerate(shapes)
    ]
    num_new = (3, 1, 2, 0, 3)
    tail_start = tuple(rng.randrange(0, TAIL_CAPACITY - 3) for _ in shapes)
    tail = [
        torch.randn(6, num_kv_heads, TAIL_CAPACITY, HEAD_DIM, generator=generator).to(dtype) for _ in range(2)
    ]
    # What lies behind a row's new tokens must never be read.
    for row, (start, new) in enumerate(zip(tail_start, num_new, strict=True)):
        for tensor in tail:
            tensor[row, :, start + new :] = float("nan")
    return RaggedLayer((*prefixes, None), *tail, (*tail_start, 0), (*num_new, 0)), max(num_new)


def slow_row(
    q_QTD: Tensor, layer: RaggedLayer, row: int
) -> tuple[Tensor, list[list[float]], list[list[float]]]:
    """One query at a time: output (T, Q, D), and per KV head the mean mass on each prefix slot and tail token."""
    prefix, num_new = layer.prefix_R[row], layer.num_new_R[row]
    num_groups = q_QTD.shape[0] // prefix.num_heads
    out = torch.zeros(num_new, q_QTD.shape[0], HEAD_DIM, dtype=torch.float64)
    num_tail = layer.tail_start_R[row] + num_new
    prefix_mass = [[0.0] * length for length in prefix.num_slots_H]
    tail_mass = [[0.0] * num_tail for _ in prefix.num_slots_H]
    for query_head in range(q_QTD.shape[0]):
        head = query_head // num_groups
        first = sum(prefix.num_slots_H[:head])
        for token in range(num_new):
            keys, values, logits = [], [], []
            for slot in range(first, first + prefix.num_slots_H[head]):
                keys.append(prefix.k_SD[slot])
                values.append(prefix.v_SD[slot])
                logits.append(0.0 if prefix.log_mass_S is None else float(prefix.log_mass_S[slot]))
            for column in range(layer.tail_start_R[row] + token + 1):
                keys.append(layer.tail_k_RHCD[row, head, column])
                values.append(layer.tail_v_RHCD[row, head, column])
                logits.append(0.0)
            query = q_QTD[query_head, token].double()
            exps = [
                math.exp(float(query @ key.double()) * SCALING + logit)
                for key, logit in zip(keys, logits, strict=True)
            ]
            for index, (exp, value) in enumerate(zip(exps, values, strict=True)):
                prob = exp / math.fsum(exps)
                out[token, query_head] += prob * value.double()
                length = prefix.num_slots_H[head]
                target, slot = (prefix_mass, index) if index < length else (tail_mass, index - length)
                target[head][slot] += prob / num_groups
    return out, prefix_mass, tail_mass


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("num_query_heads", "num_kv_heads"), [(4, 4), (4, 2), (9, 3), (7, 1)])
def test_equals_single_queries_in_float64(
    num_query_heads: int, num_kv_heads: int, dtype: torch.dtype, seed: int
) -> None:
    layer, num_tokens = random_layer(seed, num_kv_heads, dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    q_RQTD = torch.randn(len(layer.prefix_R), num_query_heads, num_tokens, HEAD_DIM, generator=generator).to(
        dtype
    )
    attended = ragged_attention(q_RQTD, layer, SCALING, mass_rows={0, 1, 2, 4})
    assert attended.mass_by_row.keys() == {0, 1, 2, 4}
    for row, num_new in enumerate(layer.num_new_R):
        assert not attended.out_RTQD[row, num_new:].any(), "a row's padding must stay zero"
        if not num_new:
            continue
        out, prefix_mass, tail_mass = slow_row(q_RQTD[row], layer, row)
        torch.testing.assert_close(
            attended.out_RTQD[row, :num_new].double(), out, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
        )
        mass = attended.mass_by_row[row]
        expected_S = torch.tensor([value for head in prefix_mass for value in head])
        torch.testing.assert_close(mass.prefix_S, expected_S.view(mass.prefix_S.shape), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mass.tail_HC, torch.tensor(tail_mass), atol=1e-5, rtol=1e-5)


def test_log_mass_counts_a_slot_as_often_as_it_says(seed: int) -> None:
    """A slot with log mass log 3 is worth three equal slots: the identity the bias is for."""
    generator = torch.Generator().manual_seed(seed)
    single = random_prefix(generator, (5,), torch.float32, has_mass=False)
    tripled_S = torch.tensor([0, 1, 2, 2, 2, 3, 4])
    tripled = LayerCache(
        single.k_SD[tripled_S], single.v_SD[tripled_S], torch.arange(7, dtype=torch.int32), (7,)
    )
    log_mass_S = torch.tensor([0.0, 0.0, math.log(3), 0.0, 0.0])
    biased = LayerCache(single.k_SD, single.v_SD, single.position_S, (5,), log_mass_S)
    tail = torch.randn(2, 1, 2, HEAD_DIM, generator=generator)
    q_RQTD = torch.randn(1, 1, 2, HEAD_DIM, generator=generator).expand(2, -1, -1, -1)
    tail_RHCD = tail[:1].expand(2, -1, -1, -1)
    out = ragged_attention(
        q_RQTD, RaggedLayer((biased, tripled), tail_RHCD, tail_RHCD, (0, 0), (2, 2)), SCALING
    ).out_RTQD
    torch.testing.assert_close(out[0], out[1])

"""RDKV whole: its widths against one step at a time, bytes never over and nearly used, and what it refuses."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from kvmerger.budget import Budget, BudgetError
from kvmerger.building import build, build_variant
from kvmerger.byte_counts import ByteCount
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.packed_layer import PackedLayer
from kvmerger.names import VariantError
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.ranking.rdkv import RDKVRanking
from kvmerger.policies.widths.rdkv import K_ERROR, RDKV, V_ERROR
from kvmerger.prefill.evidence import Evidence, LayerStates
from kvmerger.variants import parse_policy_entry
from tests.fakes.planted_layers import HEAD_DIM, NUM_HEADS, NUM_TOKENS, planted_states
from tests.slow.rdkv import column_bytes, filled, value_bytes

DTYPES = (torch.float32, torch.bfloat16)
WIDTHS = [(0, 4, 8), (0, 2, 4, 8, 16), (0, 4), (0, 16)]


def tried(states: LayerStates) -> tuple[LayerCache, Evidence]:
    evidence = Evidence(states, 3, 8, prompt_seed=7)
    evidence.capture(RDKV().needs())
    return LayerCache.from_dense(states.k_HND, states.v_HND), evidence


def full_bytes(dtype: torch.dtype) -> int:
    """Of a head."""
    return 2 * NUM_TOKENS * HEAD_DIM * dtype.itemsize


def spending(num_bytes: int) -> Budget:
    return Budget((NUM_TOKENS,) * NUM_HEADS, 0.5, (num_bytes,) * NUM_HEADS)


def kept_at(policy: RDKV, states: LayerStates, num_bytes: int) -> LayerCache:
    return policy.compress(*tried(states), spending(num_bytes))


def widths_of(kept: LayerCache) -> list[list[int]]:
    """Every token's, head by head; 0 for those that are gone."""
    assert kept.widths is not None
    width_HN = torch.zeros(NUM_HEADS, NUM_TOKENS, dtype=torch.uint8)
    width_HN[kept.head_S, kept.position_S.long()] = kept.widths.v_S
    return width_HN.tolist()


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_widths_are_those_of_one_step_after_the_other(widths, share, dtype, seed: int) -> None:
    states, policy = planted_states(seed, dtype), RDKV(widths=widths, key_share=0.4)
    num_bytes, size = int(full_bytes(dtype) * share), dtype.itemsize
    kept = kept_at(policy, states, num_bytes)
    assert kept.widths is not None
    # In fp32, as ours: what is as good as equal is in the same order. Tests of the ranking hold the weights themselves.
    weight_HN = RDKVRanking().scores(tried(states)[1])
    falls = [(V_ERROR[low] - V_ERROR[high]) for low, high in itertools.pairwise(widths)]
    v_costs = steps_of([value_bytes(width, HEAD_DIM, size) for width in widths])
    for head in range(NUM_HEADS):
        rest = num_bytes - HEAD_DIM
        gains = [[float(weight * torch.tensor(fall)) for fall in falls] for weight in weight_HN[head]]
        most_keys = HEAD_DIM * (column_bytes(widths[-1], NUM_TOKENS, size) + (8 if widths[-1] == 16 else 0))
        levels = filled(gains, v_costs, max(int(rest * 0.6), rest - most_keys))
        assert widths_of(kept)[head] == [widths[level] for level in levels]
        rest -= sum(sum(v_costs[:level]) for level in levels)
        num_kept = sum(level > 0 for level in levels)
        # Ours charges a column that is no longer coded for the scale that it had.
        k_costs = steps_of([column_bytes(it, num_kept, size) + (8 if it == 16 else 0) for it in widths])
        levels = filled(gains_of_channels(states, head, widths), k_costs, rest)
        assert kept.widths.k_HD[head].tolist() == [widths[level] for level in levels]


def steps_of(costs: list[int]) -> list[int]:
    return [high - low for low, high in itertools.pairwise(costs)]


def gains_of_channels(states: LayerStates, head: int, widths: tuple[int, ...]) -> list[list[float]]:
    """How much each step of a channel takes off the error of the last queries' logits."""
    found = []
    for channel in range(HEAD_DIM):
        q = [float(x) for x in states.q_QND[2 * head : 2 * head + 2, -32:, channel].flatten()]
        k = [float(x) for x in states.k_HND[head, :, channel]]
        mean = sum(k) / len(k)
        variance = sum((x - mean) ** 2 for x in k) / len(k)
        weight = sum(x * x for x in q) / len(q)
        errors = [variance * K_ERROR[width] if width else sum(x * x for x in k) / len(k) for width in widths]
        found.append([weight * (low - high) for low, high in itertools.pairwise(errors)])
    return found


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bytes_are_never_exceeded_and_nearly_used(widths, dtype, seed: int) -> None:
    states, policy = planted_states(seed, dtype), RDKV(widths=widths)
    most = max(value_bytes(width, HEAD_DIM, dtype.itemsize) for width in widths)
    for share in (0.06, 0.11, 0.2, 0.35, 0.5, 0.8, 0.99):
        num_bytes = int(full_bytes(dtype) * share)
        try:
            kept = kept_at(policy, states, num_bytes)
        except BudgetError:
            assert share < 0.12
            continue
        packed = PackedLayer.of(kept, policy.form)
        held = sum(part.nbytes for part in packed.parts.values())
        assert held <= NUM_HEADS * num_bytes
        assert kept.widths is not None
        is_all_widest = bool((kept.widths.v_S == widths[-1]).all() and (kept.widths.k_HD == widths[-1]).all())
        # A step of a value does not fit, nor one of a channel.
        longest = column_bytes(widths[-1], max(kept.num_slots_H), dtype.itemsize) + 8
        scales = 8 * HEAD_DIM if 16 in widths else 0
        assert is_all_widest or NUM_HEADS * num_bytes - held < NUM_HEADS * (most + longest + scales)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_of_the_bytes_are_the_full_cache_bit_for_bit(dtype, seed: int) -> None:
    states = planted_states(seed, dtype)
    layer, evidence = tried(states)
    kept = RDKV().compress(layer, evidence, spending(full_bytes(dtype)))
    assert kept.widths is None
    assert torch.equal(kept.k_SD, layer.k_SD) and torch.equal(kept.v_SD, layer.v_SD)


def test_more_bytes_take_no_bits_from_a_value_and_more_weight_neither(seed: int) -> None:
    states, policy = planted_states(seed, torch.bfloat16), RDKV(widths=(0, 2, 4, 8, 16))
    weight_HN = RDKVRanking().scores(tried(states)[1])
    before = torch.zeros(NUM_HEADS, NUM_TOKENS)
    for share in (0.1, 0.15, 0.25, 0.4, 0.7):
        kept = kept_at(policy, states, int(full_bytes(torch.bfloat16) * share))
        width_HN = torch.tensor(widths_of(kept))
        assert bool((width_HN >= before).all())
        for weight_N, width_N in zip(weight_HN, width_HN, strict=True):
            in_order = width_N[weight_N.sort(descending=True, stable=True).indices].tolist()
            assert in_order == sorted(in_order, reverse=True)
        before = width_HN


def test_with_plain_numbers_alone_it_evicts_as_its_ranking_does(seed: int) -> None:
    states = planted_states(seed, torch.bfloat16)
    kept = kept_at(RDKV(widths=(0, 16)), states, full_bytes(torch.bfloat16) // 3)
    _, evidence = tried(states)
    is_kept_HN = RDKVRanking().select(evidence, Budget(kept.num_slots_H, 0.3))
    assert is_kept_HN.nonzero()[:, 1].tolist() == kept.position_S.tolist()


def test_channels_in_another_order_have_the_same_widths_in_that_order(seed: int) -> None:
    states = planted_states(seed, torch.float32)
    order_D = torch.randperm(HEAD_DIM, generator=torch.Generator().manual_seed(seed))
    # Powers of two change no digit of any product, so that sums of them in another order are not the point here.
    turned = replace(states, q_QND=states.q_QND[..., order_D], k_HND=states.k_HND[..., order_D])
    num_bytes = full_bytes(torch.float32) // 12
    ours, theirs = (kept_at(RDKV(widths=(0, 2, 4, 8)), it, num_bytes).widths for it in (states, turned))
    assert ours is not None and theirs is not None
    assert torch.equal(ours.k_HD[:, order_D], theirs.k_HD)
    assert len(ours.k_HD.unique()) > 1


def test_a_channel_that_no_query_reads_is_dropped_and_one_far_from_zero_is_not(seed: int) -> None:
    states = planted_states(seed, torch.bfloat16)
    q_QND, k_HND = states.q_QND.clone(), states.k_HND.clone()
    q_QND[..., 3] = 0
    k_HND[..., 5] = k_HND[..., 5] * 0.01 + 30
    kept = kept_at(RDKV(), replace(states, q_QND=q_QND, k_HND=k_HND), full_bytes(torch.bfloat16) // 8)
    assert kept.widths is not None
    assert kept.widths.k_HD[:, 3].tolist() == [0] * NUM_HEADS
    # What is the same in all tokens needs no many bits, but has to be there.
    assert kept.widths.k_HD[:, 5].tolist() == [2] * NUM_HEADS
    decoded_SD = PackedLayer.of(kept, RDKV().form).plain().k_SD
    torch.testing.assert_close(decoded_SD[:, 5].float(), kept.k_SD[:, 5].float(), atol=0.2, rtol=0)
    assert kept.counters["num_dropped_channels"] == int((kept.widths.k_HD == 0).sum())


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("rdkv", {"budget": 0.5}, "needs a budget in bytes, such as `budget: {bytes: 0.25}`; got 0.5, which counts slots"),
        ("rdkv", {"budget": 64}, "got 64, which counts slots. `rdkv\\+int4`, its ranking with one width"),
        ("rdkv", {"budget": {"like": "snapkv@0.5"}}, "got like:snapkv@0.5, which counts slots"),
        ("rdkv+adakv", {"budget": {"bytes": 0.5}}, "'adakv' would change which slots.*'rdkv\\+adakv\\+int4'"),
        ("rdkv+keepkv", {"budget": {"bytes": 0.5}}, "put a form behind, as in 'rdkv\\+keepkv\\+int4'"),
        ("rdkv", {"budget": {"bytes": 0.5}, "widths": [0, 3]}, r"widths are 0 and any of \(2, 4, 8, 16\).*\(0, 3\)"),
        ("rdkv", {"budget": {"bytes": 0.5}, "widths": [4, 8]}, "begin with 0 and rise"),
        ("rdkv", {"budget": {"bytes": 0.5}, "widths": [0, 8, 4]}, "begin with 0 and rise"),
        ("rdkv", {"budget": {"bytes": 0.5}, "widths": [0]}, "widths are 0 and any of"),
        ("rdkv", {"budget": {"bytes": 0.5}, "widths": 4}, "widths are 0 and any of"),
        ("rdkv", {"budget": {"bytes": 0.5}, "widths": [0, True]}, "widths are 0 and any of"),
        ("rdkv", {"budget": {"bytes": 0.5}, "key_share": 1.0}, "key_share is a share between 0 and 1, got 1.0"),
        ("rdkv", {"budget": {"bytes": 0.5}, "kernel_size": 4}, "kernel_size must be odd"),
        ("rdkv+int4", {"budget": {"bytes": 0.5}, "widths": [0, 4]}, "no parameter 'widths'"),
        ("snapkv+mixed_widths", {"budget": 0.5}, "nothing called 'mixed_widths' may follow"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_with_the_remedy(name, entry, message) -> None:
    with pytest.raises((VariantError, PolicyError), match=message):
        build_variant(parse_policy_entry({"name": name, **entry})[0])


def test_before_a_form_the_name_is_the_ranking_and_alone_the_whole() -> None:
    assert isinstance(build("rdkv", {}), RDKV)
    assert build("rdkv+int4", {}).parts[0] == RDKVRanking()
    assert build("rdkv+adakv+kivi4", {"window_size": 16}).parts[0] == RDKVRanking(16)
    (spec,) = parse_policy_entry({"name": "rdkv", "budget": {"bytes": 0.25}})
    assert spec.label == "rdkv@bytes:0.25"


def test_bytes_that_hold_no_slot_are_refused_with_those_that_do() -> None:
    shape = CacheShape(NUM_TOKENS, 4, NUM_HEADS, HEAD_DIM, 2)
    with pytest.raises(BudgetError, match=r"one slot takes (\d+).*give \{bytes: 0.0") as error:
        RDKV().check(shape, ByteCount(NUM_TOKENS, 20))
    share = float(str(error.value).rpartition("bytes: ")[2].split("}")[0])
    RDKV().check(shape, ByteCount(NUM_TOKENS, int(share * full_bytes(torch.bfloat16))))
    with pytest.raises(BudgetError, match="more than 32"):
        RDKV().check(CacheShape(32, 4, 2, 64, 2), ByteCount(32, 10000))
    with pytest.raises(BudgetError, match="give it a budget such as"):
        states = planted_states(1, torch.float32)
        RDKV().compress(*tried(states), Budget.uniform(5, NUM_HEADS, 0.1))


def test_the_least_bytes_leave_every_head_a_slot(seed: int) -> None:
    states = planted_states(seed, torch.bfloat16)
    for widths in WIDTHS:
        for num_bytes in range(20, 400):
            try:
                RDKV(widths=widths).check(
                    CacheShape(NUM_TOKENS, 4, NUM_HEADS, HEAD_DIM, 2), ByteCount(NUM_TOKENS, num_bytes)
                )
            except BudgetError:
                continue
            kept = kept_at(RDKV(widths=widths), states, num_bytes)
            assert min(kept.num_slots_H) >= 1
            assert kept.widths is not None and bool((kept.widths.k_HD > 0).any(dim=1).all())
            break

"""KVMerger against loops over single tokens in float64, written from the algorithm's description, on planted runs."""

import math
import random

import pytest
import torch

from kvmerger.budget import Budget, BudgetError, KeptRatio, LikeVariant, SlotCount
from kvmerger.evidence import Evidence, LayerStates
from kvmerger.layer_cache import LayerCache
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.kvmerger import KVMerger
from kvmerger.policies.kvmerger_paper import KVMergerPaper

NUM_HEADS, NUM_QUERY_HEADS, NUM_TOKENS, HEAD_DIM = 2, 4, 96, 12
OPTIONS = [
    {},
    {"sigma": 5.0},
    {"value_factor": "count"},
    {"merge_keys": False},
    {"layout": "shared"},
    {"layout": "all_agree"},
    {"log_mass": "count"},
    {"log_mass": "attention"},
    {"attention_source": "window", "window_size": 8},
    {"recent_ratio": 0.3, "heavy_ratio": 0.0},
]


def planted_states(seed: int, dtype: torch.dtype) -> LayerStates:
    """Runs share a key up to noise: of 2–7 tokens in the first head, of 1–2 in the second, so their outcomes differ."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    k_HND = torch.empty(NUM_HEADS, NUM_TOKENS, HEAD_DIM)
    for head in range(NUM_HEADS):
        token = 0
        while token < NUM_TOKENS:
            length = min(rng.randint(*((2, 7) if head == 0 else (1, 2))), NUM_TOKENS - token)
            key_D = torch.randn(HEAD_DIM, generator=generator)
            noise = 0.5 * torch.randn(length, HEAD_DIM, generator=generator)
            k_HND[head, token : token + length] = key_D + noise
            token += length
    q_QND, v_HND = (
        torch.randn(heads, NUM_TOKENS, HEAD_DIM, generator=generator)
        for heads in (NUM_QUERY_HEADS, NUM_HEADS)
    )
    return LayerStates(q_QND.to(dtype), k_HND.to(dtype), v_HND.to(dtype), HEAD_DIM**-0.5)


def compress(policy: KVMerger, states: LayerStates, budget: Budget) -> LayerCache:
    evidence = Evidence(states, layer_index=3, num_layers=8, prompt_seed=0)
    evidence.capture(policy.needs())
    return policy.compress(LayerCache.from_dense(states.k_HND, states.v_HND), evidence, budget)


def slow_masses(policy: KVMerger, states: LayerStates) -> list[list[float]]:
    """Attention each token receives, per head, from all queries or from the last window's."""
    first = 0 if policy.attention_source == "prefill" else NUM_TOKENS - policy.window_size
    per_head = []
    for head in range(NUM_HEADS):
        masses = [0.0] * NUM_TOKENS
        for query_head in (2 * head, 2 * head + 1):
            for row in range(first, NUM_TOKENS):
                query = states.q_QND[query_head, row].double()
                exps = [
                    math.exp(float(query @ states.k_HND[head, c].double()) * states.scaling)
                    for c in range(row + 1)
                ]
                for column, exp in enumerate(exps):
                    masses[column] += exp / sum(exps) / 2 / (1 if first == 0 else policy.window_size)
        per_head.append(masses)
    return per_head


def slow_links(
    policy: KVMerger, states: LayerStates, masses: list[list[float]], budget: Budget
) -> list[list[bool]]:
    """For every head, whether token i joins token i + 1."""
    cosines = [
        [
            float(torch.nn.functional.cosine_similarity(k_ND[i].double(), k_ND[i + 1].double(), dim=0))
            for i in range(NUM_TOKENS - 1)
        ]
        for k_ND in states.k_HND
    ]
    if policy.layout == "shared":
        cosines = [[sum(head[i] for head in cosines) / NUM_HEADS for i in range(NUM_TOKENS - 1)]] * NUM_HEADS
    if policy.layout == "all_agree":
        cosines = [[min(head[i] for head in cosines) for i in range(NUM_TOKENS - 1)]] * NUM_HEADS
    protected = policy._protected(budget.asked_ratio)
    links = []
    for head in range(NUM_HEADS):
        recent = set(range(NUM_TOKENS - int(protected.recent_ratio * NUM_TOKENS), NUM_TOKENS))
        others = sorted((t for t in range(NUM_TOKENS) if t not in recent), key=lambda t: -masses[head][t])
        kept_whole = recent | set(others[: int(protected.heavy_ratio * NUM_TOKENS)])
        eligible = [i for i in range(NUM_TOKENS - 1) if i not in kept_whole and i + 1 not in kept_whole]
        if policy.mode == "threshold":
            chosen = {i for i in eligible if cosines[head][i] > policy.eps}
        else:
            ranked = sorted(eligible, key=lambda i: -cosines[head][i])
            chosen = set(ranked[: NUM_TOKENS - budget.num_slots_H[head]])
        links.append([i in chosen for i in range(NUM_TOKENS - 1)])
    return links


def slow_merge(policy: KVMerger, states: LayerStates, budget: Budget):
    """Per head a list of (position, key, value, log mass)."""
    masses = slow_masses(policy, states)
    if policy.layout != "per_head":
        masses = [[sum(head[t] for head in masses) / NUM_HEADS for t in range(NUM_TOKENS)]] * NUM_HEADS
    heads = []
    for head, links in enumerate(slow_links(policy, states, masses, budget)):
        runs, run = [], [0]
        for token in range(1, NUM_TOKENS):
            if links[token - 1]:
                run.append(token)
            else:
                runs.append(run)
                run = [token]
        runs.append(run)
        heads.append([slow_slot(policy, states, masses[head], head, run) for run in runs])
    return heads


def slow_slot(policy: KVMerger, states: LayerStates, mass: list[float], head: int, run: list[int]):
    keys, values = states.k_HND[head].double(), states.v_HND[head].double()
    pivot = max(run, key=lambda token: mass[token])
    distances = [float((keys[pivot] - keys[token]).norm()) for token in run]
    sigma = policy.sigma or sum(distances) / len(run) / math.sqrt(2)
    kernel = [1.0 if len(run) == 1 else math.exp(-(d**2) / (2 * sigma**2)) for d in distances]
    weights = [g / sum(kernel) for g in kernel]
    key = (
        sum(w * keys[token] for w, token in zip(weights, run, strict=True))
        if policy.merge_keys
        else keys[pivot]
    )
    value = sum(w * values[token] for w, token in zip(weights, run, strict=True))
    if policy.value_factor == "count":
        value = value * len(run)
    log_mass = {
        "none": 0.0,
        "count": math.log(len(run)),
        "attention": math.log(sum(mass[token] for token in run) / mass[pivot]),
    }[policy.log_mass]
    return pivot, key, value, log_mass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", ["exact", "threshold"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_loops_over_tokens(options: dict, mode: str, dtype: torch.dtype, seed: int) -> None:
    policy = KVMerger(mode=mode, eps=0.6, **options)
    states = planted_states(seed, dtype)
    num_slots = NUM_TOKENS // 2
    budget = Budget.uniform(num_slots, NUM_HEADS, 0.5)
    merged = compress(policy, states, budget)
    expected = slow_merge(policy, states, budget)
    assert merged.num_slots_H == tuple(len(slots) for slots in expected)
    assert mode == "threshold" or merged.num_slots_H == (num_slots,) * NUM_HEADS
    slots = [slot for head in expected for slot in head]
    assert any(len(slots) < NUM_TOKENS for slots in expected), "nothing was merged"
    assert merged.position_S.tolist() == [position for position, _, _, _ in slots]
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.04, "rtol": 0.01}
    torch.testing.assert_close(
        merged.k_SD.double(), torch.stack([key for _, key, _, _ in slots]), **tolerance
    )
    torch.testing.assert_close(
        merged.v_SD.double(), torch.stack([value for _, _, value, _ in slots]), **tolerance
    )
    if policy.log_mass != "none":
        expected_S = torch.tensor([log_mass for _, _, _, log_mass in slots])
        torch.testing.assert_close(merged.log_mass_S, expected_S, atol=1e-4, rtol=1e-4)


def test_threshold_mode_leaves_heads_of_different_length(seed: int) -> None:
    merged = compress(
        KVMerger(mode="threshold", eps=0.6), planted_states(seed, torch.float32), Budget.uniform(48, 2, 0.5)
    )
    assert not merged.is_uniform
    merged.check_integrity()
    assert merged.counters["num_merged"] == NUM_HEADS * NUM_TOKENS - merged.num_slots
    assert merged.counters["mean_link_cosine"] > 0.6


def test_single_tokens_pass_through_bit_for_bit(seed: int) -> None:
    states = planted_states(seed, torch.bfloat16)
    merged = compress(KVMerger(mode="threshold", eps=1.0), states, Budget.uniform(48, 2, 0.5))
    assert torch.equal(merged.k_SD.view(2, NUM_TOKENS, -1), states.k_HND)
    assert torch.equal(merged.v_SD.view(2, NUM_TOKENS, -1), states.v_HND)
    assert merged.counters["num_merged"] == 0


def test_equal_keys_merge_into_themselves() -> None:
    k_HND = torch.ones(NUM_HEADS, NUM_TOKENS, HEAD_DIM)
    v_HND = torch.randn(NUM_HEADS, NUM_TOKENS, HEAD_DIM)
    states = LayerStates(torch.ones(NUM_QUERY_HEADS, NUM_TOKENS, HEAD_DIM), k_HND, v_HND, 0.3)
    merged = compress(KVMerger(mode="threshold", eps=0.9), states, Budget.uniform(48, 2, 0.5))
    torch.testing.assert_close(merged.k_SD, torch.ones_like(merged.k_SD))
    assert bool(merged.v_SD.isfinite().all())


@pytest.mark.parametrize(("num_layers", "ratio"), [(5, 0.7), (16, 0.5), (30, 0.5), (30, 0.35), (80, 0.2)])
def test_exact_mode_meets_the_budget_over_the_whole_model(num_layers: int, ratio: float) -> None:
    policy = KVMerger()
    states = planted_states(0, torch.float32)
    evidence_L = [Evidence(states, index, num_layers, 0) for index in range(num_layers)]
    even = Budget.uniform(int(ratio * NUM_TOKENS), NUM_HEADS, ratio)
    budgets = policy.allocate([even] * num_layers, evidence_L)
    assert [budgets[index].num_slots_H[0] for index in (0, 1, -1)] == [NUM_TOKENS] * 3
    total = sum(budget.num_slots for budget in budgets)
    allowed = even.num_slots * num_layers
    assert allowed - NUM_HEADS * num_layers < total <= allowed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "soft"}, "mode"),
        ({"eps": -1.0}, "eps"),
        ({"eps": 1.5}, "eps"),
        ({"sigma": 0.0}, "sigma"),
        ({"value_factor": "count", "log_mass": "count"}, "both count"),
        ({"recent_ratio": 1.2}, "recent_ratio"),
        ({"layout": "none"}, "layout"),
    ],
)
def test_bad_parameters_are_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        KVMerger(**options)


@pytest.mark.parametrize(
    ("policy", "budget", "num_layers", "message"),
    [
        (KVMerger(), KeptRatio(0.1), 30, "skip fewer layers"),
        (KVMerger(), KeptRatio(0.5), 5, "skip fewer layers"),
        (KVMerger(), SlotCount(20), 30, "protect"),
        (KVMerger(skip_layers=(0, 1)), KeptRatio(0.5), 2, "leaves none"),
        (KVMerger(recent_ratio=0.5), KeptRatio(0.5), 30, "protected"),
        (KVMergerPaper(), SlotCount(200), 30, "kept fraction"),
        (KVMergerPaper(), LikeVariant("snapkv"), 30, "kept fraction"),
        (KVMerger(attention_source="window", window_size=2000), KeptRatio(0.5), 30, "window_size"),
    ],
)
def test_impossible_budgets_are_refused_before_any_work(
    policy: KVMerger, budget: KeptRatio | SlotCount, num_layers: int, message: str
) -> None:
    with pytest.raises(BudgetError, match=message):
        policy.check(CacheShape(num_tokens=1000, num_layers=num_layers, num_kv_heads=2), budget)


@pytest.mark.parametrize(("ratio", "recent", "heavy"), [(0.5, 0.17, 0.12), (0.35, 0.08, 0.02)])
def test_the_papers_fractions_are_exact_at_its_two_budgets(ratio: float, recent: float, heavy: float) -> None:
    assert KVMergerPaper()._protected(ratio) == (recent, heavy)

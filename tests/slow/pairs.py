"""KVSlimmer one merge after the other, in float64: the lightest pair is looked for anew before each."""

import cmath
import itertools
import math

import torch

from kvmerger.policies.mergers.kvslimmer import KVSlimmer
from kvmerger.policies.reducers.kvslimmer import PairReducer
from kvmerger.prefill.evidence import LayerStates
from tests.fakes.planted_layers import NUM_HEADS, NUM_TOKENS, Slot, slow_masses

Pairs = list[tuple[int, int]]


def slow_lowest_pairs(
    mass: list[float], num_merges: int, gamma: float, kept: set[int] | frozenset[int] = frozenset()
) -> Pairs:
    """First tokens of both slots of each merge, in order; slots with a kept token each are no pair."""
    slots = [(token, share, 1) for token, share in enumerate(mass)]
    pairs: Pairs = []
    for _ in range(num_merges):
        ends = [first for first, _, _ in slots[1:]] + [len(mass)]
        has_kept = [
            any(t in kept for t in range(slot[0], end)) for slot, end in zip(slots, ends, strict=True)
        ]
        weights = [
            math.log((mass + more_mass) * (length + more_length)) - first / gamma
            for (first, mass, length), (_, more_mass, more_length) in itertools.pairwise(slots)
        ]
        weights = [math.inf if has_kept[i] and has_kept[i + 1] else it for i, it in enumerate(weights)]
        if min(weights, default=math.inf) == math.inf:
            break
        i = weights.index(min(weights))
        (first, left, length), (second, right, more_length) = slots[i : i + 2]
        pairs.append((first, second))
        slots[i : i + 2] = [(first, left + right, length + more_length)]
    return pairs


def slow_released_pairs(
    mass: list[float], num_merges: int, gamma: float, per_call: int = 512
) -> tuple[list[Pairs], set[int]]:
    """The merges of each call, and the first tokens of what was lost."""
    slots = [(token, share, 1) for token, share in enumerate(mass)]
    calls, lost = [], set()
    while num_merges:
        weights = [
            math.log((slots[i][1] + slots[i + 1][1]) * (slots[i][2] + slots[i + 1][2])) - (i + 1) / gamma
            for i in range(len(slots) - 1)
        ]
        chosen = set(sorted(range(len(weights)), key=lambda i: weights[i])[: min(per_call, num_merges)])
        num_merges -= len(chosen)
        pairs, left = [], []
        for i, (first, share, length) in enumerate(slots):
            if i - 1 in chosen:
                if i - 2 in chosen:
                    lost.add(first)
                continue
            if i in chosen:
                second, more_share, more_length = slots[i + 1]
                pairs.append((first, second))
                share, length = share + more_share, length + more_length
            left.append((first, share, min(length, 5)))
        calls.append(pairs)
        slots = left
    return calls, lost


def slow_kvslimmer(policy: KVSlimmer, states: LayerStates, num_slots: int) -> list[list[Slot]]:
    """Every head's slots, at ``num_slots`` a head."""
    masses = slow_masses(states, policy.window_size)
    middle = range(policy.n_sink, NUM_TOKENS - policy.window_size)
    gamma = policy.gamma or len(middle) / (2560 * math.log(512) / 4096)
    summed = [sum(masses[head][token] for head in range(NUM_HEADS)) for token in middle]
    heads = []
    for head in range(NUM_HEADS):
        mass = summed if policy.layout == "shared" else [masses[head][token] for token in middle]
        lost: set[int] = set()
        if policy.as_released:
            calls, lost = slow_released_pairs(mass, NUM_TOKENS - num_slots, gamma)
            pairs = [pair for call in calls for pair in call]
        else:
            pairs = slow_lowest_pairs(mass, NUM_TOKENS - num_slots, gamma)
        shifted = [(first + middle[0], second + middle[0]) for first, second in pairs]
        gone = {first + middle[0] for first in lost}
        heads.append(_slots(policy, states, masses[head], head, shifted, gone))
    return heads


def slow_pair_reducer(policy: PairReducer, states: LayerStates, kept: list[set[int]]) -> list[list[Slot]]:
    """Every head's slots, one for each of its ``kept`` tokens."""
    masses = slow_masses(states, policy.mass_window if policy.attention_source == "window" else None)
    return [
        _slots(
            policy, states, mass, head, slow_lowest_pairs(mass, NUM_TOKENS, math.inf, of_head), set(), of_head
        )
        for head, (mass, of_head) in enumerate(zip(masses, kept, strict=True))
    ]


def _slots(
    policy: KVSlimmer | PairReducer,
    states: LayerStates,
    mass: list[float],
    head: int,
    pairs: Pairs,
    lost: set[int],
    kept: set[int] | None = None,
) -> list[Slot]:
    keys = _turned(policy, states, list(states.k_HND[head].double()), [-token for token in range(NUM_TOKENS)])
    values = list(states.v_HND[head].double())
    middle = range(NUM_TOKENS)
    if isinstance(policy, KVSlimmer):
        middle = range(policy.n_sink, NUM_TOKENS - policy.window_size)
    total = sum(mass[token] for token in middle)
    alpha = [share / total for share in mass]
    output = sum(alpha[token] * values[token] for token in middle)
    length, last = [1] * NUM_TOKENS, list(range(NUM_TOKENS))
    for i, j in pairs:
        d1, d2 = (float((values[t] / length[t] - output).abs().sum()) for t in (i, j))
        share = slow_share(policy.weights, alpha[i], alpha[j], d1, d2)
        keys[i] = share * keys[i] + (1 - share) * keys[j]
        values[i], alpha[i] = values[i] + values[j], alpha[i] + alpha[j]
        length[i] = min(length[i] + length[j], 5 if getattr(policy, "as_released", False) else NUM_TOKENS)
        # A slot's position: its last token's, or its kept one's.
        last[i] = last[j] if kept is None or last[j] in kept else last[i]
    gone = {second for _, second in pairs} | lost
    left = [token for token in range(NUM_TOKENS) if token not in gone]
    turned = _turned(policy, states, [keys[t] for t in left], [last[t] for t in left])
    return [
        (last[t], key, values[t] / length[t], math.log(length[t]))
        for t, key in zip(left, turned, strict=True)
    ]


def slow_share(kind: str, alpha1: float, alpha2: float, d1: float, d2: float) -> float:
    """The first key's share."""
    linear = alpha1 * d1 / (alpha1 * d1 + alpha2 * d2)
    h1, h2 = alpha1 * (1 - 2 * alpha1) * d1, alpha2 * (1 - 2 * alpha2) * d2
    if kind == "linear":
        return linear
    if kind == "diagonal":
        a, b = max(h1, 0.0), max(h2, 0.0)
    else:
        a, b = h1 - alpha1 * alpha2 * (d1 + d2), h2 - alpha1 * alpha2 * (d1 + d2)
    return min(max(a / (a + b), 0.0), 1.0) if a + b > 0 else linear


def _turned(policy: KVSlimmer | PairReducer, states: LayerStates, keys: list, places: list[int]) -> list:
    """Keys turned from before RoPE to ``places``, or back where these are negative, one complex number after the other."""
    if policy.keys == "after_rope":
        return keys
    frequencies = states.rotary.inv_freq.tolist()
    half = len(frequencies)
    turned = []
    for key, place in zip(keys, places, strict=True):
        pairs = [
            complex(key[c], key[c + half]) * cmath.exp(1j * place * it) for c, it in enumerate(frequencies)
        ]
        turned.append(
            torch.tensor([*[it.real for it in pairs], *[it.imag for it in pairs]], dtype=torch.float64)
        )
    return turned

"""Reducers one token at a time, in float64: where each dropped token goes, and what becomes of the slot it goes to.

A reference returns, for one head, the members of every kept token's slot (itself among them, in the prompt's order).
"""

import math

import torch

from kvmerger.policies.base import Policy
from kvmerger.prefill.evidence import LayerStates
from tests.fakes.planted_layers import (
    NUM_HEADS,
    NUM_TOKENS,
    Slot,
    slow_cosine,
    slow_logits,
    slow_masses,
    slow_weights,
    weighted_sum,
)

Members = dict[int, list[int]]


def slow_reduce(name: str, policy: Policy, states: LayerStates, kept: list[set[int]]) -> list[list[Slot]]:
    """The slots of every head under the reducer called ``name``; ``kept`` are each head's kept tokens."""
    window = (
        getattr(policy, "mass_window", 0) if getattr(policy, "attention_source", "") == "window" else None
    )
    masses = slow_masses(states, window)
    cosines = [[slow_cosine(k[i], k[i + 1]) for i in range(NUM_TOKENS - 1)] for k in states.k_HND]
    if getattr(policy, "layout", "") == "shared":
        cosines = [[sum(head[i] for head in cosines) / NUM_HEADS for i in range(NUM_TOKENS - 1)]] * NUM_HEADS
    heads = []
    for head in range(NUM_HEADS):
        keys = [key.double() for key in states.k_HND[head]]
        values = [value.double() for value in states.v_HND[head]]
        members = _members(name, policy, keys, sorted(kept[head]), masses[head], cosines[head])
        slot_of = {
            "compensated": _averaged,
            "kvmerger": _averaged,
            "nearest": _nearest,
            "d2o": _d2o,
            "weighted_kv": _weighted_kv,
            "keepkv": lambda *args, head=head: _keepkv(states, head, *args),
        }[name]
        heads.append(
            [
                slot_of(policy, keys, values, masses[head], target, group)
                if len(group) > 1
                else (target, keys[target], values[target], 0.0)
                for target, group in members.items()
            ]
        )
    return heads


def _members(
    name: str, policy, keys: list, kept: list[int], masses: list[float], cosines: list[float]
) -> Members:
    members: Members = {target: [target] for target in kept}
    nearest = {}
    for token in range(NUM_TOKENS):
        if token in members:
            continue
        cosine, minus_best = max((slow_cosine(keys[token], keys[target]), -target) for target in kept)
        nearest[token] = (-minus_best, cosine)
    threshold = sum(cosine for _, cosine in nearest.values()) / max(1, len(nearest))
    for token, (best, cosine) in nearest.items():
        before = [target for target in kept if target < token][-1:]
        after = [target for target in kept if target > token][:1]
        target: int | None = best
        if name == "nearest":
            target = best if cosine >= policy.min_cosine else None
        elif name == "keepkv":
            target = best if cosine > policy.min_cosine else None
        elif name == "d2o":
            target = best if cosine >= threshold else None
        elif name == "weighted_kv":
            target = after[0] if after else None
        elif name == "compensated":
            target = max(before + after, key=lambda target: slow_cosine(keys[token], keys[target]))
        elif name == "kvmerger":
            run = [other for other in kept if _is_linked(cosines, policy.eps, token, other)]
            target = max(run, key=lambda other: masses[other]) if run else None
        if target is not None:
            members[target] = sorted([*members[target], token])
    return members


def _is_linked(cosines: list[float], eps: float, token: int, other: int) -> bool:
    low, high = sorted((token, other))
    return all(cosines[i] > eps for i in range(low, high))


def _averaged(policy, keys, values, masses, target: int, group: list[int]) -> Slot:
    weights = slow_weights(
        policy.weights,
        policy.sigma,
        [keys[i] for i in group],
        [masses[i] for i in group],
        group.index(target),
    )
    value = weighted_sum(weights, [values[i] for i in group])
    if getattr(policy, "value_factor", "convex") == "count":
        value = value * len(group)
    key = weighted_sum(weights, [keys[i] for i in group]) if policy.merge_keys else keys[target]
    if not getattr(policy, "merge_values", True):
        value = values[target]
    log_mass = {
        "none": 0.0,
        "count": math.log(len(group)),
        "attention": math.log(sum(masses[i] for i in group) / masses[target]),
    }[policy.log_mass]
    return target, key, value, min(log_mass, policy.max_log_mass or math.inf)


def _nearest(policy, keys, values, masses, target: int, group: list[int]) -> Slot:
    weights = []
    for token in group:
        cosine = slow_cosine(keys[token], keys[target])
        norm, target_norm = float(values[token].norm()), float(values[target].norm())
        by_similarity = 1.0 if token == target else max(0.0, cosine) * norm / (norm + target_norm)
        weights.append({"similarity": by_similarity, "mean": 1.0, "attention": masses[token]}[policy.weights])
    weights = [weight / sum(weights) for weight in weights]
    key = weighted_sum(weights, [keys[i] for i in group]) if policy.merge_keys else keys[target]
    return target, key, weighted_sum(weights, [values[i] for i in group]), 0.0


def _d2o(policy, keys, values, masses, target: int, group: list[int]) -> Slot:
    weights = [(1.0 if i == target else slow_cosine(keys[i], keys[target])) / len(group) for i in group]
    key = weighted_sum(weights, [keys[i] for i in group]) if policy.merge_keys else keys[target]
    return target, key, weighted_sum(weights, [values[i] for i in group]), 0.0


def _weighted_kv(policy, keys, values, masses, target: int, group: list[int]) -> Slot:
    window = policy.mass_window if policy.attention_source == "window" else NUM_TOKENS
    average = {i: masses[i] / min(NUM_TOKENS - i, window) for i in group}
    value = values[target]
    for token in group:
        if token != target:
            value = (average[token] * values[token] + average[target] * value) / (
                average[token] + average[target]
            )
    return target, keys[target], value, 0.0


def _keepkv(states: LayerStates, head: int, policy, keys, values, masses, target: int, group) -> Slot:
    scores = []
    rows = range(NUM_TOKENS - policy.score_window, NUM_TOKENS)
    seen = [logits for row in rows for logits in slow_logits(states, head, row)]
    for token in group:
        exps = [math.exp(logits[token]) for logits in seen if token < len(logits)]
        scores.append(sum(exps) / len(exps))
    weights = [score / sum(scores) for score in scores]
    key = keys[target]
    if policy.keys == "moved":
        log_of_mean = math.log(sum(scores) / len(scores))
        mean_of_log = sum(w * math.log(score) for w, score in zip(weights, scores, strict=True))
        factor = log_of_mean / mean_of_log if log_of_mean > 0 and mean_of_log > 0 else 1.0
        key = factor * weighted_sum(weights, [keys[i] for i in group])
    return target, key, weighted_sum(weights, [values[i] for i in group]), math.log(len(group))


def kept_sets(is_kept_HN: torch.Tensor) -> list[set[int]]:
    """Each head's kept tokens."""
    return [set(row.nonzero().flatten().tolist()) for row in is_kept_HN]

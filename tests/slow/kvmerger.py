"""KVMerger one token at a time, in float64, written from the description of Algorithms 1 and 2 and of its controls."""

import math

import torch

from kvmerger.budget import Budget
from kvmerger.policies.mergers.kvmerger import KVMerger
from kvmerger.policies.ranking.random_tokens import random_numbers
from kvmerger.prefill.evidence import Evidence, LayerStates
from tests.fakes.planted_layers import (
    NUM_HEADS,
    NUM_TOKENS,
    Slot,
    slow_cosine,
    slow_masses,
    slow_weights,
    weighted_sum,
)


def slow_kvmerger(
    policy: KVMerger, states: LayerStates, evidence: Evidence, budget: Budget
) -> list[list[Slot]]:
    """Every head's slots; ``evidence`` is asked for nothing but what random draws depend on."""
    masses = slow_masses(states, policy.window_size if policy.attention_source == "window" else None)
    if policy.layout != "per_head":
        masses = [[sum(head[t] for head in masses) / NUM_HEADS for t in range(NUM_TOKENS)]] * NUM_HEADS
    heads = []
    for head, links in enumerate(_links(policy, states, evidence, masses, budget)):
        runs, run = [], [0]
        for token in range(1, NUM_TOKENS):
            if links[token - 1]:
                run.append(token)
            else:
                runs.append(run)
                run = [token]
        runs.append(run)
        draws = _draws(policy, evidence, policy.seed)[head]
        heads.append([_slot(policy, states, masses[head], draws, head, run) for run in runs])
    return heads


def _draws(policy: KVMerger, evidence: Evidence, seed: int) -> list[list[float]]:
    draws = random_numbers(evidence, seed).tolist()
    return draws if policy.layout == "per_head" else [draws[0]] * NUM_HEADS


def _links(
    policy: KVMerger, states: LayerStates, evidence: Evidence, masses: list[list[float]], budget: Budget
) -> list[list[bool]]:
    """For every head, whether token i joins token i + 1."""
    places = range(NUM_TOKENS - 1)
    cosines = [[slow_cosine(k_ND[i], k_ND[i + 1]) for i in places] for k_ND in states.k_HND]
    if policy.layout == "shared":
        cosines = [[sum(head[i] for head in cosines) / NUM_HEADS for i in places]] * NUM_HEADS
    if policy.layout == "all_agree":
        cosines = [[min(head[i] for head in cosines) for i in places]] * NUM_HEADS
    draws = _draws(policy, evidence, policy.seed + 499_979)
    protected = policy._protected(budget.asked_ratio)
    links = []
    for head in range(NUM_HEADS):
        mass, cosine = masses[head], cosines[head]
        recent = set(range(NUM_TOKENS - int(protected.recent_ratio * NUM_TOKENS), NUM_TOKENS))
        others = sorted((t for t in range(NUM_TOKENS) if t not in recent), key=lambda t: -mass[t])
        kept_whole = recent | set(others[: int(protected.heavy_ratio * NUM_TOKENS)])
        eligible = [i for i in places if i not in kept_whole and i + 1 not in kept_whole]
        by_cosine = sorted(eligible, key=lambda i: -cosine[i])
        by_mass = sorted(eligible, key=lambda i: mass[i] + mass[i + 1])
        ranked = {
            "cosine": by_cosine,
            "random": sorted(eligible, key=lambda i: -draws[head][i]),
            "low_mass": by_mass,
            "cosine_low_mass": sorted(eligible, key=lambda i: by_cosine.index(i) + by_mass.index(i)),
        }[policy.links]
        chosen = set(ranked[: NUM_TOKENS - budget.num_slots_H[head]])
        if policy.mode == "threshold":
            chosen = {i for i in eligible if cosine[i] > policy.eps}
        links.append([i in chosen for i in places])
    return links


def _slot(
    policy: KVMerger, states: LayerStates, mass: list[float], draws: list[float], head: int, run: list[int]
) -> Slot:
    keys, values = (x_HND[head].double() for x_HND in (states.k_HND, states.v_HND))
    pivot = max(run, key=lambda token: mass[token] if policy.pivot == "attention" else draws[token])
    weights = slow_weights(
        policy.weights, policy.sigma, [keys[t] for t in run], [mass[t] for t in run], run.index(pivot)
    )
    key = weighted_sum(weights, [keys[t] for t in run]) if policy.merge_keys else keys[pivot]
    value = values[pivot]
    if policy.merge_values:
        value = weighted_sum(weights, [values[t] for t in run])
        if policy.value_factor == "count":
            value = value * len(run)
    log_mass = {
        "none": 0.0,
        "count": math.log(len(run)),
        "attention": math.log(sum(mass[token] for token in run) / mass[pivot]),
    }[policy.log_mass]
    return pivot, key, value, min(log_mass, policy.max_log_mass or math.inf)


def slow_zeromerge(
    states: LayerStates, budget: Budget, tail_ratio: float, num_residual: int, scale: float
) -> list[list[Slot]]:
    """Every head's slots: tail, top, and stretches of all other tokens averaged."""
    heads = []
    for head, mass in enumerate(slow_masses(states, None)):
        num_slots = budget.num_slots_H[head]
        num_tail = int(tail_ratio * num_slots)
        tail = list(range(NUM_TOKENS - num_tail, NUM_TOKENS))
        rest = sorted(range(NUM_TOKENS - num_tail), key=lambda t: -mass[t])
        num_top = num_slots - num_tail - num_residual
        others = sorted(rest[num_top:])
        stretches: list[list[int]] = [[] for _ in range(num_residual)]
        for place, token in enumerate(others):
            stretches[place * num_residual // len(others)].append(token)
        groups = sorted([*([t] for t in (*tail, *rest[:num_top])), *stretches])
        heads.append([_average(states, head, group, scale) for group in groups])
    return heads


def _average(states: LayerStates, head: int, group: list[int], scale: float) -> Slot:
    key, value = (
        torch.stack([x_HND[head, t].double() for t in group]).mean(dim=0)
        for x_HND in (states.k_HND, states.v_HND)
    )
    return group[0], key, value, scale * math.log(len(group))

"""One layer of a prompt whose neighbouring keys come in similar runs, and what attention says of it, token by token.

Everything here is float64 and loops over single tokens: it is what vectorised code is compared with.
"""

import math
import random

import torch
from torch import nn

from kvmerger.prefill.evidence import LayerStates

NUM_HEADS, NUM_QUERY_HEADS, NUM_TOKENS, HEAD_DIM = 2, 4, 96, 12
Slot = tuple[int, torch.Tensor, torch.Tensor, float]
"""Position, key, value, log mass."""


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
    return LayerStates(q_QND.to(dtype), k_HND.to(dtype), v_HND.to(dtype), HEAD_DIM**-0.5, rotary=_Rotary())


class _Rotary(nn.Module):
    """Frequencies alone."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 100.0 ** -torch.linspace(0, 1, HEAD_DIM // 2))


def slow_logits(states: LayerStates, head: int, row: int) -> list[list[float]]:
    """q·k of one token with all it sees, for each query head of a group."""
    seen_ND = states.k_HND[head, : row + 1].double()
    return [
        (seen_ND @ states.q_QND[query_head, row].double() * states.scaling).tolist()
        for query_head in (2 * head, 2 * head + 1)
    ]


def slow_masses(states: LayerStates, window_size: int | None) -> list[list[float]]:
    """Attention each token receives, per head: summed over all queries, or averaged over the last ``window_size``."""
    first = 0 if window_size is None else NUM_TOKENS - window_size
    per_head = []
    for head in range(NUM_HEADS):
        masses = [0.0] * NUM_TOKENS
        for row in range(first, NUM_TOKENS):
            for logits in slow_logits(states, head, row):
                exps = [math.exp(logit) for logit in logits]
                total = sum(exps) * 2 * (window_size or 1)
                for column, exp in enumerate(exps):
                    masses[column] += exp / total
        per_head.append(masses)
    return per_head


def slow_cosine(x: torch.Tensor, y: torch.Tensor) -> float:
    """Of two vectors."""
    x, y = x.double(), y.double()
    return float(x @ y) / math.sqrt(float(x @ x) * float(y @ y))


def slow_weights(
    kind: str, sigma: float | None, keys: list[torch.Tensor], masses: list[float], target: int
) -> list[float]:
    """Each member's share of its set; ``target`` is the index of the member that stays."""
    weights = [1.0] * len(keys)
    if "gaussian" in kind:
        distances = [float((keys[target] - key).norm()) for key in keys]
        width = sigma or sum(distances) / len(keys) / math.sqrt(2)
        weights = [math.exp(-(d**2) / (2 * width**2)) if d else 1.0 for d in distances]
    if "attention" in kind:
        weights = [weight * mass for weight, mass in zip(weights, masses, strict=True)]
    return [weight / sum(weights) for weight in weights]


def weighted_sum(weights: list[float], vectors: list[torch.Tensor]) -> torch.Tensor:
    """Σ w·x."""
    return torch.stack([w * x for w, x in zip(weights, vectors, strict=True)]).sum(dim=0)


def assert_slots(kept, slots: list[Slot], dtype: torch.dtype, has_log_mass: bool) -> None:
    """``kept`` holds exactly these slots, as exactly as ``dtype`` can."""
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.04, "rtol": 0.01}
    assert kept.position_S.tolist() == [position for position, _, _, _ in slots]
    torch.testing.assert_close(kept.k_SD.double(), torch.stack([k for _, k, _, _ in slots]), **tolerance)
    torch.testing.assert_close(kept.v_SD.double(), torch.stack([v for _, _, v, _ in slots]), **tolerance)
    assert (kept.log_mass_S is not None) is has_log_mass
    if has_log_mass:
        expected_S = torch.tensor([log_mass for _, _, _, log_mass in slots])
        torch.testing.assert_close(kept.log_mass_S, expected_S, atol=1e-4, rtol=1e-4)

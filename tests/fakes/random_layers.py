"""Random layers for policies, and what a policy kept of them, head by head.

Shapes: Q query heads, H KV heads, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvmerger.budget import Budget
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.policies.base import Policy
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import Evidence, LayerStates

NUM_TOKENS, NUM_QUERY_HEADS, NUM_KV_HEADS, HEAD_DIM = 120, 4, 2, 8
RAGGED = Budget((30, 45), 0.3)
DTYPES = [torch.float32, torch.bfloat16]


def random_states(seed: int, dtype: torch.dtype = torch.float32, num_tokens: int = NUM_TOKENS) -> LayerStates:
    generator = torch.Generator().manual_seed(seed)
    q_QND, k_HND, v_HND = (
        torch.randn(heads, num_tokens, HEAD_DIM, generator=generator).to(dtype)
        for heads in (NUM_QUERY_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)
    )
    return LayerStates(q_QND, k_HND, v_HND, 0.5)


def evidence_for(policy: Policy, states: LayerStates) -> Evidence:
    evidence = Evidence(states, 1, 4, prompt_seed=5)
    evidence.capture(policy.needs())
    return evidence


def compressed(policy: Policy, states: LayerStates, budget: Budget = RAGGED) -> LayerCache:
    layer = LayerCache.from_dense(states.k_HND, states.v_HND)
    return policy.compress(layer, evidence_for(policy, states), budget)


def kept_positions(policy: Policy, states: LayerStates, budget: Budget = RAGGED) -> list[list[int]]:
    kept = compressed(policy, states, budget)
    return [positions.tolist() for positions in kept.position_S.split(kept.num_slots_H)]


def assert_scores_and_choice(
    policy: ScoringPolicy,
    states: LayerStates,
    expected_HN: Sequence[Sequence[float]],
    tolerance: float = 1e-5,
) -> None:
    """The scores are the reference's, and of each head the right number of the best is kept (but for rounding)."""
    scores_HN = policy.scores(evidence_for(policy, states)).double()
    reference_HN = torch.tensor(expected_HN, dtype=torch.float64)
    torch.testing.assert_close(scores_HN, reference_HN, atol=tolerance, rtol=tolerance)
    for head, positions in enumerate(kept_positions(policy, states)):
        assert len(positions) == RAGGED.num_slots_H[head]
        is_kept_N = torch.zeros(reference_HN.shape[1], dtype=torch.bool)
        is_kept_N[positions] = True
        worst_kept, best_evicted = reference_HN[head, is_kept_N].min(), reference_HN[head, ~is_kept_N].max()
        assert worst_kept >= best_evicted - tolerance * (1 + abs(best_evicted))


def attention_matrix(states: LayerStates) -> list[list[list[float]]]:
    """Causal attention, query by query, in double precision: (Q, N, N)."""
    group = states.q_QND.shape[0] // states.k_HND.shape[0]
    matrix_QNN = []
    for query_head, q_ND in enumerate(states.q_QND.double()):
        k_ND = states.k_HND[query_head // group].double()
        rows = []
        for token, query in enumerate(q_ND):
            seen = [float(query @ k_ND[key]) * states.scaling for key in range(token + 1)]
            exps = torch.tensor(seen, dtype=torch.float64).softmax(dim=0).tolist()
            rows.append(exps + [0.0] * (len(q_ND) - token - 1))
        matrix_QNN.append(rows)
    return matrix_QNN


def as_lists(tensor: Tensor) -> list:
    """Numbers as Python floats, so that a reference computes without tensors."""
    return tensor.double().tolist()

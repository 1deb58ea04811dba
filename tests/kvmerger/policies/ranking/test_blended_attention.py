"""The blend against its description, token by token, and at both ends of its share."""

import pytest
import torch

from kvmerger.budget import Budget
from kvmerger.policies.base import PolicyError
from kvmerger.policies.ranking.blended_attention import BlendedAttention
from kvmerger.policies.ranking.snapkv import SnapKV
from kvmerger.prefill.evidence import ATTENTION_MASS, Evidence, LayerStates, window_attention

NUM_TOKENS, WINDOW = 90, 16


def evidence_of(policy: BlendedAttention, seed: int, dtype: torch.dtype = torch.float32) -> Evidence:
    generator = torch.Generator().manual_seed(seed)
    q_QND, k_HND, v_HND = (
        torch.randn(heads, NUM_TOKENS, 8, generator=generator).to(dtype) for heads in (4, 2, 2)
    )
    evidence = Evidence(LayerStates(q_QND, k_HND, v_HND, 0.5), 1, 4, 0)
    evidence.capture(policy.needs())
    return evidence


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_scores_are_the_two_attentions_over_their_means(share: float, dtype: torch.dtype, seed: int) -> None:
    policy = BlendedAttention(WINDOW, 3, mass_share=share)
    evidence = evidence_of(policy, seed, dtype)
    scores_HN = policy.scores(evidence)
    mass_HN = evidence.get(ATTENTION_MASS).double()
    attention_QN = evidence.get(window_attention(WINDOW)).double()
    before = NUM_TOKENS - WINDOW
    for head in range(2):
        pooled = [
            sum(
                float(attention_QN[query, near])
                for query in (2 * head, 2 * head + 1)
                for near in range(max(0, token - 1), min(before, token + 2))
            )
            for token in range(before)
        ]
        mass = [float(mass_HN[head, token]) for token in range(before)]
        for token in range(before):
            window_part = pooled[token] / (sum(pooled) / before)
            mass_part = mass[token] / (sum(mass) / before)
            expected = (1 - share) * window_part + share * mass_part
            assert float(scores_HN[head, token]) == pytest.approx(expected, rel=1e-4)
        assert bool(scores_HN[head, before:].isinf().all())


def test_without_mass_it_selects_as_snapkv_does(seed: int) -> None:
    policy = BlendedAttention(WINDOW, 3, mass_share=0.0)
    evidence = evidence_of(policy, seed)
    budget = Budget((40, 55), 0.5)
    assert torch.equal(policy.select(evidence, budget), SnapKV(WINDOW, 3).select(evidence, budget))


@pytest.mark.parametrize("share", [-0.1, 1.1, True])
def test_a_share_outside_its_range_is_refused(share: object) -> None:
    with pytest.raises(PolicyError, match="mass_share"):
        BlendedAttention(mass_share=share)  # type: ignore[arg-type]

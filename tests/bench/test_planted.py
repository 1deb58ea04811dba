"""Planted keys do what benchmarks want them for: the paper's threshold keeps about half."""

import pytest
import torch

from bench.planted import planted_keys
from kvmerger.budget import Budget
from kvmerger.building import build
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.prefill.evidence import Evidence, LayerStates


@pytest.mark.parametrize(
    ("num_heads", "head_dim", "query_scale"), [(3, 64, 0.1), (8, 128, 1.0), (2, 64, 3.0)]
)
def test_the_papers_threshold_keeps_about_half(
    num_heads: int, head_dim: int, query_scale: float, seed: int
) -> None:
    num_tokens = 2048
    generator = torch.Generator().manual_seed(seed)
    k_HND = planted_keys(num_heads, num_tokens, head_dim, 0.5, seed, torch.bfloat16)
    q_QND = (query_scale * torch.randn(k_HND.shape, generator=generator)).to(k_HND)
    policy = build("kvmerger_paper", {})
    evidence = Evidence(LayerStates(q_QND, k_HND, k_HND, head_dim**-0.5), 5, 30, prompt_seed=0)
    evidence.capture(policy.needs())
    layer = LayerCache.from_dense(k_HND, k_HND)
    kept = policy.compress(layer, evidence, Budget.uniform(num_tokens // 2, num_heads, 0.5))
    assert 0.45 <= kept.num_slots / layer.num_slots <= 0.55


def test_a_share_that_cannot_be_planted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 0\.1"):
        planted_keys(1, 8, 4, kept=0.1)

"""R-KV against its definition taken key by key, and what its redundancy says of copies."""

from __future__ import annotations

import pytest
import torch

from kvmerger.policies.ranking import rkv
from kvmerger.policies.ranking.rkv import RKV
from kvmerger.prefill.evidence import LayerStates
from tests.fakes.random_layers import DTYPES, as_lists, assert_scores_and_choice, random_states
from tests.slow.ranking.rkv import scores


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_are_those_of_the_slow_definition(
    dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rkv, "_MOST_COSINES", 150)  # blocks that do not divide the tokens
    states = random_states(seed, dtype)
    states.k_HND[:, 5::7] = states.k_HND[:, 4::7][:, : states.k_HND[:, 5::7].shape[1]]  # copies
    policy = RKV(window_size=4, kernel_size=3, importance=0.3, threshold=0.5)
    keys, queries = as_lists(states.k_HND), as_lists(states.q_QND)
    group = len(queries) // len(keys)
    expected = [
        scores(queries[head * group : (head + 1) * group], of_head, states.scaling, 4, 3, 0.3, 0.5) + [float("inf")] * 4
        for head, of_head in enumerate(keys)
    ]  # fmt: skip
    assert_scores_and_choice(policy, states, expected)


def test_of_three_copies_the_oldest_is_charged_twice_and_the_newest_never() -> None:
    copies = torch.eye(4)[[0, 0, 0, 1]]
    states = LayerStates(torch.empty(0), copies[None], copies[None], 1.0)
    charged = rkv._key_redundancy(states, 0.5)[0].log().tolist()
    assert charged[0] - charged[2] == pytest.approx(2 / 4, abs=1e-6)
    assert charged[1] - charged[2] == pytest.approx(1 / 4, abs=1e-6)
    assert charged[3] == pytest.approx(charged[2], abs=1e-6)


def test_keys_at_right_angles_leave_the_ranking_to_attention(seed: int) -> None:
    keys = torch.eye(16)[None]
    generator = torch.Generator().manual_seed(seed)
    states = LayerStates(torch.randn(1, 16, 16, generator=generator), keys, keys, 1.0)
    charged = rkv._key_redundancy(states, 0.5)
    torch.testing.assert_close(charged, torch.full_like(charged, 1 / 16))

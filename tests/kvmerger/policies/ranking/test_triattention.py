"""TriAttention against its formula taken pair by pair, and what must hold whatever the numbers are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kvmerger.policies.base import PolicyError
from kvmerger.policies.ranking.triattention import TriAttention, _trigonometric_scores
from kvmerger.prefill.evidence import LayerStates
from tests.fakes.random_layers import DTYPES, HEAD_DIM, assert_scores_and_choice, random_states
from tests.kvmerger.policies.ranking.test_expected_attention import ROPES, rotary_of
from tests.slow.ranking.triattention import scores, standardised

FIRST_PLACE = 11
"""Where the first token stands: the policy is told no positions, so none may matter."""
DISTANCES = [2**power for power in range(17)]


def pairs(x_XND: Tensor) -> Tensor:
    return torch.complex(*x_XND.double().chunk(2, dim=-1))


def angle(radians: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(radians), radians)


def channels(z_XNF: Tensor) -> Tensor:
    return torch.cat([z_XNF.real, z_XNF.imag], dim=-1).float()


def states_with_rope(seed: int, dtype: torch.dtype = torch.float32, kind: str = "default") -> LayerStates:
    """Queries that have a mean, for without one nothing would be expected of them."""
    states = random_states(seed, dtype)
    rotary = rotary_of(ROPES[kind], HEAD_DIM)
    q_QNF = pairs(states.q_QND) + 1.5
    turned_QNF = q_QNF * angle(place_of(states)[:, None] * rotary.inv_freq.double())
    return replace(states, q_QND=channels(turned_QNF).to(dtype), rotary=rotary)


def place_of(states: LayerStates) -> Tensor:
    return torch.arange(FIRST_PLACE, FIRST_PLACE + states.k_HND.shape[1], dtype=torch.float64)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_are_those_of_the_slow_formula(dtype: torch.dtype, normalise: bool, seed: int) -> None:
    states, window = states_with_rope(seed, dtype), 7
    radians_F, place_N = states.rotary.inv_freq.double(), place_of(states)
    back_NF = angle(-place_N[:, None] * radians_F)
    q = (pairs(states.q_QND) * back_NF)[:, -window:].tolist()
    k = (pairs(states.k_HND) * back_NF).tolist()
    places, group = [int(place) for place in place_N], len(q) // len(k)
    expected = []
    for head, keys in enumerate(k):
        of_group = [
            scores(queries, keys, radians_F.tolist(), places, places[-1], DISTANCES)
            for queries in q[head * group : (head + 1) * group]
        ]
        if normalise:
            of_group = [standardised(of_head) for of_head in of_group]
        expected.append([max(of_token) for of_token in zip(*of_group, strict=True)])
    # Angles of 65,536 radians come of fp32 frequencies.
    assert_scores_and_choice(TriAttention(window, normalise), states, expected, tolerance=1e-4)


def test_queries_alike_before_rope_find_their_mean_logit_over_the_distances(seed: int) -> None:
    states = states_with_rope(seed)
    radians_F, place_N = states.rotary.inv_freq.double(), place_of(states)
    same_Q1F = pairs(
        torch.randn(len(states.q_QND), 1, HEAD_DIM, generator=torch.Generator().manual_seed(seed))
    )
    alike_QNF = same_Q1F * angle(place_N[:, None] * radians_F)
    found_QN = _trigonometric_scores(replace(states, q_QND=channels(alike_QNF)), 5)
    k_QND = states.k_HND.repeat_interleave(len(states.q_QND) // len(states.k_HND), dim=0)
    expected_QN = torch.zeros_like(found_QN)
    for distance in DISTANCES:
        ahead_Q1D = channels(same_Q1F * angle((place_N[-1] + distance) * radians_F))
        expected_QN += (k_QND @ ahead_Q1D.transpose(1, 2))[:, :, 0] / len(DISTANCES)
    torch.testing.assert_close(found_QN, expected_QN, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", list(ROPES))
def test_where_the_text_stands_changes_nothing(kind: str, seed: int) -> None:
    states = states_with_rope(seed, kind=kind)
    further_F = angle(1000 * states.rotary.inv_freq.double())
    moved = replace(
        states,
        q_QND=channels(pairs(states.q_QND) * further_F),
        k_HND=channels(pairs(states.k_HND) * further_F),
    )
    here, there = (_trigonometric_scores(it, 9) for it in (states, moved))
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)


def test_a_window_longer_than_the_prompt_reads_all_of_it(seed: int) -> None:
    states = states_with_rope(seed)
    num_tokens = states.k_HND.shape[1]
    whole = _trigonometric_scores(states, num_tokens)
    assert torch.equal(whole, _trigonometric_scores(states, 10 * num_tokens))
    assert not torch.allclose(whole, _trigonometric_scores(states, num_tokens // 2), atol=1e-3)


@pytest.mark.parametrize(("name", "value"), [("window_size", 0), ("window_size", True), ("normalise", "no")])
def test_values_outside_their_domain_are_refused(name: str, value: object) -> None:
    with pytest.raises(PolicyError, match=f"triattention: {name}"):
        TriAttention(**{name: value})  # type: ignore[arg-type]

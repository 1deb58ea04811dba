"""Evidence against the whole attention matrix, which only a test of this size may build."""

import weakref
from itertools import pairwise

import pytest
import torch

from kvmerger.kernels import dispatch
from kvmerger.kernels.reference import prompt as prompt_reference
from kvmerger.prefill.evidence import (
    ATTENTION_MASS,
    KEY_NORMS,
    NEIGHBOUR_COSINES,
    Evidence,
    EvidenceError,
    LayerStates,
    Need,
    register_evidence,
    window_attention,
)


def random_states(seed: int, dtype: torch.dtype, num_tokens: int = 157) -> LayerStates:
    generator = torch.Generator().manual_seed(seed)
    q_QND, k_HND, v_HND = (
        torch.randn(heads, num_tokens, 8, generator=generator).to(dtype) for heads in (6, 2, 2)
    )
    return LayerStates(q_QND, k_HND, v_HND, 0.35)


def whole_attention(states: LayerStates) -> torch.Tensor:
    """(Q, N, N) in float64."""
    k_QND = states.k_HND.double().repeat_interleave(3, dim=0)
    scores = torch.einsum("qnd,qmd->qnm", states.q_QND.double(), k_QND) * states.scaling
    mask = torch.ones(scores.shape[1:], dtype=torch.bool).tril()
    return scores.where(mask, -torch.inf).softmax(dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("max_block_scores", [1, 3000, 2**24])
def test_attention_mass_is_the_column_sum(
    max_block_scores: int, dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_reference, "_MAX_BLOCK_SCORES", max_block_scores)
    states = random_states(seed, dtype)
    evidence = Evidence(states, 0, 1, 0)
    evidence.capture({ATTENTION_MASS})
    expected_HN = whole_attention(states).sum(dim=1).view(2, 3, -1).mean(dim=1)
    torch.testing.assert_close(evidence.get(ATTENTION_MASS).double(), expected_HN, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_tokens", [0, 1, 2])
def test_the_shortest_prompts_have_a_mass(num_tokens: int, seed: int) -> None:
    states = random_states(seed, torch.float32, num_tokens)
    evidence = Evidence(states, 0, 1, 0)
    evidence.capture({ATTENTION_MASS, window_attention(4)})
    mass_HN = evidence.get(ATTENTION_MASS)
    torch.testing.assert_close(mass_HN.sum(dim=1), torch.full((2,), float(num_tokens)))
    assert evidence.get(window_attention(4)).shape == (6, num_tokens)


@pytest.mark.parametrize("window_tokens", [1, 16, 500])
def test_window_attention_is_the_mean_of_the_last_rows(window_tokens: int, seed: int) -> None:
    states = random_states(seed, torch.float32)
    evidence = Evidence(states, 0, 1, 0)
    evidence.capture({window_attention(window_tokens)})
    expected_QN = whole_attention(states)[:, -window_tokens:].mean(dim=1)
    torch.testing.assert_close(
        evidence.get(window_attention(window_tokens)).double(), expected_QN, atol=1e-5, rtol=1e-5
    )


def test_norms_and_cosines_need_no_declaration(seed: int) -> None:
    states = random_states(seed, torch.float32)
    evidence = Evidence(states, 0, 1, 0)
    evidence.capture(set())
    k_HND = states.k_HND.double()
    expected = torch.stack(
        [torch.stack([a @ b / (a.norm() * b.norm()) for a, b in pairwise(head)]) for head in k_HND]
    )
    torch.testing.assert_close(evidence.get(NEIGHBOUR_COSINES).double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        evidence.get(KEY_NORMS).double(), k_HND.square().sum(-1).sqrt(), atol=1e-5, rtol=1e-5
    )


def test_a_piece_is_computed_once_for_all_policies(seed: int) -> None:
    evidence = Evidence(random_states(seed, torch.float32), 0, 1, 0)
    assert evidence.get(KEY_NORMS) is evidence.get(KEY_NORMS)


def test_undeclared_queries_are_gone(seed: int) -> None:
    evidence = Evidence(random_states(seed, torch.float32), 0, 1, 0)
    evidence.capture({window_attention(4)})
    with pytest.raises(EvidenceError, match="needs"):
        evidence.get(ATTENTION_MASS)


def test_unknown_evidence_is_named() -> None:
    with pytest.raises(EvidenceError, match="attention_mass"):
        Evidence(random_states(0, torch.float32), 0, 1, 0).get(Need("attention_moss"))


def test_a_policys_own_evidence_can_be_registered(seed: int) -> None:
    @register_evidence("test_value_norms", reads_queries=False)
    def value_norms(states: LayerStates, power: float) -> torch.Tensor:
        return states.v_HND.float().norm(dim=-1) ** power

    states = random_states(seed, torch.float32)
    found = Evidence(states, 0, 1, 0).get(Need("test_value_norms", (2.0,)))
    torch.testing.assert_close(found, states.v_HND.square().sum(-1))
    with pytest.raises(EvidenceError, match="already registered"):
        register_evidence("attention_mass", reads_queries=False)(value_norms)


def test_what_does_not_fit_is_nobodys_error_until_the_last_try(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def does_not_fit(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(dispatch, "attention_mass", does_not_fit)
    evidence = Evidence(random_states(seed, torch.float32), 0, 1, 0)
    with pytest.raises(torch.OutOfMemoryError, match="too much"):
        evidence.capture({ATTENTION_MASS}, is_last_try=False)
    evidence.capture({ATTENTION_MASS, window_attention(4)})
    assert evidence.get(window_attention(4)).shape[0] == 6
    with pytest.raises(
        EvidenceError, match=r"attention_mass.* does not fit into the device's memory: too much"
    ):
        evidence.get(ATTENTION_MASS)


def test_an_error_of_prefill_says_where_and_keeps_no_queries_alive(seed: int) -> None:
    @register_evidence("test_that_raises", reads_queries=True)
    def raises(states: LayerStates) -> torch.Tensor:
        seen.append(weakref.ref(states.q_QND))
        raise ValueError("mine")

    seen: list[weakref.ref] = []
    evidence = Evidence(random_states(seed, torch.float32), 0, 1, 0)
    evidence.capture({Need("test_that_raises")})
    assert seen[0]() is None
    with pytest.raises(ValueError, match="mine") as caught:
        evidence.get(Need("test_that_raises"))
    assert any("in raises" in note for note in caught.value.__notes__)


def test_parameters_that_have_no_order_are_as_good_as_others(seed: int) -> None:
    evidence = Evidence(random_states(seed, torch.float32), 0, 1, 0)
    needs = {window_attention(4), Need("window_attention", ("four",)), Need("window_attention")}
    evidence.capture(needs)
    assert evidence.get(window_attention(4)).shape[0] == 6
    for wrong in needs - {window_attention(4)}:
        with pytest.raises(TypeError):
            evidence.get(wrong)

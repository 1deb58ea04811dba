"""Keys of pairs: the closed form, where it breaks, and slots that count for their tokens."""

import pytest
import torch

from kvmerger.merging.pair_weights import PAIR_WEIGHTS, left_share, pair_weights
from kvmerger.merging.pairs import Round
from tests.slow.pairs import slow_share


def share_of(kind: str, *numbers: float) -> float:
    return float(left_share(kind, *(torch.tensor([it], dtype=torch.float64) for it in numbers)))  # type: ignore[arg-type]


def test_for_little_attention_all_kinds_come_to_attention_times_deviation() -> None:
    assert share_of("linear", 0.01, 0.002, 1.0, 3.0) == pytest.approx(0.625)
    assert share_of("hessian", 0.01, 0.002, 1.0, 3.0) == pytest.approx(0.622, abs=5e-4)
    assert share_of("diagonal", 0.01, 0.002, 1.0, 3.0) == pytest.approx(0.625, abs=5e-3)


def test_at_equal_deviations_the_closed_form_is_the_attentions_share(seed: int) -> None:
    alpha1, alpha2, deviation = (
        torch.rand(3, generator=torch.Generator().manual_seed(seed)) * 0.2 + 1e-3
    ).tolist()
    assert share_of("hessian", alpha1, alpha2, deviation, deviation) == pytest.approx(
        alpha1 / (alpha1 + alpha2)
    )


def test_much_attention_turns_the_closed_form_away_from_the_heavy_key() -> None:
    assert share_of("hessian", 0.45, 0.02, 1.0, 3.0) == pytest.approx(0.29, abs=5e-3)
    assert share_of("linear", 0.45, 0.02, 1.0, 3.0) == pytest.approx(0.88, abs=5e-3)


@pytest.mark.parametrize("alphas", [(0.25, 0.25), (0.4, 0.1), (0.6, 0.39)], ids=str)
def test_where_the_closed_form_has_no_answer_the_linear_one_gives_it(alphas: tuple[float, float]) -> None:
    share = share_of("hessian", *alphas, 1.0, 1.0)
    assert share == pytest.approx(alphas[0] / sum(alphas), rel=1e-6)


@pytest.mark.parametrize("kind", PAIR_WEIGHTS)
def test_shares_are_shares_and_the_written_out_ones(kind: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    alpha_2P, d_2P = (
        torch.rand(2, 300, generator=generator).double() * 0.5,
        torch.rand(2, 300, generator=generator).double(),
    )
    share_P = left_share(kind, *alpha_2P, *d_2P)  # type: ignore[arg-type]
    assert bool(((share_P >= 0) & (share_P <= 1)).all())
    expected = [slow_share(kind, *it) for it in zip(*alpha_2P.tolist(), *d_2P.tolist(), strict=True)]
    torch.testing.assert_close(share_P, torch.tensor(expected, dtype=torch.float64))


def test_values_that_are_the_output_leave_attention_to_decide() -> None:
    for kind in PAIR_WEIGHTS:
        assert share_of(kind, 0.03, 0.01, 0.0, 0.0) == pytest.approx(0.75)


@pytest.mark.parametrize("max_length", [float("inf"), 5.0])
def test_the_output_is_the_published_one(max_length: float, seed: int) -> None:
    """Σ exp(q·k) v ÷ Σ l exp(q·k), v and l summed and l clipped as told, is attention with v ÷ l and log l on the logits."""
    generator = torch.Generator().manual_seed(seed)
    v_HND = torch.randn(2, 12, 6, generator=generator)
    alpha_HN = torch.rand(2, 12, generator=generator).double() * 0.05
    # Tokens 2 to 8 of the first head become one slot.
    rounds = [Round(torch.tensor([2]), torch.tensor([right])) for right in range(3, 9)]
    paired = pair_weights("hessian", rounds, alpha_HN, v_HND, torch.zeros(2, 6), max_length)
    left_S = paired.first_F.unique()
    assert left_S.tolist() == [0, 1, 2, *range(9, 24)]
    length_S = paired.length_F[left_S]
    assert float(length_S[2]) == min(7, max_length)
    if max_length == float("inf"):
        assert float(paired.length_F[left_S].sum()) == 24, "a token is not counted"
    sum_SD = torch.stack(
        [v_HND.flatten(0, 1)[paired.first_F == first].sum(dim=0) for first in left_S]
    ).double()
    logit_S = torch.randn(len(left_S), generator=generator).double()
    published_D = (logit_S.exp()[:, None] * sum_SD).sum(dim=0) / (length_S * logit_S.exp()).sum()
    ours_D = torch.softmax(logit_S + length_S.log(), dim=0) @ (sum_SD / length_S[:, None])
    torch.testing.assert_close(ours_D, published_D)
    weight_S = torch.zeros(24, dtype=torch.float64).index_add_(0, paired.first_F, paired.weight_F)
    torch.testing.assert_close(weight_S[left_S], torch.ones_like(logit_S))


def test_merges_whose_keys_weigh_otherwise_are_counted() -> None:
    alpha_HN = torch.tensor([[0.45, 0.02, 0.01, 0.01], [0.01, 0.01, 0.01, 0.01]], dtype=torch.float64)
    v_HND = torch.tensor([[1.0, 3.0, 1.0, 1.0]] * 2)[..., None]
    rounds = [Round(torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5]))]
    for kind, expected in (("hessian", [1, 0]), ("linear", [0, 0])):
        paired = pair_weights(kind, rounds, alpha_HN, v_HND, torch.zeros(2, 1))  # type: ignore[arg-type]
        assert paired.num_apart_H.tolist() == expected

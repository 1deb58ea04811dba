"""The most similar kept token on CUDA: float64's, of heads that keep any number of tokens, in blocks of every size."""

import pytest
import torch

from kvmerger.kernels import dispatch
from kvmerger.kernels.reference import nearest as nearest_reference
from tests.kvmerger.kernels.both.nearest import (  # noqa: F401  (collected here)
    FIELDS,
    MANY,
    TOLERANCE,
    check_nearest,
    random_keys,
    test_a_heads_bits_are_its_own,
    test_the_most_similar_kept_token_is_float64s,
)

pytest.importorskip("triton")

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> str:
    return "cuda"


@pytest.mark.parametrize(FIELDS, MANY, ids=str)
def test_it_is_float64s_among_many(num_tokens: int, head_dim: int, dtype: torch.dtype, seed: int) -> None:
    check_nearest(num_tokens, head_dim, dtype, seed, "cuda")


def test_dispatch_takes_the_triton_path(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("the reference was called on a GPU")

    monkeypatch.setattr(nearest_reference, "most_similar_kept", forbidden)
    k_HND, is_kept_HN = random_keys(seed, 40, 64, torch.bfloat16)
    target_HN, _ = dispatch.most_similar_kept(k_HND.cuda(), is_kept_HN.cuda())
    assert target_HN.is_cuda


def test_any_tiling_finds_the_same(seed: int) -> None:
    from kvmerger.kernels.triton.nearest import Tiling, most_similar_kept

    k_HND, is_kept_HN = (it.cuda() for it in random_keys(seed, 500, 128, torch.bfloat16))
    expected = most_similar_kept(k_HND, is_kept_HN)
    for dropped, kept in ((16, 16), (64, 128), (128, 128)):
        found = most_similar_kept(k_HND, is_kept_HN, Tiling(dropped, kept, num_warps=4, num_stages=2))
        torch.testing.assert_close(found[1], expected[1], atol=TOLERANCE, rtol=0)
        assert (
            found[0] == expected[0]
        ).float().mean() > 0.99  # rounding decides between what is nearly equal

"""The Triton kernels on CUDA: the reference's numbers, bits that are a row's own, and the path the engine takes."""

import pytest
import torch

from kvmerger.decoding.ragged_cache import RaggedCache
from kvmerger.kernels import dispatch
from kvmerger.kernels.reference import ragged as reference
from kvmerger.kernels.reference.ragged import RaggedAttention
from tests.kvmerger.kernels.both.ragged_cases import (
    FEW,
    FIELDS,
    MANY,
    TOLERANCE,
    arguments,
    check_against_both,
    check_any_tiling,
    check_bounds_are_filled_with_zeros,
    check_changed_rows_are_followed,
    check_rows_do_not_see_each_other,
    random_case,
)

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(FIELDS, [*FEW, *MANY], ids=str)
def test_equals_the_reference_and_float64(
    num_groups: int, head_dim: int, num_tokens: int, dtype: torch.dtype, seed: int
) -> None:
    check_against_both(
        random_case(
            seed,
            num_groups=num_groups,
            head_dim=head_dim,
            num_tokens=num_tokens,
            dtype=dtype,
            device="cuda",
            longest=700,
        )
    )


@pytest.mark.parametrize("longest", [5000, 20000])
def test_long_prefixes(longest: int, seed: int) -> None:
    for num_tokens in (1, 33):
        check_against_both(
            random_case(
                seed,
                num_groups=4,
                head_dim=128,
                num_tokens=num_tokens,
                dtype=torch.bfloat16,
                device="cuda",
                longest=longest,
            )
        )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 4, 65])
@pytest.mark.parametrize("num_groups", [1, 3, 4])
def test_a_rows_bits_do_not_depend_on_its_neighbours(
    num_groups: int, num_tokens: int, dtype: torch.dtype, seed: int
) -> None:
    check_rows_do_not_see_each_other(
        random_case(
            seed, num_groups=num_groups, num_tokens=num_tokens, dtype=dtype, device="cuda", longest=3000
        )
    )


@pytest.mark.parametrize("num_tokens", [1, 9])
def test_any_tiling_gives_the_same_numbers(num_tokens: int, seed: int) -> None:
    check_any_tiling(
        random_case(
            seed, num_heads=1, head_dim=16, num_tokens=num_tokens, dtype=torch.bfloat16, device="cuda"
        )
    )


@pytest.mark.parametrize("num_tokens", [1, 17])
def test_changed_rows_are_followed(num_tokens: int, seed: int) -> None:
    check_changed_rows_are_followed(random_case(seed, num_tokens=num_tokens, device="cuda"))


@pytest.mark.parametrize("num_tokens", [1, 17])
def test_masses_behind_a_rows_end_are_zeros(num_tokens: int, seed: int) -> None:
    check_bounds_are_filled_with_zeros(random_case(seed, num_tokens=num_tokens, device="cuda"))


def test_a_cache_on_the_device_takes_the_triton_path(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two extends through `RaggedCache`, with the reference forbidden while the engine's own call runs."""
    case = random_case(seed, num_tokens=3, dtype=torch.bfloat16, device="cuda")
    prefixes = [None if prefix is None else (prefix,) for prefix in case.layer.prefix_R]
    cache = RaggedCache(prefixes, [500] * len(prefixes), tail_capacity=8)
    k_RHTD, v_RHTD = (torch.randn_like(case.layer.tail_k_RHCD[:, :, :3]) for _ in range(2))
    for num_new_R in (case.layer.num_new_R, (1,) * 6 + (0, 1)):
        layer = cache.append(0, k_RHTD, v_RHTD, num_new_R)
        assert layer.device_rows is not None
        q_RQTD = torch.randn_like(case.q_RQTD)
        expected = reference.ragged_attention(q_RQTD, layer, case.scaling)
        with monkeypatch.context() as patch:
            patch.setattr(reference, "ragged_attention", _forbidden)
            ours = dispatch.ragged_attention(q_RQTD, layer, case.scaling)
        torch.testing.assert_close(
            ours.out_RTQD, expected.out_RTQD, atol=TOLERANCE[torch.bfloat16], rtol=TOLERANCE[torch.bfloat16]
        )
        cache.advance(num_new_R)


def _forbidden(*_: object, **__: object) -> RaggedAttention:
    raise AssertionError("the reference was called on a GPU")


def test_head_sizes_that_triton_cannot_take_get_the_reference(seed: int) -> None:
    case = random_case(seed, head_dim=20, dtype=torch.bfloat16, device="cuda")
    ours, theirs = dispatch.ragged_attention(*arguments(case)), reference.ragged_attention(*arguments(case))
    assert torch.equal(ours.out_RTQD, theirs.out_RTQD)

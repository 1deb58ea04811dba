"""The prompt's own attention: right on any device, and calls torch's operators as this torch declares them."""

import pytest
import torch
from torch.nn.attention import SDPBackend

from kvmerger.kernels import prompt_attention
from tests.kvmerger.kernels.both.mass_cases import check_prompt_attention, random_prompt


@pytest.mark.parametrize("backend", prompt_attention._KERNELS, ids=str)
@pytest.mark.parametrize("num_groups", [1, 4])
def test_every_operator_takes_our_arguments_and_tells_its_log_sum_exp(
    backend: SDPBackend, num_groups: int
) -> None:
    """On the meta device: what CUDA would be asked for, without it. Private operators may change with torch."""
    if backend == SDPBackend.EFFICIENT_ATTENTION and num_groups > 1:
        pytest.skip("it takes no grouped heads, and is not chosen for them")
    q_BQTD = torch.empty(1, 2 * num_groups, 96, 64, dtype=torch.bfloat16, device="meta")
    k_BHTD = torch.empty(1, 2, 96, 64, dtype=torch.bfloat16, device="meta")
    out_BQTD, lse_BQX = prompt_attention._KERNELS[backend](q_BQTD, k_BHTD, k_BHTD, 0.1)
    assert out_BQTD.shape == q_BQTD.shape
    assert lse_BQX.dtype == torch.float32 and lse_BQX.shape[:2] == q_BQTD.shape[:2] and lse_BQX.shape[2] >= 96


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 2, 130])
def test_equals_float64(num_tokens: int, dtype: torch.dtype, seed: int) -> None:
    lse_QN = check_prompt_attention(random_prompt(seed, num_tokens, 2, 3, 16, dtype, "cpu"))
    assert lse_QN is None, "a CPU's kernel is asked for the output alone"

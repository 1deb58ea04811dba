"""Random prompts for attention mass on any device, a float64 loop over single queries, and what kernels must agree with.

Used under Triton's interpreter on the CPU and, unchanged, on CUDA; both run `FEW`, CUDA also `MANY`.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.kernels import prompt_attention
from kvmerger.kernels.reference import prompt as prompt_reference
from tests.kvmerger.kernels.both.poison import poisoned_memory

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# Rounding of fp32 sums, and of scores that tensor cores add up in their own way.
TOLERANCE = 5e-5
LSE_TOLERANCE = 5e-5
OUT_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}  # torch rounds probabilities
LOUDNESS = 3.0
"""Queries are this much louder than keys, so that attention is far from uniform."""

FIELDS = ("num_tokens", "num_heads", "num_groups", "head_dim", "dtype")
# Prompt tokens, KV heads, query heads of each, head size, dtype. Blocks have 32, 64 or 128 tokens.
FEW = [
    (1, 2, 1, 16, F32),
    (2, 1, 4, 64, BF16),
    (33, 3, 3, 64, BF16),
    (64, 1, 8, 16, F32),
    (129, 2, 4, 128, BF16),
    (150, 1, 7, 80, F16),
    (200, 2, 1, 16, BF16),
]
MANY = [
    *itertools.product((1, 31, 128, 129, 700), (2,), (1, 3, 4, 8), (64, 128), (F32, BF16, F16)),
    *itertools.product((65, 1500), (3,), (2, 5, 7, 16), (16, 80, 96, 256), (F32, BF16)),
]
LONG = [(6001, 2, 4, 128, BF16), (20000, 1, 2, 128, BF16), (4100, 1, 3, 64, F32)]
WINDOWS = (1, 16, 64, 100_000)


@dataclass(frozen=True)
class Prompt:
    """Queries (Q, N, D) and keys (H, N, D) of one layer, strided as a model's projections leave them."""

    q_QND: Tensor
    k_HND: Tensor
    scaling: float


def random_prompt(
    seed: int,
    num_tokens: int,
    num_heads: int,
    num_groups: int,
    head_dim: int,
    dtype: torch.dtype,
    device: str,
) -> Prompt:
    """Fresh numbers; the last tokens' queries look at the first keys, so that early columns matter late."""
    generator = torch.Generator().manual_seed(seed)
    q_NQD = torch.randn(num_tokens, num_heads * num_groups, head_dim, generator=generator) * LOUDNESS
    k_NHD = torch.randn(num_tokens, num_heads, head_dim, generator=generator)
    q_NQD[num_tokens // 2 :] += k_NHD[:1].repeat_interleave(num_groups, dim=1)
    q_QND, k_HND = (tensor.to(dtype).to(device).transpose(0, 1) for tensor in (q_NQD, k_NHD))
    return Prompt(q_QND, k_HND, head_dim**-0.5)


def slow_column_sums(prompt: Prompt, first_query: int = 0) -> tuple[Tensor, Tensor]:
    """Column sums (Q, N) and log-sum-exps (Q, N) in float64, one query of one head at a time."""
    q_QND, k_HND = prompt.q_QND.double().cpu(), prompt.k_HND.double().cpu()
    sums_QN, lse_QN = (torch.zeros(q_QND.shape[:2], dtype=torch.float64) for _ in range(2))
    for query_head, q_ND in enumerate(q_QND):
        k_ND = k_HND[query_head * len(k_HND) // len(q_QND)]
        for token in range(len(q_ND)):
            scores_S = k_ND[: token + 1] @ q_ND[token] * prompt.scaling
            largest = float(scores_S.max())
            exps_S = (scores_S - largest).exp()
            lse_QN[query_head, token] = largest + math.log(float(exps_S.sum()))
            if token >= first_query:
                sums_QN[query_head, : token + 1] += exps_S / exps_S.sum()
    return sums_QN, lse_QN


def check_mass(prompt: Prompt, *, has_lse: bool) -> None:
    """Triton's mass is the loop's and the reference's; every query's attention is somewhere, and bits repeat."""
    from kvmerger.kernels.triton import prompt as triton_prompt

    sums_QN, expected_lse_QN = slow_column_sums(prompt)
    num_heads, num_tokens = prompt.k_HND.shape[:2]
    lse_QN = expected_lse_QN.float().to(prompt.q_QND.device) if has_lse else None
    with poisoned_memory():
        mass_HN, again_HN = (
            triton_prompt.attention_mass(prompt.q_QND, prompt.k_HND, prompt.scaling, lse_QN) for _ in range(2)
        )
    assert mass_HN.dtype == torch.float32 and torch.equal(mass_HN, again_HN)
    assert_mass(mass_HN, sums_QN.view(num_heads, -1, num_tokens).mean(dim=1))
    assert_mass(mass_HN, prompt_reference.attention_mass(prompt.q_QND, prompt.k_HND, prompt.scaling).double())
    torch.testing.assert_close(
        mass_HN.double().sum(dim=1).cpu(), torch.full((num_heads,), num_tokens).double(), rtol=1e-4, atol=0
    )
    # Recency-normalised: each column's mean over the queries that see it, down to the last, which one query sees.
    num_seeing_N = torch.arange(num_tokens, 0, -1)
    assert_mass(
        mass_HN.cpu() / num_seeing_N, sums_QN.view(num_heads, -1, num_tokens).mean(dim=1) / num_seeing_N
    )


def check_any_tiling(prompt: Prompt) -> None:
    """However the work is cut, the numbers are the same up to rounding; blocks of queries may be the longer ones."""
    from kvmerger.kernels.triton import prompt as triton_prompt

    arguments = (prompt.q_QND, prompt.k_HND, prompt.scaling)
    expected_HN = triton_prompt.attention_mass(*arguments)
    for columns, queries in ((16, 64), (64, 16), (128, 128)):
        tiling = triton_prompt.Tiling(columns, queries, num_warps=4, num_stages=2)
        with poisoned_memory():
            assert_mass(triton_prompt.attention_mass(*arguments, tiling=tiling), expected_HN)


def check_window(prompt: Prompt, window_tokens: int, *, has_lse: bool) -> None:
    """Triton's window attention is the loop's and the reference's."""
    from kvmerger.kernels.triton import prompt as triton_prompt

    num_tokens = prompt.k_HND.shape[1]
    first_query = max(0, num_tokens - window_tokens)
    sums_QN, expected_lse_QN = slow_column_sums(prompt, first_query)
    lse_QN = expected_lse_QN.float().to(prompt.q_QND.device) if has_lse else None
    arguments = (prompt.q_QND, prompt.k_HND, prompt.scaling, window_tokens)
    with poisoned_memory():
        window_QN = triton_prompt.window_attention(*arguments, lse_QN)
    assert_mass(window_QN, sums_QN / (num_tokens - first_query))
    assert_mass(window_QN, prompt_reference.window_attention(*arguments).double())


def check_log_sum_exp(prompt: Prompt) -> None:
    """Our own log-sum-exp is the loop's."""
    from kvmerger.kernels.triton import prompt as triton_prompt

    with poisoned_memory():
        lse_QN = triton_prompt.log_sum_exp(prompt.q_QND, prompt.k_HND, prompt.scaling)
    torch.testing.assert_close(
        lse_QN.double().cpu(), slow_column_sums(prompt)[1], atol=LSE_TOLERANCE, rtol=LSE_TOLERANCE
    )


def assert_mass(mass_XN: Tensor, expected_XN: Tensor) -> None:
    """Equal up to rounding, relative to the largest of each row and, where a number is not tiny, to itself."""
    mass_XN, expected_XN = mass_XN.double().cpu(), expected_XN.cpu()
    assert mass_XN.shape == expected_XN.shape
    allowed_XN = TOLERANCE * (expected_XN.amax(dim=1, keepdim=True) / 10 + expected_XN)
    is_wrong_XN = ~((mass_XN - expected_XN).abs() <= allowed_XN)  # a NaN is wrong as well
    worst = float(((mass_XN - expected_XN).abs() / allowed_XN).max())
    assert not is_wrong_XN.any(), (
        f"{int(is_wrong_XN.sum())} of {mass_XN.numel()}; worst {worst:.2g} times what is allowed"
    )


def check_prompt_attention(prompt: Prompt) -> Tensor | None:
    """Output is float64's and so is the log-sum-exp, where there is one; returns it."""
    v_HND = prompt.k_HND.roll(1, dims=1)
    out_BTQD, lse_QN = prompt_attention.causal_attention(
        prompt.q_QND[None], prompt.k_HND[None], v_HND[None], prompt.scaling
    )
    num_groups = len(prompt.q_QND) // len(prompt.k_HND)
    k_QND, v_QND = (
        tensor.double().cpu().repeat_interleave(num_groups, dim=0) for tensor in (prompt.k_HND, v_HND)
    )
    scores_QNN = prompt.q_QND.double().cpu() @ k_QND.transpose(1, 2) * prompt.scaling
    scores_QNN += torch.full(scores_QNN.shape[1:], float("-inf")).triu(1)
    tolerance = OUT_TOLERANCE[prompt.q_QND.dtype]
    expected_NQD = (scores_QNN.softmax(dim=2) @ v_QND).transpose(0, 1)
    torch.testing.assert_close(out_BTQD[0].double().cpu(), expected_NQD, atol=tolerance, rtol=tolerance)
    if lse_QN is not None:
        torch.testing.assert_close(
            lse_QN.double().cpu(), scores_QNN.logsumexp(dim=2), atol=LSE_TOLERANCE, rtol=LSE_TOLERANCE
        )
    return lse_QN

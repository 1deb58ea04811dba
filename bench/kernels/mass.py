"""Attention mass of a prompt at one layer, against the reference and against the attention that it comes on top of.

Floors: causal attention is two products over half the square, mass one, at the rate of a large matrix product.

Predicted for an H100 (790 TFLOP/s), 8B shape, 16,384 tokens, before it was run: one product is 1.1 TFLOP, so a floor of
1.4 ms for mass and 2.8 ms for attention. Mass also takes 4.3 G exponentials, 1.2 ms if the special-function units did
nothing else; products and exponentials overlap only between programs of one multiprocessor, so 2.3-3.0 ms is expected.
Attention: 4.0-4.5 ms by cuDNN, about 6 ms by flash 2. Prefill's attention with mass: 1.5-1.7 times plain (the promise:
below 2). Without torch's log-sum-exp it would be 2.2. The reference: 70-100 ms (fp32 products, six passes over fp32
scores, 512 blocks), 30 times ours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.kernels import timing
from bench.kernels.ragged import Heads
from bench.kernels.timing import Bench, Ceilings, Measured, first_call_s
from kvmerger.kernels import dispatch
from kvmerger.kernels.prompt_attention import causal_attention
from kvmerger.kernels.reference import prompt as prompt_reference

WINDOW_TOKENS = 64
MOST_REFERENCE_TOKENS = 16384  # beyond it the reference would take most of the time there is
BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)


def measure_mass(
    heads: Heads,
    num_tokens: int,
    ceilings: Ceilings,
    deadline_s: float,
    report: Callable[[Measured], None],
) -> None:
    """Report plain attention, attention with mass, and the parts."""
    q_1QND, k_1HND, v_1HND = make_prompt(heads, num_tokens)
    q_QND, k_HND, scaling = q_1QND[0], k_1HND[0], heads.head_dim**-0.5
    product_s = ceilings.floor_s(0, _product_flop(heads, num_tokens))
    case = f"{num_tokens} tokens"
    attention = Bench("prompt attention", case, 2 * product_s, deadline_s, report)
    mass = Bench("attention mass", case, product_s, deadline_s, report)

    def plain() -> Tensor:
        return F.scaled_dot_product_attention(
            q_1QND, k_1HND, v_1HND, is_causal=True, scale=scaling, enable_gqa=True
        )

    def with_mass() -> Tensor:
        _, lse_QN = causal_attention(q_1QND, k_1HND, v_1HND, scaling)
        return dispatch.attention_mass(q_QND, k_HND, scaling, lse_QN)

    chosen = attention.run("torch SDPA", lambda: plain, note=lambda _: _chosen(q_1QND, k_1HND, scaling))
    attention.run(
        "ours: with log-sum-exp", lambda: lambda: causal_attention(q_1QND, k_1HND, v_1HND, scaling)[0]
    )
    _, lse_QN = causal_attention(q_1QND, k_1HND, v_1HND, scaling)
    expected_HN = None
    if num_tokens <= MOST_REFERENCE_TOKENS:
        expected_HN = prompt_reference.attention_mass(q_QND, k_HND, scaling)
    attention.run(
        "ours: with mass",
        lambda: with_mass,
        expected=expected_HN,
        floor_s=3 * product_s,
        note=lambda s: f"{s / chosen.device_s:.2f} x plain" if chosen.device_s else "",
    )
    _measure_mass_alone(mass, (q_QND, k_HND, scaling), lse_QN, expected_HN, ceilings)


def _measure_mass_alone(
    mass: Bench,
    prompt: tuple[Tensor, Tensor, float],
    lse_QN: Tensor | None,
    expected_HN: Tensor | None,
    ceilings: Ceilings,
) -> None:
    """Report mass of queries, keys and their scaling, of the whole prompt and of its last tokens."""
    q_QND, k_HND, _ = prompt
    mass.run(
        "Triton, torch's log-sum-exp" + ("" if lse_QN is not None else ": it gave none"),
        lambda: lambda: dispatch.attention_mass(*prompt, lse_QN),
        expected=expected_HN,
    )
    mass.run(
        "Triton, both passes",
        lambda: lambda: dispatch.attention_mass(*prompt),
        expected=expected_HN,
        floor_s=2 * mass.floor_s,
    )
    # Keys are read once; a number in fp32 is written for each query head and token.
    num_query_heads, num_tokens, _ = q_QND.shape
    window_s = ceilings.floor_s(k_HND.nbytes + num_query_heads * num_tokens * torch.float32.itemsize)
    mass.run(
        f"Triton, last {WINDOW_TOKENS}",
        lambda: lambda: dispatch.window_attention(*prompt, WINDOW_TOKENS, lse_QN),
        expected=prompt_reference.window_attention(*prompt, WINDOW_TOKENS),
        floor_s=window_s,
    )
    if expected_HN is not None:
        mass.run("reference", lambda: lambda: prompt_reference.attention_mass(*prompt))
        mass.run(
            f"reference, last {WINDOW_TOKENS}",
            lambda: lambda: prompt_reference.window_attention(*prompt, WINDOW_TOKENS),
            floor_s=window_s,
        )


def measure_fp32_mass(
    heads: Heads,
    num_tokens: int,
    ceilings: Ceilings,
    deadline_s: float,
    report: Callable[[Measured], None],
) -> None:
    """Report mass in fp32, where our kernel has no tensor cores and the reference has cuBLAS: `dispatch` keeps the latter."""
    from kvmerger.kernels.triton import prompt as triton_prompt

    q_1QND, k_1HND, v_1HND = (tensor.float() for tensor in make_prompt(heads, num_tokens))
    scaling = heads.head_dim**-0.5
    arguments = (q_1QND[0], k_1HND[0], scaling)
    _, lse_QN = causal_attention(q_1QND, k_1HND, v_1HND, scaling)
    product_flop = _product_flop(heads, num_tokens)
    floor_s = product_flop / ceilings.fp32_flop_per_s
    bench = Bench("attention mass, fp32", f"{num_tokens} tokens", floor_s, deadline_s, report)
    expected_HN = prompt_reference.attention_mass(*arguments)
    bench.run(
        "Triton", lambda: lambda: triton_prompt.attention_mass(*arguments, lse_QN), expected=expected_HN
    )
    bench.run("reference", lambda: lambda: prompt_reference.attention_mass(*arguments))


def measure_backends(
    heads: Heads,
    num_tokens: int,
    ceilings: Ceilings,
    deadline_s: float,
    report: Callable[[Measured], None],
) -> None:
    """Report each of torch's kernels for a prompt's attention, and what a length it has not seen costs the first time."""
    q_1QND, k_1HND, v_1HND = make_prompt(heads, num_tokens)
    product_flop = _product_flop(heads, num_tokens)
    bench = Bench(
        "prompt attention", f"{num_tokens} tokens", ceilings.floor_s(0, 2 * product_flop), deadline_s, report
    )
    for backend in BACKENDS:

        def attend(num_used: int = num_tokens, backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(
                    q_1QND[:, :, :num_used],
                    k_1HND[:, :, :num_used],
                    v_1HND[:, :, :num_used],
                    is_causal=True,
                    scale=heads.head_dim**-0.5,
                    enable_gqa=True,
                )

        bench.run(
            f"torch {backend.name.lower()}",
            lambda attend=attend: attend,
            # 7 less: a length that nothing has been planned for, and no multiple of 8.
            note=lambda _, attend=attend: (
                f"a new length: {1000 * first_call_s(lambda: attend(num_tokens - 7)):.0f} ms, "
                f"then {1000 * first_call_s(lambda: attend(num_tokens - 7)):.0f} ms"
            ),
        )


def make_prompt(heads: Heads, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (1, Q, N, D), keys and values (1, H, N, D), strided as projections leave them."""
    sizes = (heads.num_heads * heads.num_groups, heads.num_heads, heads.num_heads)
    options = {"dtype": torch.bfloat16, "device": timing.DEVICE}
    q_1QND, k_1HND, v_1HND = (
        torch.randn(1, num_tokens, size, heads.head_dim, **options).transpose(1, 2) for size in sizes
    )
    return q_1QND, k_1HND, v_1HND


def _product_flop(heads: Heads, num_tokens: int) -> int:
    """Of one product that causal attention takes: queries by keys, or weights by values."""
    return heads.num_heads * heads.num_groups * num_tokens * (num_tokens + 1) * heads.head_dim


def _chosen(q_1QND: Tensor, k_1HND: Tensor, scaling: float) -> str:
    """The name of the kernel that torch takes by itself."""
    # Private, and the only way to ask which kernel torch would take.
    choice = torch._fused_sdp_choice(q_1QND, k_1HND, k_1HND, is_causal=True, scale=scaling, enable_gqa=True)
    return f"is {SDPBackend(choice).name.lower()}"

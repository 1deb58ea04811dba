"""A prompt's attention mass on CUDA: float64's numbers whoever has the log-sum-exp, and the path the engine takes."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from kvmerger.kernels import dispatch, prompt_attention
from kvmerger.kernels.reference import prompt as prompt_reference
from kvmerger.prefill.evidence import ATTENTION_MASS, Evidence, LayerStates, window_attention
from kvmerger.prefill.prefill import PrefillAttention
from tests.kvmerger.kernels.both.mass import (  # noqa: F401  (collected here)
    test_any_tiling_gives_the_same_mass,
    test_log_sum_exp_is_the_float64_loops,
    test_mass_is_the_float64_loops,
    test_window_attention_is_the_float64_loops,
)
from tests.kvmerger.kernels.both.mass_cases import (
    FIELDS,
    LONG,
    MANY,
    WINDOWS,
    Prompt,
    assert_mass,
    check_prompt_attention,
    random_prompt,
)
from tests.kvmerger.kernels.both.poison import poisoned_memory

triton_prompt = pytest.importorskip("kvmerger.kernels.triton.prompt", exc_type=ImportError)

pytestmark = pytest.mark.gpu
BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


@pytest.fixture
def device() -> str:
    return "cuda"


@pytest.mark.parametrize(FIELDS, [*MANY, *LONG], ids=str)
def test_mass_and_windows_are_those_of_whole_float64_rows(
    num_tokens: int, num_heads: int, num_groups: int, head_dim: int, dtype: torch.dtype, seed: int
) -> None:
    """Too many and too long for the loop; here the log-sum-exp comes from torch's own kernel."""
    prompt = random_prompt(seed, num_tokens, num_heads, num_groups, head_dim, dtype, "cuda")
    lse_QN = torch_lse(prompt)
    sums_QN = float64_column_sums(prompt, 0)
    arguments = (prompt.q_QND, prompt.k_HND, prompt.scaling)
    for lse in (lse_QN, None):
        with poisoned_memory():
            mass_HN = triton_prompt.attention_mass(*arguments, lse)
        assert_mass(mass_HN, sums_QN.unflatten(0, (num_heads, num_groups)).mean(dim=1))
        for window_tokens in WINDOWS:
            num_counting = min(window_tokens, num_tokens)
            with poisoned_memory():
                window_QN = triton_prompt.window_attention(*arguments, window_tokens, lse)
            assert_mass(window_QN, float64_column_sums(prompt, num_tokens - num_counting) / num_counting)


def torch_lse(prompt: Prompt) -> torch.Tensor | None:
    """As the engine gets it."""
    one = (prompt.q_QND[None], prompt.k_HND[None], prompt.k_HND[None])
    return prompt_attention.causal_attention(*one, prompt.scaling).lse_QN


def float64_column_sums(prompt: Prompt, first_query: int) -> torch.Tensor:
    """Column sums of whole attention rows, in float64 on the device, a block of queries of one head at a time: (Q, N)."""
    q_QND, k_HND = prompt.q_QND.double(), prompt.k_HND.double()
    sums_QN = torch.zeros(q_QND.shape[:2], dtype=torch.float64, device=q_QND.device)
    column_N = torch.arange(q_QND.shape[1], device=q_QND.device)
    for query_head, q_ND in enumerate(q_QND):
        k_ND = k_HND[query_head * len(k_HND) // len(q_QND)]
        for query_B in column_N[first_query:].split(2048):
            scores_BN = q_ND[query_B] @ k_ND.T * prompt.scaling
            scores_BN[column_N > query_B[:, None]] = float("-inf")
            sums_QN[query_head] += scores_BN.softmax(dim=1).sum(dim=0)
    return sums_QN


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("num_groups", [1, 4])
@pytest.mark.parametrize("num_tokens", [1, 33, 1000, 1025])
def test_every_kernel_of_torch_tells_the_same_log_sum_exp(
    num_tokens: int,
    num_groups: int,
    dtype: torch.dtype,
    backend: SDPBackend,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prompt_attention, "LEAST_CUDNN_TOKENS", 0)
    prompt = random_prompt(seed, num_tokens, 2, num_groups, 64, dtype, "cuda")
    with sdpa_kernel([backend, SDPBackend.MATH]):
        lse_QN = check_prompt_attention(prompt)
    if lse_QN is None:
        pytest.skip(f"torch does not choose {backend.name} here")


def test_the_engines_own_prompts_get_their_log_sum_exp_from_torch(seed: int) -> None:
    """Otherwise mass would cost a second pass: the shape of the 8B models, and fp32."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert torch_lse(random_prompt(seed, 500, 8, 4, 128, dtype, "cuda")) is not None


def test_prefill_takes_the_triton_path(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = random_prompt(seed, 300, 2, 4, 64, torch.bfloat16, "cuda")
    needs = frozenset({ATTENTION_MASS, window_attention(16)})
    states = LayerStates(prompt.q_QND, prompt.k_HND, prompt.k_HND, prompt.scaling)
    handler = PrefillAttention(1, needs, prompt_seed=0)
    with monkeypatch.context() as patch:
        for name in ("attention_mass", "window_attention"):
            patch.setattr(prompt_reference, name, _forbidden)
        handler.attend(
            0, prompt.q_QND[None], prompt.k_HND[None], prompt.k_HND[None].contiguous(), prompt.scaling
        )
        without_lse = Evidence(states, 0, 1, 0)
        without_lse.capture(needs)
        found = [(handler.evidence[0].get(need), without_lse.get(need)) for need in sorted(needs)]
    sums_QN = float64_column_sums(prompt, 0)
    for mass_HN in found[0]:
        assert_mass(mass_HN, sums_QN.unflatten(0, (2, 4)).mean(dim=1))
    for window_QN in found[1]:
        assert_mass(window_QN, float64_column_sums(prompt, 300 - 16) / 16)


def _forbidden(*_: object, **__: object) -> torch.Tensor:
    raise AssertionError("the reference was called on a GPU")


def test_a_prompt_of_128k_tokens_has_all_its_mass(seed: int) -> None:
    """Offsets of the last queries lie behind 2³¹ elements."""
    num_tokens, num_heads, num_groups, head_dim = 131_072, 8, 17, 128
    generator = torch.Generator(device="cuda").manual_seed(seed)
    q_NQD, k_NHD = (
        torch.randn(num_tokens, heads, head_dim, generator=generator, device="cuda", dtype=torch.bfloat16)
        for heads in (num_heads * num_groups, num_heads)
    )
    assert q_NQD.numel() > 2**31
    q_QND, k_HND = q_NQD.transpose(0, 1), k_NHD.transpose(0, 1)
    prompt = Prompt(q_QND, k_HND, head_dim**-0.5)
    mass_HN = dispatch.attention_mass(q_QND, k_HND, prompt.scaling)
    expected_H = torch.full((num_heads,), num_tokens, device="cuda").double()
    torch.testing.assert_close(mass_HN.double().sum(dim=1), expected_H, rtol=1e-4, atol=0)
    window_QN = dispatch.window_attention(q_QND, k_HND, prompt.scaling, 64)
    last = Prompt(q_QND[-1:], k_HND[-1:], prompt.scaling)
    assert_mass(window_QN[-1:], float64_column_sums(last, num_tokens - 64) / 64)


def test_head_sizes_that_triton_cannot_take_get_the_reference(seed: int) -> None:
    prompt = random_prompt(seed, 40, 2, 3, 20, torch.bfloat16, "cuda")
    arguments = (prompt.q_QND, prompt.k_HND, prompt.scaling)
    assert torch.equal(dispatch.attention_mass(*arguments), prompt_reference.attention_mass(*arguments))

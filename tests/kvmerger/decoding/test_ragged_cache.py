"""What `RaggedCache.append` writes, against one copy per row; and that importing the engine imports no Triton."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.decoding.ragged_cache import RaggedCache

NUM_HEADS, HEAD_DIM, CAPACITY, NUM_LAYERS = 2, 4, 12, 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_append_writes_each_rows_new_tokens_behind_its_tail_and_nothing_else(
    dtype: torch.dtype, seed: int
) -> None:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    layer = LayerCache.from_dense(*torch.randn(2, NUM_HEADS, 3, HEAD_DIM, generator=generator).to(dtype))
    cache = RaggedCache([(layer,) * NUM_LAYERS] * 4 + [None], [3] * 5, CAPACITY)
    expected = torch.zeros(NUM_LAYERS, 2, 5, NUM_HEADS, CAPACITY, HEAD_DIM, dtype=dtype)
    for num_tokens in (5, 1, 1, 3):
        num_new_R = (num_tokens, *(rng.randint(0, num_tokens) for _ in range(3)), 0)
        for layer_index in range(NUM_LAYERS):
            shape = (2, 5, num_tokens, NUM_HEADS, HEAD_DIM)
            new = torch.randn(shape, generator=generator).to(dtype).transpose(2, 3)
            written = cache.append(layer_index, *new, num_new_R)
            for row, (start, num_new) in enumerate(zip(cache.tail_length_R, num_new_R, strict=True)):
                expected[layer_index, :, row, :, start : start + num_new] = new[:, row, :, :num_new]
            tails = torch.stack([written.tail_k_RHCD, written.tail_v_RHCD])
            assert torch.equal(tails, expected[layer_index])
        cache.advance(num_new_R)
    assert cache.tail_length_R[0] == 10 and cache.tail_length_R[4] == 0


def test_the_engine_imports_without_triton(repo_root: Path) -> None:
    code = (
        "import sys, kvmerger.engine.engine, kvmerger.kernels.dispatch\n"
        "assert not [name for name in sys.modules if name.startswith('kvmerger.kernels.triton')]"
    )
    subprocess.run([sys.executable, "-c", code], cwd=repo_root, check=True)

"""Which module computes: Triton's launchers on a GPU where they take the tensors at hand, the references everywhere else.

Callers import the functions from here. Each has its reference's signature and, up to rounding, its results. Importing this
module does not import triton, which a machine without a GPU need not have.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.packed_layer import HeldLayer, PackedLayer
from kvmerger.cache.ragged_layer import RaggedLayer
from kvmerger.kernels.reference import merging, nearest, prompt, ragged, ranking
from kvmerger.kernels.reference.layer import LayerKernels
from kvmerger.kernels.reference.ragged import RaggedAttention

MOST_HEAD_DIM = 256
SLOT_ALIGNMENT_BYTES = 16  # one vector load
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCORE_DTYPES = (torch.float64, *DTYPES)

_First = TypeVar("_First")
_Others = ParamSpec("_Others")
_Result = TypeVar("_Result")


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed; torch's CUDA builds bring it. Does not import it."""
    return importlib.util.find_spec("triton") is not None


def is_supported(queries: Tensor) -> bool:
    """Whether the Triton kernels take heads of this size and dtype."""
    return _takes(queries.shape[-1], queries.dtype)


def is_for_triton(queries: Tensor) -> bool:
    """Whether queries, or keys (…, D) are on a GPU, Triton is there, and its kernels take heads of this size and dtype."""
    return queries.is_cuda and has_triton() and is_supported(queries)


def backend_name(device: str, head_dim: int, dtype: torch.dtype) -> str:
    """Who computes attention over caches on ``device`` for heads of this size and dtype: triton or torch."""
    is_triton = device.startswith("cuda") and has_triton() and _takes(head_dim, dtype)
    return "triton" if is_triton else "torch"


def _takes(head_dim: int, dtype: torch.dtype) -> bool:
    # The programs tell the compiler that every slot starts on such a boundary (`tl.multiple_of`): wrong results otherwise.
    is_aligned = head_dim * dtype.itemsize % SLOT_ALIGNMENT_BYTES == 0
    return is_aligned and head_dim <= MOST_HEAD_DIM and dtype in DTYPES


def _is_ranked_by_triton(scores: Tensor) -> bool:
    # A number a token, not a head's vector: the head size, which would be the last dimension, says nothing here.
    return scores.is_cuda and has_triton() and scores.dtype in SCORE_DTYPES


def _is_summed_by_triton(values_FX: Tensor) -> bool:
    return values_FX.dim() <= 1 and _is_ranked_by_triton(values_FX)


def _is_cache_for_triton(layer: LayerCache) -> bool:
    return is_for_triton(layer.k_SD)


def _by_device(
    reference: Callable[Concatenate[_First, _Others], _Result], is_for: Callable[[_First], bool]
) -> Callable[Concatenate[_First, _Others], _Result]:
    """``reference``, or its namesake in `kernels.triton` for calls whose first argument ``is_for`` accepts."""
    launchers = reference.__module__.replace(".reference.", ".triton.")

    @functools.wraps(reference)
    def choose(first: _First, /, *others: _Others.args, **named: _Others.kwargs) -> _Result:
        # At the call, not before: see the module's docstring. Once a module is loaded this is a look-up.
        module = importlib.import_module(launchers if is_for(first) else reference.__module__)
        return getattr(module, reference.__name__)(first, *others, **named)

    return choose


is_among_highest = _by_device(ranking.is_among_highest, _is_ranked_by_triton)
highest_places = _by_device(ranking.highest_places, _is_ranked_by_triton)
segment_sums = _by_device(merging.segment_sums, _is_summed_by_triton)
segment_maxima = _by_device(merging.segment_maxima, _is_ranked_by_triton)
row_norms = _by_device(merging.row_norms, is_for_triton)
pair_distances = _by_device(merging.pair_distances, is_for_triton)
pair_cosines = _by_device(merging.pair_cosines, is_for_triton)
mean_units = _by_device(merging.mean_units, is_for_triton)
merged_slots = _by_device(merging.merged_slots, _is_cache_for_triton)

# Those that follow differ from their references in what they are given.


def ragged_attention(
    q_RQTD: Tensor, layer: RaggedLayer, scaling: float, mass_rows: Collection[int] = ()
) -> RaggedAttention:
    """`reference.ragged.ragged_attention`; for the launcher, what is stored in a form without a kernel is decoded first."""
    if not is_for_triton(q_RQTD):
        return ragged.ragged_attention(q_RQTD, layer, scaling, mass_rows)
    from kvmerger.kernels.triton import ragged as triton_ragged

    if layer.device_rows is None:
        # A table of rows is made only where kernels read all of them: with one there is nothing to look for.
        layer = replace(layer, prefix_R=tuple(map(_with_kernel, layer.prefix_R)))
    return triton_ragged.ragged_attention(q_RQTD, layer, scaling, mass_rows)


def _with_kernel(prefix: HeldLayer | None) -> HeldLayer | None:
    return prefix.plain() if isinstance(prefix, PackedLayer) and not prefix.has_kernel else prefix


def first_argmax(values_F: Tensor, length_R: Tensor, run_F: Tensor) -> Tensor:
    """`reference.merging.first_argmax`; the launcher needs no ``run_F``."""
    if not _is_ranked_by_triton(values_F):
        return merging.first_argmax(values_F, length_R, run_F)
    from kvmerger.kernels.triton import merging as triton_merging

    return triton_merging.first_argmax(values_F, length_R)


def attention_mass(q_QND: Tensor, k_HND: Tensor, scaling: float, lse_QN: Tensor | None = None) -> Tensor:
    """`reference.prompt.attention_mass`; ``lse_QN``, where the attention kernel left it, saves the launcher a pass."""
    # Exact fp32 products use no tensor cores in either; the matrix library's are twice as fast (`python -m bench.kernels`).
    if not is_for_triton(q_QND) or q_QND.dtype == torch.float32:
        return prompt.attention_mass(q_QND, k_HND, scaling)
    from kvmerger.kernels.triton import prompt as triton_prompt

    return triton_prompt.attention_mass(q_QND, k_HND, scaling, lse_QN)


def window_attention(
    q_QND: Tensor, k_HND: Tensor, scaling: float, window_tokens: int, lse_QN: Tensor | None = None
) -> Tensor:
    """`reference.prompt.window_attention`; ``lse_QN`` as for `attention_mass`."""
    if not is_for_triton(q_QND):
        return prompt.window_attention(q_QND, k_HND, scaling, window_tokens)
    from kvmerger.kernels.triton import prompt as triton_prompt

    return triton_prompt.window_attention(q_QND, k_HND, scaling, window_tokens, lse_QN)


def write_tails(
    tails: tuple[Tensor, Tensor],
    new: tuple[Tensor, Tensor],
    row_N: Tensor,
    token_N: Tensor | int,
    place_N: Tensor,
    lengths_2R: Tensor,
) -> None:
    """`reference.ragged.write_tails` for a row's first ``lengths_2R[1, r]`` tokens, from place ``lengths_2R[0, r]`` on.

    The launcher reads ``lengths_2R`` (int32) alone, the reference the indices alone: where they name more tokens of a row
    than its length says, the reference writes those too.
    """
    if not is_for_triton(new[0]):
        ragged.write_tails(tails, new, row_N, token_N, place_N)
        return
    from kvmerger.kernels.triton import layer as triton_layer

    triton_layer.write_tails(*tails, *new, *lengths_2R)


def take_slots(layer: LayerCache, slot_K: Tensor, num_slots_H: tuple[int, ...]) -> LayerCache:
    """`LayerCache.take`, bit for bit."""
    # The kernel copies keys, values and positions, and would lose the other two without a word.
    if not is_for_triton(layer.k_SD) or layer.log_mass_S is not None or layer.score_S is not None:
        return layer.take(slot_K, num_slots_H)
    from kvmerger.kernels.triton import ranking as triton_ranking

    return triton_ranking.take_slots(layer, slot_K, num_slots_H)


def most_similar_kept(k_HND: Tensor, is_kept_HN: Tensor, num_layers: int = 1) -> tuple[Tensor, Tensor]:
    """`reference.nearest.most_similar_kept`, for dropped tokens; the launcher searches every head by itself anyway."""
    if not is_for_triton(k_HND):
        return nearest.most_similar_kept(k_HND, is_kept_HN, num_layers)
    from kvmerger.kernels.triton import nearest as triton_nearest

    return triton_nearest.most_similar_kept(k_HND, is_kept_HN)


def layer_kernels(device: str, head_dim: int, dtype: torch.dtype) -> LayerKernels | None:
    """What `FastDecoder` computes with on ``device``; None where transformers' own layers are as good."""
    if backend_name(device, head_dim, dtype) != "triton":
        return None
    from kvmerger.kernels.triton import layer as triton_layer

    return triton_layer

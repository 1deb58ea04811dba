"""Who computes attention over ragged caches, a prompt's attention mass, new tokens' places, and what compressing consists of:
Triton on a GPU where it can, the references everywhere else."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Collection

import torch
from torch import Tensor

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.ragged_layer import RaggedLayer
from kvmerger.kernels.reference import merging as merging_reference
from kvmerger.kernels.reference import nearest as nearest_reference
from kvmerger.kernels.reference import prompt as prompt_reference
from kvmerger.kernels.reference import ragged as reference
from kvmerger.kernels.reference import ranking
from kvmerger.kernels.reference.layer import LayerKernels
from kvmerger.kernels.reference.ragged import RaggedAttention

MOST_HEAD_DIM = 256
SLOT_ALIGNMENT_BYTES = 16  # one vector load
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCORE_DTYPES = (torch.float64, *DTYPES)


def ragged_attention(
    q_RQTD: Tensor, layer: RaggedLayer, scaling: float, mass_rows: Collection[int] = ()
) -> RaggedAttention:
    """`reference.ragged.ragged_attention`, computed by the fastest kernel for these tensors."""
    if not is_for_triton(q_RQTD):
        return reference.ragged_attention(q_RQTD, layer, scaling, mass_rows)
    from kvmerger.kernels.triton import ragged as triton_ragged

    return triton_ragged.ragged_attention(q_RQTD, layer, scaling, mass_rows)


def attention_mass(q_QND: Tensor, k_HND: Tensor, scaling: float, lse_QN: Tensor | None = None) -> Tensor:
    """`reference.prompt.attention_mass` likewise; ``lse_QN``, where the attention kernel left it, saves a pass."""
    # Exact fp32 products use no tensor cores in either; the matrix library's are twice as fast (`python -m bench.kernels`).
    if not is_for_triton(q_QND) or q_QND.dtype == torch.float32:
        return prompt_reference.attention_mass(q_QND, k_HND, scaling)
    from kvmerger.kernels.triton import prompt as triton_prompt

    return triton_prompt.attention_mass(q_QND, k_HND, scaling, lse_QN)


def window_attention(
    q_QND: Tensor, k_HND: Tensor, scaling: float, window_tokens: int, lse_QN: Tensor | None = None
) -> Tensor:
    """`reference.prompt.window_attention` likewise."""
    if not is_for_triton(q_QND):
        return prompt_reference.window_attention(q_QND, k_HND, scaling, window_tokens)
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
    """`reference.ragged.write_tails` for a row's first ``lengths_2R[1, r]`` tokens, from place ``lengths_2R[0, r]`` on
    (int32).

    Of a row that has fewer new tokens than the indices say, the reference writes more.
    """
    if not is_for_triton(new[0]):
        reference.write_tails(tails, new, row_N, token_N, place_N)
        return
    from kvmerger.kernels.triton import layer as triton_layer

    triton_layer.write_tails(*tails, *new, *lengths_2R)


def layer_kernels(device: str, head_dim: int, dtype: torch.dtype) -> LayerKernels | None:
    """What a fused decoder computes with on ``device``; None where transformers' own layers are as good."""
    if backend_name(device, head_dim, dtype) != "triton":
        return None
    from kvmerger.kernels.triton import layer as triton_layer

    return triton_layer


def is_among_highest(scores_HN: Tensor, count_H: tuple[int, ...]) -> Tensor:
    """`reference.ranking.is_among_highest` likewise, mark for mark."""
    if not _is_ranked_by_triton(scores_HN):
        return ranking.is_among_highest(scores_HN, count_H)
    from kvmerger.kernels.triton import ranking as triton_ranking

    return triton_ranking.is_among_highest(scores_HN, count_H)


def highest_places(scores_HN: Tensor, count_H: tuple[int, ...]) -> Tensor:
    """`reference.ranking.highest_places` likewise, place for place; nothing waits for the device."""
    if not _is_ranked_by_triton(scores_HN):
        return ranking.highest_places(scores_HN, count_H)
    from kvmerger.kernels.triton import ranking as triton_ranking

    return triton_ranking.highest_places(scores_HN, count_H)


def take_slots(layer: LayerCache, slot_K: Tensor, num_slots_H: tuple[int, ...]) -> LayerCache:
    """`LayerCache.take` likewise, bit for bit."""
    if not is_for_triton(layer.k_SD) or layer.log_mass_S is not None or layer.score_S is not None:
        return layer.take(slot_K, num_slots_H)
    from kvmerger.kernels.triton import ranking as triton_ranking

    return triton_ranking.take_slots(layer, slot_K, num_slots_H)


def segment_sums(values_FX: Tensor, length_R: Tensor) -> Tensor:
    """`reference.merging.segment_sums` likewise."""
    if values_FX.dim() > 1 or not _is_ranked_by_triton(values_FX):
        return merging_reference.segment_sums(values_FX, length_R)
    from kvmerger.kernels.triton import merging as triton_merging

    return triton_merging.segment_sums(values_FX, length_R)


def segment_maxima(values_F: Tensor, length_R: Tensor) -> Tensor:
    """`reference.merging.segment_maxima` likewise."""
    if not _is_ranked_by_triton(values_F):
        return merging_reference.segment_maxima(values_F, length_R)
    from kvmerger.kernels.triton import merging as triton_merging

    return triton_merging.segment_maxima(values_F, length_R)


def first_argmax(values_F: Tensor, length_R: Tensor, run_F: Tensor) -> Tensor:
    """`reference.merging.first_argmax` likewise."""
    if not _is_ranked_by_triton(values_F):
        return merging_reference.first_argmax(values_F, length_R, run_F)
    from kvmerger.kernels.triton import merging as triton_merging

    return triton_merging.first_argmax(values_F, length_R)


def row_norms(x_FD: Tensor) -> Tensor:
    """`reference.merging.row_norms` likewise."""
    if not is_for_triton(x_FD):
        return merging_reference.row_norms(x_FD)
    from kvmerger.kernels.triton import merging as triton_merging

    return triton_merging.row_norms(x_FD)


def pair_distances(x_FD: Tensor, first_M: Tensor, second_M: Tensor) -> Tensor:
    """`reference.merging.pair_distances` likewise."""
    if not is_for_triton(x_FD):
        return merging_reference.pair_distances(x_FD, first_M, second_M)
    from kvmerger.kernels.triton import merging as triton_merging

    return triton_merging.pair_distances(x_FD, first_M, second_M)


def pair_cosines(x_FD: Tensor, first_M: Tensor, second_M: Tensor, other_GD: Tensor | None = None) -> Tensor:
    """`reference.merging.pair_cosines` likewise."""
    if not is_for_triton(x_FD):
        return merging_reference.pair_cosines(x_FD, first_M, second_M, other_GD)
    from kvmerger.kernels.triton import merging as triton_merging

    return triton_merging.pair_cosines(x_FD, first_M, second_M, other_GD)


def mean_units(x_HND: Tensor) -> Tensor:
    """`reference.merging.mean_units` likewise."""
    if not is_for_triton(x_HND):
        return merging_reference.mean_units(x_HND)
    from kvmerger.kernels.triton import merging as triton_merging

    return triton_merging.mean_units(x_HND)


def merged_slots(
    layer: LayerCache,
    member_M: Tensor,
    length_S: Tensor,
    target_S: Tensor,
    num_slots_H: tuple[int, ...],
    key_weight_M: Tensor | None,
    value_weight_M: Tensor | None,
) -> LayerCache:
    """`reference.merging.merged_slots` likewise."""
    groups = (member_M, length_S, target_S, num_slots_H)
    if not is_for_triton(layer.k_SD):
        return merging_reference.merged_slots(layer, *groups, key_weight_M, value_weight_M)
    from kvmerger.kernels.triton import merging as triton_merging

    return triton_merging.merged_slots(layer, *groups, key_weight_M, value_weight_M)


def most_similar_kept(k_HND: Tensor, is_kept_HN: Tensor, num_layers: int = 1) -> tuple[Tensor, Tensor]:
    """`reference.nearest.most_similar_kept` likewise, for dropped tokens."""
    if not is_for_triton(k_HND):
        return nearest_reference.most_similar_kept(k_HND, is_kept_HN, num_layers)
    from kvmerger.kernels.triton import nearest as triton_nearest

    return triton_nearest.most_similar_kept(k_HND, is_kept_HN)


def _is_ranked_by_triton(scores: Tensor) -> bool:
    return scores.is_cuda and has_triton() and scores.dtype in SCORE_DTYPES


def is_for_triton(queries: Tensor) -> bool:
    """Whether queries, or keys (…, D) are on a GPU, Triton is there, and its kernels take heads of this size and dtype."""
    return queries.is_cuda and has_triton() and is_supported(queries)


def backend_name(device: str, head_dim: int, dtype: torch.dtype) -> str:
    """Who computes attention over caches on ``device`` for heads of this size and dtype: triton or torch."""
    is_triton = device.startswith("cuda") and has_triton() and _takes(head_dim, dtype)
    return "triton" if is_triton else "torch"


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed; torch's CUDA builds bring it. Does not import it."""
    return importlib.util.find_spec("triton") is not None


def is_supported(queries: Tensor) -> bool:
    """Whether the Triton kernels take heads of this size and dtype."""
    return _takes(queries.shape[-1], queries.dtype)


def _takes(head_dim: int, dtype: torch.dtype) -> bool:
    is_aligned = head_dim * dtype.itemsize % SLOT_ALIGNMENT_BYTES == 0
    return is_aligned and head_dim <= MOST_HEAD_DIM and dtype in DTYPES

"""What compressing consists of, one launch at a time, for many layers as one: ranking, copying, merging, searching.

Heads of 32 layers of an 8B model's shape for what moves bytes, of one layer for the search, whose work is the square of the
tokens. Half of the tokens are kept; groups are runs of one to three. Floors: scores read once and places written; chosen keys
and values read and written once; for merging those of every member read; for the search one product of dropped and kept keys.

Predicted for an H100 before it was run, 16,384 tokens: ranking 256 rows about 80 µs (16 rounds over registers, two waves of
programs), five times its floor and a twentieth of a stable sort; copying and merging 70 to 90 % of a copy's bandwidth; the
search 0.4-0.6 ms a layer, a third of a product's rate, because comparing takes as long as multiplying.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.kernels.ragged import Heads
from bench.kernels.timing import DEVICE, Bench, Ceilings, Measured
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels import dispatch
from kvmerger.kernels.reference import merging as merging_reference
from kvmerger.kernels.reference import nearest as nearest_reference
from kvmerger.kernels.reference import ranking

NUM_LAYERS = 32


def measure_compress(
    heads: Heads,
    num_tokens: int,
    ceilings: Ceilings,
    deadline_s: float,
    report: Callable[[Measured], None],
    num_layers: int = NUM_LAYERS,
) -> None:
    """Report each kernel against its reference."""
    num_rows, num_kept = heads.num_heads * num_layers, num_tokens // 2
    case = f"{num_layers} x {num_tokens} tokens"
    scores_HN = torch.randn(num_rows, num_tokens, device=DEVICE)
    count_H = (num_kept,) * num_rows
    layer = LayerCache.from_dense(
        *torch.randn(2, num_rows, num_tokens, heads.head_dim, device=DEVICE, dtype=torch.bfloat16)
    )
    place_K = dispatch.highest_places(scores_HN, count_H)
    slot_bytes = 2 * heads.head_dim * layer.k_SD.element_size()

    # Scores are fp32, places int64.
    rank = Bench(
        "ranking", case, ceilings.floor_s(4 * scores_HN.numel() + 8 * place_K.numel()), deadline_s, report
    )
    rank.run("ours", lambda: lambda: dispatch.highest_places(scores_HN, count_H), expected=place_K)
    rank.run("stable sort", lambda: lambda: ranking.highest_places(scores_HN, count_H), expected=place_K)

    copy = Bench("copying", case, ceilings.floor_s(2 * place_K.numel() * slot_bytes), deadline_s, report)
    copy.run("ours", lambda: lambda: dispatch.take_slots(layer, place_K, count_H).k_SD)
    copy.run("torch, index", lambda: lambda: layer.take(place_K, count_H).k_SD)

    groups = _runs(num_rows, num_tokens)
    weight_M = torch.rand(groups[0].numel(), device=DEVICE)
    num_moved = groups[0].numel() + groups[2].numel()
    merge = Bench("merging", case, ceilings.floor_s(num_moved * slot_bytes), deadline_s, report)
    for name, module in (("ours", dispatch), ("torch, fp32", merging_reference)):
        merge.run(name, lambda m=module: lambda: m.merged_slots(layer, *groups, weight_M, weight_M).k_SD)
    _measure_search(heads, num_tokens, ceilings, deadline_s, report)


def _runs(num_rows: int, num_tokens: int) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """Members, lengths, targets and groups of each row: runs of one, two and three tokens in turn."""
    # A pattern covers 6 tokens; those left over are runs of one.
    pattern_R = torch.tensor([1, 2, 3], device=DEVICE).repeat(num_tokens // 6)
    length_R = torch.cat([pattern_R, pattern_R.new_ones(num_tokens - int(pattern_R.sum()))])
    length_S = length_R.repeat(num_rows)
    member_M = torch.arange(num_rows * num_tokens, device=DEVICE)
    return member_M, length_S, length_S.cumsum(0) - length_S, (len(length_R),) * num_rows


def _measure_search(
    heads: Heads,
    num_tokens: int,
    ceilings: Ceilings,
    deadline_s: float,
    report: Callable[[Measured], None],
) -> None:
    from kvmerger.kernels.triton.nearest import HALF, Tiling, most_similar_kept

    k_HND = torch.randn(heads.num_heads, num_tokens, heads.head_dim, device=DEVICE).bfloat16()
    is_kept_HN = torch.rand(heads.num_heads, num_tokens, device=DEVICE) < 0.5
    num_kept = int(is_kept_HN.sum()) // heads.num_heads
    num_flop = 2 * heads.num_heads * num_kept * (num_tokens - num_kept) * heads.head_dim
    search = Bench("search", f"1 x {num_tokens} tokens", ceilings.floor_s(0, num_flop), deadline_s, report)
    expected_HN = dispatch.most_similar_kept(k_HND, is_kept_HN)[1]
    tilings = (HALF, Tiling(128, 64, 8, 3), Tiling(64, 64, 4, 3), Tiling(128, 128, 8, 3))
    for tiling in tilings:
        search.run(
            f"ours, {tiling.dropped} x {tiling.kept}, {tiling.num_warps} warps",
            lambda t=tiling: lambda: most_similar_kept(k_HND, is_kept_HN, t)[1],
            expected=expected_HN,
        )
    search.run("torch, fp32", lambda: lambda: nearest_reference.most_similar_kept(k_HND, is_kept_HN)[1])

"""AsymKV's frame, with its diagonal of second derivatives in closed form."""

from dataclasses import dataclass

from kvmerger.merging.pair_weights import PairWeights
from kvmerger.policies.mergers.kvslimmer import KVSlimmer
from kvmerger.policies.registry import register


@register("asymkv_diagonal")
@dataclass(frozen=True)
class AsymKVDiagonal(KVSlimmer):
    """Merge the pairs of KVSlimmer, each key weighed by its own second derivative alone, without the term across.

    AsymKV (arXiv 2506.05410) merges the same pairs, and weighs keys by the squared gradient of the next block's loss, channel
    by channel, for the diagonal of the second derivatives. That takes a backward pass through the model for each block, which
    is not done here: α(1 − 2α)‖v − o‖₁, one number a token, is in its place. Hence no ``asymkv``.
    """

    weights: PairWeights = "diagonal"

"""Positions out of order are found, whatever lengths heads have and whoever compressed them."""

import itertools
import random
from dataclasses import dataclass, replace

import pytest
import torch

from kvmerger.budget import Budget, KeptRatio
from kvmerger.building import Variant
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.contract.layers import random_prefill
from kvmerger.engine.compress import compress_all
from kvmerger.policies.ranking.knorm import Knorm
from kvmerger.prefill.evidence import Evidence


@pytest.mark.parametrize("repeat", range(20))
def test_positions_ascend_within_heads_and_nowhere_else(repeat: int, seed: int) -> None:
    rng = random.Random(f"{seed} {repeat}")
    heads = [sorted(rng.sample(range(40), rng.choice((0, 0, 1, 2, 9)))) for _ in range(6)]
    if (long := [head for head in heads if len(head) > 1]) and rng.random() < 0.5:
        flawed = rng.choice(long)
        place = rng.randrange(len(flawed) - 1)
        flawed[place + 1] = flawed[place] - rng.choice((0, 1))
    is_ascending = all(left < right for head in heads for left, right in itertools.pairwise(head))
    positions = torch.tensor([position for head in heads for position in head], dtype=torch.int32)
    k_SD = torch.zeros(len(positions), 4)
    cache = LayerCache(k_SD, k_SD, positions, tuple(map(len, heads)))
    assert bool(cache.is_ascending()) is is_ascending
    if is_ascending:
        cache.check_integrity()
    else:
        with pytest.raises(ValueError, match="must ascend"):
            cache.check_integrity()


@dataclass(frozen=True)
class SwapsPositions(Knorm):
    """Selects as it should, then hands two slots of a head back in the wrong order."""

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        kept = super().compress(layer, evidence, budget)
        position_S = kept.position_S.clone()
        position_S[[3, 4]] = position_S[[4, 3]]
        return replace(kept, position_S=position_S)


@pytest.mark.parametrize("is_stacked", [True, False])
def test_a_strangers_disorder_fails_its_variant_alone(
    is_stacked: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SwapsPositions, "compresses_stacks", is_stacked)
    variants = [
        Variant("theirs", SwapsPositions(), KeptRatio(0.5)),
        Variant("ours", Knorm(), KeptRatio(0.5)),
    ]
    compression = compress_all(random_prefill(seed, torch.float32, Knorm()), variants)
    assert "must ascend" in compression.failed["theirs"].message
    assert "ours" in compression.done

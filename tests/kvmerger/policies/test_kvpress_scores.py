"""Compactor keeps the tokens that kvpress's press keeps, where its padding of the last chunk has no say.

Shapes: as in test_kvpress.
"""

import math
from typing import Any

import pytest
import torch

from kvmerger.budget import Budget
from kvmerger.policies.ranking.compactor import Compactor, sketch
from tests.kvmerger.policies.test_kvpress import (
    KEPT_SHARES,
    SHAPES,
    assert_same_tokens,
    evidence_of,
    kept_by,
    presses,
    random_layer,
    ratio_for,
)

__all__ = ["presses"]

NUM_CHUNKS = 11


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"blending": 0.7, "chunk_size": 40},
        {"chunk_size": 33, "sketch_dimension": 12, "sink_size_start": 3, "sink_size_end": 9},
    ],
    ids=str,
)
def test_compactor_keeps_the_same_tokens(
    settings: dict, presses: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Compactor(**{"chunk_size": 32, "sketch_dimension": 8, **settings})
    for shape in SHAPES:
        layer = random_layer(shape, NUM_CHUNKS * policy.chunk_size + policy.num_protected, seed)
        evidence = evidence_of(policy, layer)
        drawn = sketch(
            evidence.draw_seed, layer.num_heads, layer.states.k_HND.shape[2], policy.sketch_dimension
        )
        # Its own draw is of the process's generator; what is tested is what it does with one.
        with monkeypatch.context() as patched:
            patched.setattr(
                torch, "randn", lambda *_, drawn=drawn, **__: drawn[None] * math.sqrt(drawn.shape[2])
            )
            for share in KEPT_SHARES:
                num_slots = int(layer.num_tokens * share)
                ratio = ratio_for(num_slots, layer.num_tokens)
                press = presses.CompactorPress(
                    ratio, policy.sink_size_start, policy.sink_size_end, policy.chunk_size,
                    policy.sketch_dimension, policy.blending,
                )  # fmt: skip
                budget = Budget.uniform(num_slots, layer.num_heads, 1 - ratio)
                assert_same_tokens(
                    policy.select(evidence, budget), kept_by(press, layer), policy.scores_at(evidence, budget)
                )


def test_without_a_sketch_compactor_scores_as_with_one_that_loses_nothing(presses: Any, seed: int) -> None:
    """kvpress draws one of 48 numbers for heads of 16 too: its ridge then weighs otherwise, and that is all."""
    policy = Compactor(chunk_size=32, sink_size_start=0, sink_size_end=0)
    layer = random_layer("gqa", 352, seed)
    states = layer.states
    press = presses.CompactorPress(0.5, 0, 0, 32)
    theirs_HN = press.score(
        layer.module, states.hidden_NE[None], states.k_HND[None], states.v_HND[None], None,
        {"position_embeddings": layer.position_embeddings},
    )[0]  # fmt: skip
    torch.testing.assert_close(policy.scores(evidence_of(policy, layer)), theirs_HN, atol=0.02, rtol=0.02)

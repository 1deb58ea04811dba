"""Compactor and DuoAttention keep the tokens that kvpress's presses keep: the former where padding of the last chunk has no
say, the latter where the press is shown the prompt itself in place of its texts.

Shapes: as in test_kvpress; L layers.
"""

import math
from typing import Any

import numpy
import pytest
import torch
from transformers import BatchEncoding

from kvmerger.budget import Budget
from kvmerger.policies.ranking.compactor import Compactor, sketch
from kvmerger.policies.ranking.duo_attention import DuoAttention
from kvmerger.prefill.prefill import prefill
from tests.fakes.tiny_models import VOCAB_SIZE, tiny_model
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
STREAMING_TOKENS = 384


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


class OneText:
    """A data set and a tokenizer that know one prompt only."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def to_pandas(self) -> "OneText":
        return self

    def sample(self, num_samples: int, random_state: int) -> Any:
        return {"chapter": numpy.array(["the prompt"] * num_samples)}

    def __call__(self, text: str, return_tensors: str) -> Any:
        return BatchEncoding({"input_ids": torch.tensor([self.ids])})


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_duo_attention_keeps_the_same_tokens(
    model_type: str, presses: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvpress.presses import duo_attention_press as theirs

    num_tokens, model = 420, tiny_model(seed, model_type=model_type, num_layers=4)
    ids = torch.randint(VOCAB_SIZE, (num_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    text = OneText(ids)
    monkeypatch.setattr(theirs, "load_dataset", lambda *_, **__: text)
    monkeypatch.setattr(theirs.AutoTokenizer, "from_pretrained", lambda _: text)
    model.plain.config.name_or_path = f"{model_type} {seed}"  # what its scores are remembered by
    policy = DuoAttention()
    (need,) = policy.needs()
    found = prefill(model.ours, ids, policy.needs())
    scores_LH = torch.from_numpy(theirs.duo_attention_on_the_fly(model.plain, num_samples=1))
    torch.testing.assert_close(
        torch.stack([evidence.get(need) for evidence in found.evidence]), scores_LH, atol=1e-5, rtol=1e-4
    )
    monkeypatch.setattr(theirs, "duo_attention_on_the_fly", lambda _: scores_LH.numpy())
    for num_streaming in (0, 3, 8):
        press = presses.DuoAttentionPress(num_streaming / 8, on_the_fly_scoring=True)
        press.post_init_from_model(model.plain)
        num_slots = (8 - num_streaming) * num_tokens + num_streaming * STREAMING_TOKENS
        share_X = [num_slots // 8 + (head < num_slots % 8) for head in range(8)]
        asked_L = [Budget((*share_X[2 * layer : 2 * layer + 2],), 0.5) for layer in range(4)]
        for index, budget in enumerate(policy.allocate(asked_L, found.evidence)):
            module = model.plain.model.layers[index].self_attn
            keys_1HND = found.layers[index].k_HND[None]
            module.masked_key_indices = None
            press.compress(module, None, keys_1HND, keys_1HND, None, {})
            expected_HN = torch.ones(keys_1HND.shape[1:3], dtype=torch.bool)
            if module.masked_key_indices is not None:
                expected_HN[module.masked_key_indices[1:]] = False
            assert torch.equal(policy.select(found.evidence[index], budget), expected_HN)

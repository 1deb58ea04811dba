"""Re-rotated rows answer as a decoder that reads the question behind the kept slots, computed apart, one token at a time."""

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from kvmerger.budget import Budget, KeptRatio
from kvmerger.building import Variant, build, build_variant
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.ragged_layer import new_room
from kvmerger.decoding.batch import Batch, Row
from kvmerger.decoding.ragged_cache import RaggedCache
from kvmerger.engine import Engine
from kvmerger.engine.compress import Compressed, compress_all
from kvmerger.engine.fused import needs_of
from kvmerger.generation import Prompt, Question
from kvmerger.names import VariantError
from kvmerger.policies.base import Policy, PolicyError
from kvmerger.prefill.evidence import Evidence
from kvmerger.prefill.prefill import prefill
from kvmerger.variants import parse_policies
from tests.fakes.tiny_models import VOCAB_SIZE, TinyModel, tiny_model
from tests.slow.decoding import SlowDecoder, rotated

NUM_TOKENS, NUM_FORCED, NUM_LAYERS = 40, 4, 2
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}


def make_prompt(seed: int) -> Prompt:
    rng = random.Random(seed)
    context, tail, gold = (
        tuple(rng.randrange(VOCAB_SIZE) for _ in range(count)) for count in (NUM_TOKENS, 5, 4)
    )
    return Prompt(context, (Question(tail, gold, 8), Question(tail[:2], (), 8)))


def compressed_by(model: TinyModel, prompt: Prompt, *policies: str) -> list[Compressed]:
    variants = [build_variant(spec) for spec in parse_policies(policies)]
    compression = compress_all(prefill(model.ours, prompt.context_ids, needs_of(variants)), variants)
    assert not compression.failed, compression.failed
    return [compression.done[variant.label] for variant in variants]


def slow_decoder(model: TinyModel, prompt: Prompt, kept: Compressed) -> SlowDecoder:
    """Reads the prompt, keeps what ``kept`` keeps, and turns each key back from its position and on to its rank."""
    kept_LH = [
        [positions.tolist() for positions in layer.position_S.split(layer.num_slots_H)]
        for layer in kept.prefix
    ]
    decoder = SlowDecoder(model.plain, prompt.context_ids, kept_LH)
    for heads in decoder.cache:
        for slots in heads:
            for rank, slot in enumerate(slots):
                cos_D, sin_D = (
                    part[0, 0]
                    for part in decoder.model.rotary_emb(slot.k_D, torch.tensor([[slot.position - rank]]))
                )
                scale = (cos_D**2 + sin_D**2).sqrt()
                slot.k_D, slot.position = rotated(slot.k_D, cos_D / scale, -sin_D / scale), rank
    return decoder


@pytest.mark.parametrize("policy", ["streaming_llm", "knorm+adakv", "pyramidkv"])
def test_rows_answer_as_the_slow_decoder_does_from_the_new_positions(policy: str, seed: int) -> None:
    rope = {"rope_parameters": YARN} if policy == "knorm+adakv" else {}
    model, prompt = tiny_model(seed, num_layers=NUM_LAYERS, **rope), make_prompt(seed)
    rng = random.Random(seed)
    forced = tuple(rng.randrange(VOCAB_SIZE) for _ in range(NUM_FORCED))
    options = {"window_size": 8} if policy == "pyramidkv" else {}
    plain, turned = (
        {"name": name, "budget": 0.4, "label": name, **options}
        for name in (policy, f"{policy}+key_rerotation")
    )
    before, after = compressed_by(model, prompt, plain, turned)
    start = max(count for layer in after.prefix for count in layer.num_slots_H)
    tail = prompt.questions[0].tail_ids
    batch = Batch(model.ours, prompt, {1: Row("turned", 0, after.prefix)}, bucket=2)
    assert batch.cache.next_position_R == (NUM_TOKENS, start + len(tail))
    hidden_TE = batch.force({1: forced}, NUM_FORCED)[1]
    decoder = slow_decoder(model, prompt, before)
    expected = [decoder.read(token, start + place) for place, token in enumerate((*tail, *forced[:-1]))]
    expected_TE = torch.stack(expected[len(tail) - 1 :])
    torch.testing.assert_close(hidden_TE.double(), expected_TE, atol=1e-3, rtol=1e-3)


def test_positions_are_ranks_and_a_whole_prompt_keeps_its_bits(seed: int) -> None:
    model, prompt = tiny_model(seed, num_layers=NUM_LAYERS), make_prompt(seed)
    whole, some = compressed_by(model, prompt, "knorm+key_rerotation@1.0", "knorm+key_rerotation@20")
    full = prefill(model.ours, prompt.context_ids, frozenset()).layers
    for layer, uncompressed in zip(whole.prefix, full, strict=True):
        assert torch.equal(layer.plain().k_SD, uncompressed.k_SD) and layer.next_position == NUM_TOKENS
    for layer in some.prefix:
        assert layer.position_S.tolist() == [*range(20)] * layer.num_heads and layer.next_position == 20


def test_forms_and_rules_by_position_follow_and_rules_by_token_are_refused(seed: int) -> None:
    model, prompt = tiny_model(seed, num_layers=NUM_LAYERS), make_prompt(seed)
    policies = [
        "knorm+key_rerotation@0.5",
        "knorm+key_rerotation@0.5+int8",
        "streaming_llm+key_rerotation@0.5+streaming_llm_decode",
        "knorm+key_rerotation@0.9+h2o_decode",
    ]
    variants = [build_variant(spec) for spec in parse_policies(policies)]
    rows = Engine(model.ours).run(prompt, variants)
    failed = {row.label for row in rows if not hasattr(row, "token_ids")}
    assert failed == {"knorm+key_rerotation+h2o_decode@0.9"}
    (message,) = {row.message for row in rows if row.label in failed}
    assert "h2o_decode starts from the attention" in message and "key_rerotation changes" in message
    with pytest.raises(VariantError, match="twice"):
        build("knorm+key_rerotation+key_rerotation", {})
    with pytest.raises(PolicyError, match="before what acts"):
        build("knorm+cam+key_rerotation", {})


def test_rows_of_unequal_tail_positions_share_a_batch_and_keep_their_bits(seed: int) -> None:
    model, prompt = tiny_model(seed, num_layers=NUM_LAYERS), make_prompt(seed)
    specs = parse_policies(["knorm@0.5", "knorm+key_rerotation@0.5", "knorm+key_rerotation@0.2"])
    alone = Engine(model.ours).run(prompt, [build_variant(spec) for spec in specs])
    nlls = {row.label: row.answer_nll for row in alone if row.question_index == 0}
    assert nlls["knorm@0.5"] != nlls["knorm+key_rerotation@0.5"]
    _, again = Engine(model.ours).run_many([prompt, prompt], [build_variant(spec) for spec in specs])
    assert {row.label: row.answer_nll for row in again if row.question_index == 0} == nlls


def test_joined_caches_keep_each_rows_own_position() -> None:
    dense = LayerCache.from_dense(*torch.randn(2, 2, 3, 4))
    turned = (replace(dense, next_position=2), replace(dense, next_position=3))
    own, other = (RaggedCache([prefix, None], [3, 9], 4) for prefix in (turned, (dense, dense)))
    assert own.next_position_R == (3, 9)
    lower = RaggedCache([(replace(dense, next_position=2),) * 2, None], [3, 9], 4)
    assert lower.next_position_R == (2, 9)
    room = new_room(4, 4, turned)
    assert RaggedCache.joined({0: lower, 2: other}, 4, room).next_position_R == (2, 9, 3, 9)


@dataclass(frozen=True)
class SaysElsewhere(Policy):
    """Keeps everything, with a question that stands somewhere else."""

    next_position: Any

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        return replace(layer, next_position=self.next_position)


@pytest.mark.parametrize(
    ("position", "words"), [(NUM_TOKENS + 1, "from 0 to"), (-1, "from 0 to"), (3, "kept positions")]
)
def test_a_position_beyond_the_prompt_or_before_its_slots_costs_its_row_alone(
    position: int, words: str
) -> None:
    model, prompt = tiny_model(0, num_layers=NUM_LAYERS), make_prompt(0)
    variant = Variant("elsewhere", SaysElsewhere(position), KeptRatio(1.0))
    compression = compress_all(prefill(model.ours, prompt.context_ids, frozenset()), [variant])
    assert words in compression.failed["elsewhere"].message

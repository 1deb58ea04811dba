"""Presses on our shared prefill leave the bits that kvpress's own runs leave, layer by layer, in one pass for all.

Shapes: H KV heads, N tokens, D head size, K kept slots of a head.
"""

import random
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from kvmerger.budget import KeptRatio
from kvmerger.building import Variant, build
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.engine.budgets import needs_at_budget, shape_for
from kvmerger.engine.compress import compress_all
from kvmerger.generation import Prompt, Question
from kvmerger.policies.adapters.kinds import Gives, facts_of
from kvmerger.policies.adapters.press_evidence import kept_need, ratio_for
from kvmerger.policies.adapters.presses import made, text_of
from kvmerger.prefill.prefill import Prefilled, prefill
from tests.fakes.kvpress_runs import OwnRun, load_no_weights, own_run, require_kvpress
from tests.fakes.tiny_models import VOCAB_SIZE, TinyModel, tiny_model

NUM_LAYERS = 3
SNAP = {"name": "SnapKVPress", "window_size": 16}
KNORM = {"name": "KnormPress"}
EXPECTED = {"name": "ExpectedAttentionPress", "epsilon": 0.02}
SETUPS: list[tuple[str, dict[str, Any]]] = [
    ("KnormPress", {}), ("KeyDiffPress", {}), ("LagKVPress", {"lag_size": 16}), ("CURPress", {}),
    ("CURPress", {"use_random_leverage": True}), ("RandomPress", {}), ("RandomPress", {"seed": 3}),
    ("StreamingLLMPress", {}), ("SnapKVPress", {"window_size": 32}), ("SnapKVPress", {"window_size": 16, "kernel_size": 7}),
    ("TOVAPress", {}), ("PyramidKVPress", {"window_size": 4, "beta": 5}), ("ExpectedAttentionPress", {}),
    ("ExpectedAttentionPress", {"use_covariance": False, "use_vnorm": False}), ("CapPress", {}), ("LeverageScorePress", {}),
    ("NonCausalAttnPress", {"chunk_size": 64}), ("CompactorPress", {}), ("CompactorPress", {"blending": 0.7}),
    ("QFilterPress", {}), ("KVzapPress", {}), ("ExpectedAttentionStatsPress", {}), ("FastKVzipPress", {}),
    ("FastKVzipPress", {"layerwise": True}), ("CriticalKVPress", {"press": SNAP}), ("CriticalAdaKVPress", {"press": SNAP}),
    ("AdaKVPress", {"press": SNAP}), ("AdaKVPress", {"press": EXPECTED, "alpha_safeguard": 0.5}), ("LUKVPress", {}),
    ("ChunkKVPress", {"press": KNORM}), ("ChunkKVPress", {"press": SNAP, "chunk_length": 7}),
    ("EntropyGatedChunkKVPress", {"press": SNAP}), ("ChunkPress", {"press": KNORM, "chunk_length": 50}),
    ("BlockPress", {"press": {"name": "KeyDiffPress"}, "block_size": 32}),
    ("PerLayerCompressionPress", {"press": KNORM, "compression_ratios": [0.2, 0.5, 0.8]}),
    ("ComposedPress", {"presses": [{**SNAP, "compression_ratio": 0.3}, {**KNORM, "compression_ratio": 0.4}]}),
    ("ComposedPress", {"presses": [
        {**KNORM, "compression_ratio": 0.3}, {"name": "ThinKPress", "key_channel_compression_ratio": 0.5}]}),
    ("DMSPress", {"press": KNORM, "threshold": -4.0, "sliding_window_size": 32}),
    ("DuoAttentionPress", {"head_compression_ratio": 0.5}),
    ("SimLayerKVPress", {"lazy_threshold": 0.3, "n_last": 1, "n_recent": 40, "n_initial": 4}),
    ("PrefillDecodingPress", {"prefilling_press": {**KNORM, "compression_ratio": 0.5}}),
    ("MergingPress", {"press": SNAP}), ("MergingPress", {"press": KNORM, "merge_fraction": 0.5, "similarity_threshold": 0.1}),
    ("KeyRerotationPress", {"press": KNORM}), ("FinchPress", {"window_size": 16}),
    ("FinchPress", {"window_size": 16, "chunk_length": 128}), ("FinchPress", {"window_size": 16, "rerotate_keys": False}),
    ("ThinKPress", {"key_channel_compression_ratio": 0.5}),
]  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_layers": NUM_LAYERS},
    "qwen3": {"num_layers": NUM_LAYERS, "model_type": "qwen3"},
    "bf16": {"num_layers": NUM_LAYERS, "dtype": torch.bfloat16},
}
RATIOS = {"llama": (0.25, 0.5, 0.8), "qwen3": (0.5,), "bf16": (0.5,)}


@pytest.fixture(autouse=True)
def _weights(monkeypatch: pytest.MonkeyPatch, model_name: str) -> None:
    require_kvpress()
    load_no_weights(monkeypatch, MODELS[model_name].get("dtype", torch.float32))


def a_length(seed: int) -> int:
    """A number of tokens of which kvpress's rounding takes as many as the decimal says."""
    kept = {ratio: Fraction(1) - Fraction(str(ratio)) for ratios in RATIOS.values() for ratio in ratios}
    return next(
        n
        for n in range(160 + seed % 30, VOCAB_SIZE)
        if all(int(n * (1 - ratio)) == int(n * share) for ratio, share in kept.items())
    )


def make_prompt(seed: int, num_tokens: int) -> Prompt:
    rng = random.Random(seed)
    # No token twice: kvpress leaves it to topk which of equal scores stays.
    context = tuple(rng.sample(range(VOCAB_SIZE), num_tokens))
    return Prompt(context, (Question((1, 2), (), 4),))


def place_of(rows_KD: Tensor, among_ND: Tensor) -> list[int]:
    """Which row of ``among_ND`` each is, one by one."""
    known: dict[bytes, int] = {}
    for place, row in enumerate(among_ND):
        known.setdefault(row.float().numpy().tobytes(), place)
    return [known[row.float().numpy().tobytes()] for row in rows_KD]


def by_place(found: OwnRun, whole: LayerCache, head: int, told_by: str) -> tuple[Tensor, Tensor]:
    """Keys and values of a head as kvpress leaves them, without those it masks, in the order of the prompt's tokens."""
    k_KD, v_KD = found.k_HKD[head], found.v_HKD[head]
    is_seen_K = torch.ones(len(k_KD), dtype=torch.bool)
    if found.masked is not None:
        masked_H, masked_K = found.masked
        is_seen_K[masked_K[masked_H == head]] = False
    places = {
        "keys": lambda: place_of(k_KD, whole.k_HND[head]),
        "values": lambda: place_of(v_KD, whole.v_HND[head]),
        "order": lambda: list(range(len(k_KD))),
    }[told_by]()
    order = sorted((place, index) for index, place in enumerate(places) if is_seen_K[index])
    chosen = [index for _, index in order]
    return k_KD[chosen], v_KD[chosen]


def head_parts(layer: LayerCache) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(layer.k_SD.split(layer.num_slots_H), layer.v_SD.split(layer.num_slots_H), strict=True)


def prefilled_for(
    model: TinyModel, prompt: Prompt, variant: Variant, extra: frozenset = frozenset()
) -> Prefilled:
    """What one pass tells: a press that makes another one, or leaves something on the model, is caught here."""
    needs = variant.policy.needs() | needs_at_budget(variant, shape_for(model.ours.info, prompt)) | extra
    modules, passes = [model.ours.module.get_decoder(), *model.ours.attention_modules], []
    hooks = [it.register_forward_pre_hook(lambda module, args: passes.append(id(module))) for it in modules]
    before = [dict(vars(it)) for it in model.ours.attention_modules]
    prefilled = prefill(model.ours, prompt.context_ids, needs)
    for hook in hooks:
        hook.remove()
    assert sorted(passes) == sorted(map(id, modules)), "a press made a pass of its own"
    assert [dict(vars(it)) for it in model.ours.attention_modules] == before, "a press changed the model"
    return prefilled


def assert_same(model: TinyModel, prompt: Prompt, name: str, params: dict, ratio: float) -> None:
    policy = build(f"kvpress:{name}", params)
    text, num_tokens = text_of(f"kvpress:{name}", params), len(prompt.context_ids)
    facts = facts_of(text)
    num_slots = max(1, int(num_tokens * (1 - ratio)))
    asked = float(f"{1 - ratio:.6g}")
    assert ratio_for(num_slots, num_tokens, asked) == ratio
    variant = Variant("it", policy, KeptRatio(asked) if facts.has_budget else None)
    also = frozenset({kept_need(text, num_slots, asked)} if facts.gives is Gives.SCORES else ())
    prefilled = prefilled_for(model, prompt, variant, also)
    compression = compress_all(prefilled, [variant])
    assert not compression.failed, compression.failed["it"].traceback
    ours_L = compression.done["it"].prefix
    press = made(text)
    if facts.has_budget:
        press.compression_ratio = ratio
    if name == "FinchPress":
        press.delimiter_token_id = VOCAB_SIZE  # of no token: its window is set already
    own_L = own_run(press, model.plain, prompt.context_ids, [it.draw_seed for it in prefilled.evidence])
    told_by = "order" if facts.rerotates else "values" if "ThinK" in f"{name} {params}" else "keys"
    for ours, own, whole, evidence in zip(ours_L, own_L, prefilled.layers, prefilled.evidence, strict=True):
        assert isinstance(ours, LayerCache)
        if facts.gives is Gives.SCORES:
            assert_same_ranking(ours, evidence, own, whole, text, also)
            continue
        assert ours.nbytes <= whole.nbytes
        for head, (k_KD, v_KD) in enumerate(head_parts(ours)):
            expected = by_place(own, whole, head, told_by)
            assert torch.equal(k_KD, expected[0]) and torch.equal(v_KD, expected[1]), (name, head)


def assert_same_ranking(
    ours: LayerCache, evidence: Any, own: OwnRun, whole: LayerCache, text: str, also: frozenset
) -> None:
    """By its hook the press keeps the same tokens; ranked by us it keeps equal scores, and the same tokens but for ties."""
    (need,) = also
    is_kept_HN = evidence.get(need)
    scores_HN = evidence.get(next(it for it in evidence._cache if it.name == "press_scores"))
    for head in range(whole.num_heads):
        theirs = sorted(place_of(own.k_HKD[head], whole.k_HND[head]))
        assert is_kept_HN[head].nonzero().flatten().tolist() == theirs
        positions = ours.position_S.split(ours.num_slots_H)[head].long()
        assert torch.equal(scores_HN[head, positions].sort().values, scores_HN[head, theirs].sort().values)


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize(
    ("name", "params"), SETUPS, ids=[f"{index}-{it[0]}" for index, it in enumerate(SETUPS)]
)
def test_a_press_leaves_the_bits_that_its_own_run_leaves(
    model_name: str, name: str, params: dict, seed: int
) -> None:
    model = tiny_model(seed, **MODELS[model_name])
    prompt = make_prompt(seed, a_length(seed))
    for ratio in RATIOS[model_name]:
        assert_same(model, prompt, name, params, ratio)

"""The policies that docs/policies.md calls the same as kvpress's keep the tokens that kvpress keeps, at the same slots.

Presses are called directly, on one layer: kvpress's context manager and its pipeline want an older transformers.

Shapes: N tokens, E hidden size, Q query heads, H KV heads, D head size.
"""

import importlib.metadata
import importlib.util
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, Qwen3Config
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

from kvmerger.budget import Budget
from kvmerger.building import build
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels.dispatch import is_among_highest
from kvmerger.policies.base import Policy
from kvmerger.policies.ranking.lagkv import LagKV
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import Evidence, LayerStates

VERSION = "0.5.5"
HIDDEN_SIZE = 48
KEPT_SHARES = (0.25, 0.5, 0.9)
SAME = [
    ("knorm", {}, "KnormPress", {}),
    ("keydiff", {}, "KeyDiffPress", {}),
    ("observed_attention", {}, "ObservedAttentionPress", {}),
    *(("streaming_llm", sinks, "StreamingLLMPress", sinks) for sinks in ({}, {"n_sink": 0})),
    *(
        ("snapkv", window, "SnapKVPress", window)
        for window in ({}, {"window_size": 1}, {"window_size": 32, "kernel_size": 7}, {"kernel_size": 1})
    ),
    *(
        ("cur", settings, "CURPress", settings)
        for settings in (
            {}, {"leverage_type": "key"}, {"leverage_type": "kv_avg"}, {"use_local_approximation": False},
            {"local_window_size": 7, "num_sinks": 0},
        )
    ),
    *(
        ("expected_attention", settings, "ExpectedAttentionPress", settings)
        for settings in (
            {}, {"epsilon": 0.01}, {"use_covariance": False}, {"use_vnorm": False},
            {"n_sink": 0, "n_future_positions": 64},
        )
    ),
    ("lagkv", {"lag_size": 32, "cross_scoring": True}, "LagKVPress", {"lag_size": 32, "cross_scoring": True}),
]  # fmt: skip
ADAPTED = [
    ("snapkv", {}, "SnapKVPress"),
    ("keydiff", {}, "KeyDiffPress"),
    ("expected_attention", {"epsilon": 0.01}, "ExpectedAttentionPress"),
]
DIFFERENT = {"random", "pyramidkv", "tova", "lagkv", "compactor", "duo_attention", "simlayerkv"}
"""What docs/policies.md tells a difference of; of the last five, tests here and beside hold that there is no other."""


@pytest.fixture(scope="module")
def presses() -> Iterator[Any]:
    """The package kvpress; transformers' attention functions are what they were before its import."""
    missing = [name for name in ("kvpress", "datasets", "fire") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: `make install`")
    found = importlib.metadata.version("kvpress")
    if found != VERSION:
        pytest.skip(f"policies are held to kvpress {VERSION}, and {found} is installed")
    before = dict(ALL_ATTENTION_FUNCTIONS.items())
    import kvpress

    # Tests after this file's must not depend on whether it ran in their process.
    for name, function in before.items():
        ALL_ATTENTION_FUNCTIONS[name] = function
    yield kvpress


class Layer(NamedTuple):
    """One attention layer on one prompt, as kvpress's presses and as our policies are told of it."""

    states: LayerStates
    module: Any
    position_embeddings: tuple[Tensor, Tensor]

    @property
    def num_heads(self) -> int:
        return self.states.k_HND.shape[0]

    @property
    def num_tokens(self) -> int:
        return self.states.k_HND.shape[1]


SHAPES = {"gqa": (8, 2, 16), "mha": (4, 4, 16), "mqa": (4, 1, 16), "hd40": (4, 2, 40), "qwen3": (8, 2, 16)}
"""Query heads, KV heads and head size; Qwen3 normalises its queries."""


@cache
@torch.no_grad()
def random_layer(shape: str, num_tokens: int, seed: int) -> Layer:
    num_query_heads, num_kv_heads, head_dim = SHAPES[shape]
    modeling: Any = modeling_qwen3 if shape == "qwen3" else modeling_llama
    config = (Qwen3Config if shape == "qwen3" else LlamaConfig)(
        hidden_size=HIDDEN_SIZE, num_attention_heads=num_query_heads, num_key_value_heads=num_kv_heads,
        head_dim=head_dim, num_hidden_layers=1, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(seed)
    kind = "Qwen3" if shape == "qwen3" else "Llama"
    module = getattr(modeling, f"{kind}Attention")(config, layer_idx=0).eval().requires_grad_(False)
    module.rotary_emb = getattr(modeling, f"{kind}RotaryEmbedding")(config)
    hidden_1NE = 3 * torch.randn(1, num_tokens, HIDDEN_SIZE) + torch.randn(HIDDEN_SIZE)
    q_1QND, k_1HND, v_1HND = (
        project(hidden_1NE).unflatten(2, (-1, head_dim)).transpose(1, 2)
        for project in (module.q_proj, module.k_proj, module.v_proj)
    )
    if shape == "qwen3":
        for norm in (module.q_norm, module.k_norm):
            norm.weight.normal_(1.0, 0.5)  # all 1, as they are made, they would give every key the same norm
        q_1QND, k_1HND = module.q_norm(q_1QND), module.k_norm(k_1HND)
    cos_sin = module.rotary_emb(hidden_1NE, torch.arange(num_tokens)[None])
    q_1QND, k_1HND = modeling.apply_rotary_pos_emb(q_1QND, k_1HND, *cos_sin)
    states = LayerStates(
        q_1QND[0], k_1HND[0], v_1HND[0].contiguous(), module.scaling, hidden_1NE[0], module, module.rotary_emb
    )
    return Layer(states, module, cos_sin)


def cases(seed: int) -> Iterator[tuple[Layer, int]]:
    """Every shape at a length of its own that is drawn; each with few, half and most of its slots."""
    lengths = random.Random(seed)
    for shape in SHAPES:
        layer = random_layer(shape, lengths.randrange(300, 600), seed)
        for share in KEPT_SHARES:
            yield layer, int(layer.num_tokens * share)


def ratio_for(num_slots: int, num_tokens: int) -> float:
    """What makes kvpress keep ``num_slots``, far from where its rounding could lose one."""
    return 1 - (num_slots + 0.5) / num_tokens


def eager_attention(states: LayerStates) -> Tensor:
    """Causal weights (1, Q, N, N) of every query."""
    group = states.q_QND.shape[0] // states.k_HND.shape[0]
    logits_QNN = states.scaling * states.q_QND @ states.k_HND.repeat_interleave(group, dim=0).transpose(1, 2)
    is_later_NN = torch.ones(logits_QNN.shape[1:], dtype=torch.bool).triu(1)
    return logits_QNN.masked_fill(is_later_NN, -torch.inf).softmax(dim=2)[None]


def compressed_by(press: Any, layer: Layer) -> tuple[Tensor, Tensor]:
    """Keys and values (H, K, D) that ``press`` leaves, in its own order."""
    states = layer.states
    wants_weights = type(press).__name__ == "ObservedAttentionPress"
    k_1HKD, v_1HKD = press.compress(
        layer.module, states.hidden_NE[None], states.k_HND[None].clone(), states.v_HND[None].clone(),
        eager_attention(states) if wants_weights else None, {"position_embeddings": layer.position_embeddings},
    )  # fmt: skip
    return k_1HKD[0], v_1HKD[0]


def places_of(k_HKD: Tensor, layer: Layer) -> Tensor:
    """Which token each of these keys is of: (H, K)."""
    # By two channels: enough to tell random keys apart, and all of them would be most of this file's time.
    is_same_HKN = (k_HKD[:, :, None, :2] == layer.states.k_HND[:, None, :, :2]).all(dim=3)
    assert (is_same_HKN.sum(dim=2) == 1).all(), "no two tokens have the same key"
    return is_same_HKN.int().argmax(dim=2)


def kept_by(press: Any, layer: Layer) -> Tensor:
    """Which tokens ``press`` keeps: bool (H, N)."""
    places_HK = places_of(compressed_by(press, layer)[0], layer)
    return torch.zeros(layer.states.k_HND.shape[:2], dtype=torch.bool).scatter(1, places_HK, True)


def evidence_of(policy: Policy, layer: Layer) -> Evidence:
    evidence = Evidence(layer.states, 0, 1, prompt_seed=5)
    evidence.capture(policy.needs())
    return evidence


def assert_same_tokens(ours_HN: Tensor, theirs_HN: Tensor, scores_HN: Tensor) -> None:
    """Both keep the same tokens; two may be exchanged if their scores are equal but for rounding."""
    assert ours_HN.sum() == theirs_HN.sum()
    only_ours, only_theirs = (
        scores_HN[ours_HN & ~theirs_HN].double(),
        scores_HN[theirs_HN & ~ours_HN].double(),
    )
    assert len(only_ours) <= 2, f"{len(only_ours)} tokens of {int(ours_HN.sum())} differ"
    if len(only_ours):
        gap, size = float(only_ours.max() - only_theirs.min()), float(only_ours.max().abs())
        assert gap <= 1e-5 * size, f"kept instead of a token that scores {gap} of {size} higher"


@pytest.mark.parametrize(("name", "params", "press", "settings"), SAME, ids=str)
def test_the_same_tokens_stay(
    name: str, params: dict, press: str, settings: dict, presses: Any, seed: int
) -> None:
    policy = build(name, params)
    assert isinstance(policy, ScoringPolicy)
    for layer, num_slots in cases(seed):
        evidence = evidence_of(policy, layer)
        ours_HN = policy.select(evidence, Budget.uniform(num_slots, layer.num_heads, 0.5))
        made = getattr(presses, press)(ratio_for(num_slots, layer.num_tokens), **settings)
        theirs_HN = kept_by(made, layer)
        assert_same_tokens(ours_HN, theirs_HN, policy.scores(evidence))


@pytest.mark.parametrize("alpha", [0, 0.2, 0.5, 1])
@pytest.mark.parametrize(("name", "params", "press"), ADAPTED, ids=str)
def test_ada_kv_gives_every_head_the_same_tokens(
    name: str, params: dict, press: str, alpha: float, presses: Any, seed: int
) -> None:
    policy = build(f"{name}+adakv", {**params, "alpha": alpha})
    assert isinstance(policy, ScoringPolicy)
    few = [(random_layer("mha", 301, seed), num_slots) for num_slots in (1, 2, 4, 5)]
    for layer, num_slots in [*cases(seed), *(few if name == "keydiff" else [])]:
        inner = getattr(presses, press)(ratio_for(num_slots, layer.num_tokens), **params)
        compressed_by(presses.AdaKVPress(inner, alpha_safeguard=alpha), layer)
        theirs_HN = torch.ones(layer.states.k_HND.shape[:2], dtype=torch.bool)
        theirs_HN[layer.module.masked_key_indices[1:]] = False
        evidence = evidence_of(policy, layer)
        ours_HN = policy.select(evidence, Budget.uniform(num_slots, layer.num_heads, 0.5))
        assert_same_tokens(ours_HN, theirs_HN, policy.scores(evidence))


def test_values_fold_into_the_nearest_kept_token_alike(presses: Any, seed: int) -> None:
    policy = build("snapkv+nearest", {})
    for layer, num_slots in cases(seed):
        press = presses.MergingPress(presses.SnapKVPress(ratio_for(num_slots, layer.num_tokens)))
        k_HKD, v_HKD = compressed_by(press, layer)
        order_HK = places_of(k_HKD, layer).argsort(dim=1)
        dense = LayerCache.from_dense(layer.states.k_HND, layer.states.v_HND)
        ours = policy.compress(
            dense, evidence_of(policy, layer), Budget.uniform(num_slots, layer.num_heads, 0.5)
        )
        theirs_SD = v_HKD.gather(1, order_HK[:, :, None].expand_as(v_HKD)).flatten(0, 1)
        num_off = int(((ours.v_SD - theirs_SD).abs() > 1e-5).any(dim=1).sum())
        # A dropped token that is as similar to two kept ones but for rounding, or two exchanged tokens, move two slots.
        assert num_off <= 2, f"{num_off} of {len(theirs_SD)} values differ"


def test_tova_differs_in_the_last_token_alone(presses: Any, seed: int) -> None:
    policy = build("tova", {})
    assert isinstance(policy, ScoringPolicy)
    for layer, num_slots in cases(seed):
        scores_HN = policy.scores(evidence_of(policy, layer)).clone()
        scores_HN[:, -1] = torch.inf
        theirs_HN = kept_by(presses.TOVAPress(ratio_for(num_slots, layer.num_tokens)), layer)
        ours_HN = is_among_highest(scores_HN, (num_slots,) * layer.num_heads)
        # All heads keep the same tokens, so one exchange shows in each of them.
        assert_same_tokens(ours_HN[:1], theirs_HN[:1], scores_HN[:1])


def test_lagkv_differs_among_tokens_of_equal_rank_alone(presses: Any, seed: int) -> None:
    policy, press = LagKV(lag_size=32), presses.LagKVPress(lag_size=32)
    for layer, num_slots in cases(seed):
        press.compression_ratio = ratio_for(num_slots, layer.num_tokens)
        rank_HN = press.score(None, None, layer.states.k_HND[None], layer.states.v_HND[None], None, {})[0]
        ours_HN = policy.select(evidence_of(policy, layer), Budget.uniform(num_slots, layer.num_heads, 0.5))
        theirs_HN = kept_by(press, layer)
        assert torch.equal(ours_HN.sum(dim=1), theirs_HN.sum(dim=1))
        for rank_N, ours_N, theirs_N in zip(rank_HN, ours_HN, theirs_HN, strict=True):
            swapped = rank_N[ours_N & ~theirs_N].sort().values - rank_N[theirs_N & ~ours_N].sort().values
            # One pair of a partition may be ranked the other way round by rounding.
            assert (swapped != 0).sum() <= 1, f"tokens of unequal rank are exchanged: {swapped.tolist()}"


def test_every_policy_that_names_a_kvpress_key_is_compared(repo_root: Path) -> None:
    text = (repo_root / "docs" / "policies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|", text, flags=re.MULTILINE)
    named = {name for name, key in rows if "`" in key and not key.startswith("none")}
    # These in test_kvpress_repeat.py and test_kvpress_wrappers.py, `key_rerotation` in adapters/test_kvpress_rows.py.
    compared = {case[0] for case in SAME} | {
        "adakv",
        "nearest",
        "kvzip",
        "kvzip_plus",
        "criticalkv",
        "chunkkv",
        "key_rerotation",
    }
    # `cam` and `periodic` stand beside presses that decode, and differ from them.
    assert named - {"cam", "periodic"} == compared | DIFFERENT

"""Presses through the engine: they answer as our policies of the same kind, free memory, and go with what may follow them."""

import random
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from kvmerger.building import build, build_variant
from kvmerger.contract.checks import check_policy, first_failure
from kvmerger.engine import Engine
from kvmerger.generation import Generation, Prompt, Question
from kvmerger.names import VariantError
from kvmerger.variants import FULL, parse_policies
from tests.fakes.kvpress_runs import require_kvpress
from tests.fakes.tiny_models import VOCAB_SIZE, TinyModel, tiny_model

NUM_TOKENS, NUM_LAYERS = 150, 3
KNORM = {"name": "KnormPress"}
SNAP = {"name": "SnapKVPress", "window_size": 16}
OWN = '''
from kvpress import KnormPress, ScorerPress
from kvpress.presses.base_press import BasePress


class Recent(ScorerPress):
    """Ranks alone."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return kwargs["cache_position"].to(keys.dtype).expand(keys.shape[:3])


class ByRatio(Recent):
    """Ranks by its ratio."""

    def score(self, *args):
        return super().score(*args) * (1 - 2 * (self.compression_ratio > 0.5))


class Halves(BasePress):
    """Keeps the first half, whatever is asked for."""

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        half = keys.shape[2] // 2
        return keys[:, :, :half], values[:, :, :half]


class Shrinks(Recent):
    """Changes what it keeps, and says so."""

    changes_slots = True

    def compress(self, *args):
        keys, values = super().compress(*args)
        return keys, values / 2


class Secretly(Shrinks):
    """Does not say so."""

    changes_slots = False


class Loops(KnormPress):
    """Would run the model again."""

    def __call__(self, model):
        return super().__call__(model)


best = KnormPress()
'''


@pytest.fixture(autouse=True)
def _kvpress() -> None:
    require_kvpress()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_presses.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_presses"


def rows_of(
    model: TinyModel, policies: list[Any], seed: int, execution: Literal["fused", "isolated"] = "fused"
) -> dict[str, Any]:
    rng = random.Random(seed)
    context, tail, gold = (
        tuple(rng.randrange(VOCAB_SIZE) for _ in range(count)) for count in (NUM_TOKENS, 5, 4)
    )
    variants = [build_variant(spec) for spec in parse_policies(policies)]
    rows = Engine(model.ours).run(
        Prompt(context, (Question(tail, gold, 8),)), variants, seed=seed, execution=execution
    )
    return {row.label: row for row in rows}


def numbers(row: Any) -> tuple:
    assert isinstance(row, Generation), row.message
    return row.token_ids, row.kl_mean, row.answer_nll, row.kv_bytes, row.slots_LH


ALIKE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"name": "kvpress:SnapKVPress", "window_size": 16}, {"name": "snapkv", "window_size": 16}),
    ({"name": "kvpress:SnapKVPress+adakv", "window_size": 16}, {"name": "snapkv+adakv", "window_size": 16}),
    ({"name": "kvpress:AdaKVPress", "press": SNAP}, {"name": "snapkv+adakv", "window_size": 16}),
    ({"name": "kvpress:ObservedAttentionPress"}, {"name": "observed_attention"}),
    ({"name": "kvpress:KeyDiffPress+compensated"}, {"name": "keydiff+compensated"}),
    ({"name": "kvpress:KnormPress+int8"}, {"name": "knorm+int8"}),
    ({"name": "kvpress:StreamingLLMPress+streaming_llm_decode"}, {"name": "streaming_llm+streaming_llm_decode"}),
    ({"name": "kvpress:KeyRerotationPress", "press": KNORM}, {"name": "knorm+key_rerotation"}),
]  # fmt: skip


@pytest.mark.parametrize("execution", ["fused", "isolated"])
def test_presses_answer_as_our_own_policies_do(execution: Any, seed: int) -> None:
    model = tiny_model(seed, num_layers=NUM_LAYERS)
    pairs = [
        {**entry, "compression_ratio": 0.4, "label": f"{side}{index}"}
        for index, pair in enumerate(ALIKE)
        for side, entry in zip(("theirs", "ours"), pair, strict=True)
    ]
    rows = rows_of(model, pairs, seed, execution)
    for index, (entry, _) in enumerate(ALIKE):
        theirs, ours = (numbers(rows[f"{side}{index}"]) for side in ("theirs", "ours"))
        assert theirs[3:] == ours[3:], entry
        # kvpress turns keys in the model's dtype, from rounded tables. A random model makes 8 % of KL of that at times: the
        # press's numbers are held to kvpress's own run, and ours to a float64 decoder, elsewhere.
        if entry["name"] == "kvpress:KeyRerotationPress":
            continue
        assert theirs[0] == ours[0], entry
        assert theirs[1:3] == pytest.approx(ours[1:3], rel=1e-4), entry


def test_memory_is_freed_and_outcomes_need_no_budget(seed: int) -> None:
    model = tiny_model(seed, num_layers=NUM_LAYERS)
    policies = [
        {"name": "kvpress:CriticalAdaKVPress", "compression_ratio": 0.5, "press": SNAP},
        {"name": "kvpress:DMSPress", "threshold": -4.0, "press": KNORM, "sliding_window_size": 32},
        {"name": "kvpress:ThinKPress", "key_channel_compression_ratio": 0.5},
        {"name": "kvpress:KnormPress", "budget": {"like": "DMSPress"}, "label": "like"},
        {"name": "kvpress:AdaKVPress+int4", "press": KNORM, "budget": {"bytes": 0.2}, "label": "bytes"},
    ]
    rows = rows_of(model, policies, seed)
    full = rows[FULL].kv_bytes
    assert rows["CriticalAdaKVPress@0.5"].kv_bytes == full // 2
    assert rows["DMSPress"].kv_bytes < full and rows["like"].slots_LH == rows["DMSPress"].slots_LH
    assert rows["ThinKPress"].kv_bytes == full and rows["ThinKPress"].degenerate_reason is None
    assert rows["ThinKPress"].kl_mean > 0
    assert rows["bytes"].read_bytes <= 0.2 * rows[FULL].full_read_bytes


def test_random_presses_draw_by_prompt_and_layer(seed: int) -> None:
    model = tiny_model(seed, num_layers=NUM_LAYERS)
    policies = ["kvpress:RandomPress@0.5", "kvpress:LeverageScorePress@0.5"]
    torch.manual_seed(seed)
    before = torch.get_rng_state()
    first, again = (rows_of(model, names, seed) for names in (policies, list(reversed(policies))))
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("RandomPress@0.5", "LeverageScorePress@0.5"):
        assert numbers(first[name]) == numbers(again[name])
    assert numbers(first["RandomPress@0.5"]) != numbers(rows_of(model, policies, seed + 1)["RandomPress@0.5"])


def test_users_presses_run_by_what_their_classes_are(own: str, seed: int) -> None:
    model = tiny_model(seed, num_layers=NUM_LAYERS)
    policies = [
        *(f"{own}:{name}@0.5" for name in ("Recent", "ByRatio", "Shrinks", "Secretly", "best")),
        {"name": f"{own}:Halves"}, {"name": "kvpress:AdaKVPress", "press": {"name": f"{own}:Recent"}, "budget": 0.5},
        "knorm@0.5", f"{own}:Recent+adakv@0.5",
    ]  # fmt: skip
    rows = rows_of(model, policies, seed)
    assert [type(build(f"{own}:{name}", {})).__name__ for name in ("Recent", "ByRatio", "Halves", "Shrinks")] == [
        "ScoredPress", "SelectingPress", "SelectingPress", "ChangingPress"
    ]  # fmt: skip
    assert numbers(rows["best@0.5"]) == numbers(rows["knorm@0.5"])
    assert rows["Halves"].slots_LH == ((NUM_TOKENS // 2,) * 2,) * NUM_LAYERS
    assert "changes_slots = True" in rows["Secretly@0.5"].message
    assert rows["Shrinks@0.5"].kv_bytes == rows["Recent@0.5"].kv_bytes
    assert rows["Shrinks@0.5"].kl_mean != rows["Recent@0.5"].kl_mean
    with pytest.raises(VariantError, match=r"Loops has a context manager of its own .*never entered"):
        build(f"{own}:Loops", {})


def test_a_press_refuses_a_prompt_in_a_sentence(seed: int) -> None:
    rows = rows_of(
        tiny_model(seed, num_layers=NUM_LAYERS),
        [
            "kvpress:SnapKVPress@0.5",
            {"name": "kvpress:SnapKVPress", "window_size": 500, "budget": 0.5, "label": "long"},
        ],
        seed,
    )
    assert isinstance(rows["SnapKVPress@0.5"], Generation)
    assert rows["long"].error_type == "BudgetError"
    assert rows["long"].message.startswith(f"SnapKVPress refuses a compressed part of {NUM_TOKENS} tokens: ")


@pytest.mark.parametrize(
    "name",
    [
        "kvpress:SnapKVPress",
        "kvpress:StreamingLLMPress",
        "kvpress:CompactorPress",
        "kvpress:TOVAPress+adakv+compensated",
    ],
)
def test_presses_keep_the_contract(name: str, seed: int) -> None:
    broken = [result for result in check_policy(name, seed=seed) if not result.is_ok]
    assert not broken, "\n".join(f"{result.name}: {result.message}" for result in broken)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("kvpress:KeyRerotationPress", {"press": KNORM}), ("kvpress:MergingPress", {"press": SNAP}),
        ("kvpress:DMSPress", {"press": KNORM, "threshold": -3.0}), ("kvpress:AdaKVPress", {"press": KNORM}),
        ("kvpress:ThinKPress", {"key_channel_compression_ratio": 0.5}),
    ],
)  # fmt: skip
def test_nested_presses_keep_the_contract(name: str, params: dict, seed: int) -> None:
    assert first_failure(name, params, seed=seed) is None

"""KVzip and KVzip+ score as kvpress's press does, on a model whose tokenizer, cache and passes are kvpress's own to use."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedTokenizerFast

from kvmerger.budget import Budget
from kvmerger.building import build
from kvmerger.models.repeat_words import repeat_words
from kvmerger.policies.base import PolicyError
from kvmerger.policies.ranking.kvzip import KVzip
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.prefill import prefill
from kvmerger.prefill.repeat import repeat
from tests.fakes.tiny_models import VOCAB_SIZE, tiny_model
from tests.kvmerger.policies.test_kvpress import assert_same_tokens, presses

__all__ = ["presses"]

NUM_TOKENS, PART_TOKENS = 211, 64
SETTINGS = [("kvzip", {}), ("kvzip_plus", {"kvzip_plus_normalization": True})]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of a word for each number."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["Repeat", "the", "previous", "context", "exactly", ".", "part", "of", ",", "starting", "with"]
    vocab = {word: index for index, word in enumerate([*words, "?"])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?").save_pretrained(folder)
    return folder


class Case:
    """A tiny model, a context without repeated tokens, and both sides' scores on it."""

    def __init__(self, seed: int, folder: Path, model_type: str) -> None:
        self.model = tiny_model(seed, model_type=model_type, num_layers=3)
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randperm(VOCAB_SIZE, generator=generator)[:NUM_TOKENS].tolist()
        self.model.plain.config.name_or_path = str(folder)
        self.words = repeat_words(PreTrainedTokenizerFast.from_pretrained(folder))

    def theirs(self, press: Any) -> tuple[Tensor, Tensor]:
        """Scores and kept tokens, (L, H, N) both, of a run inside ``press``."""
        scores: list[Tensor] = []
        compress = press.compress_post

        def note(model: Any) -> None:
            compress(model)
            scores.append(press.score_val[:, 0].clone())

        press.compress_post = note
        plain: LlamaForCausalLM = self.model.plain
        with torch.inference_mode(), press(plain):
            plain.model(input_ids=torch.tensor([self.ids]), past_key_values=DynamicCache(config=plain.config))
        is_kept_LHN = torch.ones_like(scores[0], dtype=torch.bool)
        for index, layer in enumerate(plain.model.layers):
            _, head_X, token_X = layer.self_attn.masked_key_indices
            is_kept_LHN[index, head_X, token_X] = False
        return scores[0], is_kept_LHN

    def ours(self, name: str, num_slots: int, **params: Any) -> tuple[Tensor, Tensor]:
        """The same of a policy of ours."""
        policy = build(name, params)
        assert isinstance(policy, ScoringPolicy)
        model = replace(self.model.ours, repeat_words=lambda: self.words)
        prefilled = prefill(model, self.ids, policy.needs())
        repeat(model, self.ids, prefilled, policy.needs(), part_tokens=PART_TOKENS)
        even = Budget.uniform(num_slots, 2, 0.5)
        budget_L = policy.allocate([even] * 3, prefilled.evidence)
        assert sum(budget.num_slots for budget in budget_L) == 3 * 2 * num_slots
        layers = list(zip(prefilled.evidence, budget_L, strict=True))
        scores_LHN = torch.stack([policy.scores(evidence) for evidence, _ in layers])
        return scores_LHN, torch.stack([policy.select(evidence, budget) for evidence, budget in layers])


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def case(request: pytest.FixtureRequest, tokenizer_folder: Path, seed: int) -> Iterator[Case]:
    yield Case(seed, tokenizer_folder, request.param)


@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=str)
def test_scores_and_kept_tokens_of_all_layers_are_kvpresss(
    name: str, settings: dict, case: Case, presses: Any
) -> None:
    for num_slots in (40, NUM_TOKENS // 2):
        num_removed = 3 * 2 * (NUM_TOKENS - num_slots)
        press = presses.KVzipPress(
            (num_removed + 0.5) / (3 * 2 * NUM_TOKENS), chunk_size=PART_TOKENS, **settings
        )
        theirs_LHN, kept_LHN = case.theirs(press)
        scores_LHN, ours_LHN = case.ours(name, num_slots)
        # Sinks are infinite here and one above the largest there.
        torch.testing.assert_close(scores_LHN[..., 4:], theirs_LHN[..., 4:], atol=1e-5, rtol=1e-4)
        assert scores_LHN[..., :4].isinf().all()
        assert_same_tokens(ours_LHN.flatten(0, 1), kept_LHN.flatten(0, 1), scores_LHN.flatten(0, 1))


@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=str)
def test_heads_of_a_layer_compete_as_in_kvpresss_layerwise(
    name: str, settings: dict, case: Case, presses: Any
) -> None:
    num_slots = 60
    ratio = (2 * (NUM_TOKENS - num_slots) + 0.5) / (2 * NUM_TOKENS)
    _, kept_LHN = case.theirs(presses.KVzipPress(ratio, layerwise=True, chunk_size=PART_TOKENS, **settings))
    scores_LHN, ours_LHN = case.ours(f"{name}+adakv", num_slots, compete="head", alpha=0)
    for ours_HN, theirs_HN, scores_HN in zip(ours_LHN, kept_LHN, scores_LHN, strict=True):
        assert_same_tokens(ours_HN, theirs_HN, scores_HN)


def test_heads_that_compete_over_the_model_are_not_shared_out_again() -> None:
    with pytest.raises(PolicyError, match="leave adakv out"):
        build("kvzip+adakv", {})


def test_budgets_are_nested_and_each_heads_own_where_told(case: Case) -> None:
    few_LHN, many_LHN = (case.ours("kvzip", num_slots)[1] for num_slots in (30, 90))
    assert not (few_LHN & ~many_LHN).any()
    _, even_LHN = case.ours("kvzip", 60, compete="head")
    assert (even_LHN.sum(dim=2) == 60).all()
    assert KVzip(compete="head").allocate([Budget.uniform(60, 2, 0.5)], []) == [Budget.uniform(60, 2, 0.5)]

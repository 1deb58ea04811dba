"""Which tokens are special comes from the model's tokenizer, and is missed by those alone who ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from kvmerger.prefill.evidence import EvidenceError, Need
from kvmerger.prefill.prefill import prefill
from kvmerger.prefill.token_classes import TOKEN_CLASSES
from tests.fakes.tiny_models import tiny_model

IDS = [5, 9, 7, 9, 30]
NEEDS = frozenset({TOKEN_CLASSES, Need("key_norms")})


def test_every_layer_has_the_class_of_each_token(seed: int) -> None:
    model = replace(tiny_model(seed).ours, token_classes=lambda ids: [it % 3 for it in ids])
    prefilled = prefill(model, IDS, NEEDS)
    for evidence in prefilled.evidence:
        classes_N = evidence.get(TOKEN_CLASSES)
        assert classes_N.dtype == torch.uint8 and classes_N.tolist() == [2, 0, 1, 0, 0]


def test_who_does_not_ask_needs_no_tokenizer(seed: int) -> None:
    def unreadable(ids: Sequence[int]) -> Sequence[int]:
        raise OSError("no such file")

    for classes, error, message in (
        (None, EvidenceError, "has no tokenizer here"),
        (unreadable, OSError, "no such file"),
    ):
        model = replace(tiny_model(seed).ours, token_classes=classes)
        prefilled = prefill(model, IDS, NEEDS)
        assert prefilled.evidence[0].get(Need("key_norms")).shape == (2, len(IDS))
        with pytest.raises(error, match=message):
            prefilled.evidence[0].get(TOKEN_CLASSES)


def test_it_must_be_declared(seed: int) -> None:
    prefilled = prefill(tiny_model(seed).ours, IDS, frozenset())
    with pytest.raises(EvidenceError, match="declare it in needs"):
        prefilled.evidence[0].get(TOKEN_CLASSES)

"""What extend returns beside hidden states, and what it leaves in the cache."""

import pytest
import torch

from kvmerger.decoding.batch import Batch
from kvmerger.decoding.extend import extend, pad_tokens
from kvmerger.decoding.ragged_cache import RaggedCache
from tests.fakes.tiny_models import tiny_model
from tests.kvmerger.engine.test_engine import make_prompt, make_rows


def test_attention_mass_of_the_rows_that_asked_counts_every_new_token(seed: int) -> None:
    model = tiny_model(seed)
    prompt = make_prompt(seed, 300, "query_agnostic", num_questions=1)
    rows = make_rows(model, prompt)
    batch = Batch(model.ours, prompt, dict(enumerate(rows)), bucket=12)
    asking = {0, next(index for index, row in enumerate(rows) if row.label == "ragged")}
    num_new_R = [3 if index in rows_with_tokens(rows) else 0 for index in range(12)]
    tokens_RT = pad_tokens([[5] * num_new for num_new in num_new_R], 3, model.ours.device)
    extended = extend(model.ours, batch.cache, tokens_RT, num_new_R, mass_rows=asking)
    assert len(extended.mass_by_row_L) == 5
    for layer_index, mass_by_row in enumerate(extended.mass_by_row_L):
        assert mass_by_row.keys() == asking
        for row, mass in mass_by_row.items():
            prefix = rows[row].prefix[layer_index]
            mass_of_heads = torch.stack([part.sum() for part in mass.prefix_S.split(prefix.num_slots_H)])
            # Each of the 3 new tokens spreads a mass of 1 per head over prefix and tail.
            torch.testing.assert_close(mass_of_heads + mass.tail_HC.sum(dim=1), torch.full((2,), 3.0))


def rows_with_tokens(rows: list) -> range:
    return range(len(rows))


def test_a_cache_checks_its_books_and_refuses_to_rewind_forward(seed: int) -> None:
    model = tiny_model(seed)
    prompt = make_prompt(seed, 300, "query_aware", num_questions=1)
    prefix = make_rows(model, prompt)[0].prefix
    cache = RaggedCache([prefix, None], [300, 300], tail_capacity=4)
    extend(model.ours, cache, torch.tensor([[1, 2], [0, 0]]), [2, 0])
    assert cache.tail_length_R == (2, 0)
    cache.check_integrity()
    with pytest.raises(ValueError, match="row 1 has 0 tail tokens and cannot be rewound to 1"):
        cache.rewind([2, 1])
    cache.advance((3, 0))
    with pytest.raises(ValueError, match="exceed"):
        cache.check_integrity()

"""KL, agreement and likelihood against float64, with the logits cut into chunks and whole."""

import pytest
import torch
from torch.nn import functional as F

import kvmerger.fidelity as fidelity_module
from kvmerger.fidelity import compare, continuation_nll
from tests.tiny_models import VOCAB_SIZE, tiny_model


@pytest.fixture(params=[VOCAB_SIZE, 3 * VOCAB_SIZE, 2**24], ids=["one token", "three tokens", "all at once"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity_module, "_MAX_CHUNK_LOGITS", request.param)


def random_hidden(seed: int, num_tokens: int) -> torch.Tensor:
    return torch.randn(num_tokens, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("chunk")
def test_kl_is_from_the_full_row_to_the_variant(seed: int) -> None:
    model = tiny_model(seed).ours
    full_TE = random_hidden(seed, 10)
    # Sharper than the full row's distributions, so that the two directions of KL are far apart.
    variant_TE = 2 * full_TE + 0.3 * random_hidden(seed + 1, 10)
    head = model.module.get_output_embeddings().weight.detach().double()
    p_TV, q_TV = ((hidden_TE.double() @ head.T).softmax(dim=-1) for hidden_TE in (full_TE, variant_TE))
    found = compare(model, full_TE, variant_TE)
    expected_kl = sum(float((p * (p / q).log()).sum()) for p, q in zip(p_TV, q_TV, strict=True)) / 10
    reverse_kl = sum(float((q * (q / p).log()).sum()) for p, q in zip(p_TV, q_TV, strict=True)) / 10
    assert found.kl_mean == pytest.approx(expected_kl, abs=1e-4)
    assert abs(expected_kl - reverse_kl) > 1e-2, (
        "the two directions must differ for this test to say anything"
    )
    expected_agreement = sum(int(p.argmax()) == int(q.argmax()) for p, q in zip(p_TV, q_TV, strict=True)) / 10
    assert found.top1_agreement == pytest.approx(expected_agreement)
    assert found.num_tokens == 10


def test_rows_that_rank_other_tokens_first_do_not_agree(seed: int) -> None:
    model = tiny_model(seed).ours
    hidden_TE = random_hidden(seed, 10)
    assert compare(model, hidden_TE, -hidden_TE).top1_agreement == 0.0
    assert compare(model, hidden_TE, hidden_TE) == (0.0, 1.0, 10)


@pytest.mark.usefixtures("chunk")
def test_nll_is_the_mean_cross_entropy(seed: int) -> None:
    model = tiny_model(seed).ours
    hidden_TE = random_hidden(seed, 7)
    token_ids = torch.randint(VOCAB_SIZE, (7,), generator=torch.Generator().manual_seed(seed))
    head = model.module.get_output_embeddings().weight.detach().double()
    expected = F.cross_entropy(hidden_TE.double() @ head.T, token_ids)
    assert continuation_nll(model, hidden_TE, token_ids.tolist()) == pytest.approx(float(expected), abs=1e-4)

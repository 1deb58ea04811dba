"""KL, agreement and likelihood against float64 and, bit for bit, row by row; logits cut into chunks and whole."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import kvmerger.engine.fidelity as fidelity_module
from bench.engine.op_counter import OpCounter
from kvmerger.engine.fidelity import compare, continuation_nll, fetched
from kvmerger.models.loading import LoadedModel
from tests.fakes.tiny_models import VOCAB_SIZE, tiny_model


@pytest.fixture(params=[VOCAB_SIZE, 3 * VOCAB_SIZE, 2**24], ids=["one token", "three tokens", "all at once"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(fidelity_module, "_MAX_CHUNK_LOGITS", request.param)
    return request.param // VOCAB_SIZE


def random_hidden(seed: int, num_tokens: int) -> Tensor:
    return torch.randn(num_tokens, 64, generator=torch.Generator().manual_seed(seed))


def one_row(
    model: LoadedModel, full_TE: Tensor, variant_TE: Tensor, chunk_tokens: int
) -> tuple[float, float]:
    """KL and agreement of one row with nobody beside it: what `compare` is a faster way to."""
    kls, agreements = [], []
    for full_part_TE, part_TE in zip(
        full_TE.split(chunk_tokens), variant_TE.split(chunk_tokens), strict=True
    ):
        full_TV, variant_TV = (model.logits(it).log_softmax(dim=-1) for it in (full_part_TE, part_TE))
        kls.append((full_TV.exp() * (full_TV - variant_TV)).sum(dim=-1))
        agreements.append(full_TV.argmax(dim=-1) == variant_TV.argmax(dim=-1))
    kl_mean = float(torch.cat(kls).double().mean().clamp_min(0))
    return kl_mean, float(torch.cat(agreements).double().mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_rows_together_have_the_bits_they_have_alone(dtype: torch.dtype, chunk: int, seed: int) -> None:
    model = tiny_model(seed, dtype).ours
    full_TE = random_hidden(seed, 10).to(dtype)
    near = {row: (full_TE + 0.1 * random_hidden(seed + row, 10)).to(dtype) for row in range(1, 4)}
    by_row = {0: full_TE, **near}
    found = fetched(compare(model, full_TE, by_row))
    assert found == {row: one_row(model, full_TE, hidden_TE, chunk) for row, hidden_TE in by_row.items()}
    assert found[0] == (0.0, 1.0)
    assert len({kl_mean for kl_mean, _ in found.values()}) == 4


@pytest.mark.usefixtures("chunk")
def test_kl_is_from_the_full_row_to_the_variant(seed: int) -> None:
    model = tiny_model(seed).ours
    full_TE = random_hidden(seed, 10)
    # Sharper than the full row's distributions, so that the two directions of KL are far apart.
    variant_TE = 2 * full_TE + 0.3 * random_hidden(seed + 1, 10)
    head = model.module.get_output_embeddings().weight.detach().double()
    p_TV, q_TV = ((hidden_TE.double() @ head.T).softmax(dim=-1) for hidden_TE in (full_TE, variant_TE))
    kl_mean, top1_agreement = fetched(compare(model, full_TE, {"a row": variant_TE}))["a row"]
    expected_kl = sum(float((p * (p / q).log()).sum()) for p, q in zip(p_TV, q_TV, strict=True)) / 10
    reverse_kl = sum(float((q * (q / p).log()).sum()) for p, q in zip(p_TV, q_TV, strict=True)) / 10
    assert kl_mean == pytest.approx(expected_kl, abs=1e-4)
    assert abs(expected_kl - reverse_kl) > 1e-2, (
        "the two directions must differ for this test to say anything"
    )
    expected_agreement = sum(int(p.argmax()) == int(q.argmax()) for p, q in zip(p_TV, q_TV, strict=True)) / 10
    assert top1_agreement == pytest.approx(expected_agreement)


def test_rows_that_rank_other_tokens_first_do_not_agree(seed: int) -> None:
    model = tiny_model(seed).ours
    hidden_TE = random_hidden(seed, 10)
    found = fetched(compare(model, hidden_TE, {"other": -hidden_TE, "same": hidden_TE}))
    assert found["other"][1] == 0.0
    assert found["same"] == (0.0, 1.0)


@pytest.mark.usefixtures("chunk")
def test_nll_is_the_mean_cross_entropy(seed: int) -> None:
    model = tiny_model(seed).ours
    head = model.module.get_output_embeddings().weight.detach().double()
    hidden, ids, expected = {}, {}, {}
    for row, num_tokens in enumerate((7, 1, 4)):
        hidden[row] = random_hidden(seed + row, num_tokens)
        token_ids = torch.randint(
            VOCAB_SIZE, (num_tokens,), generator=torch.Generator().manual_seed(seed + row)
        )
        ids[row] = token_ids.tolist()
        expected[row] = float(F.cross_entropy(hidden[row].double() @ head.T, token_ids))
    ids[3] = [1]  # of a row that was not forced
    found = fetched(continuation_nll(model, hidden, ids))
    assert {row: nll for row, (nll,) in found.items()} == pytest.approx(expected, abs=1e-4)


def test_rows_are_compared_without_a_wait_for_each(seed: int) -> None:
    model = tiny_model(seed).ours
    hidden = {row: random_hidden(seed + row, 5) for row in range(6)}
    with OpCounter() as counter:
        compared = compare(model, hidden[0], hidden)
        nlls = continuation_nll(model, hidden, dict.fromkeys(hidden, (1, 2, 3, 4, 5)))
    assert not counter.num_waits, counter.waits
    with OpCounter() as counter:
        assert len(fetched({**{("kl", row): it for row, it in compared.items()}, **nlls})) == 12
    assert counter.num_waits == 1, counter.waits


def test_numbers_are_fetched_for_each_row_by_itself() -> None:
    numbers = {"a": torch.tensor([1.0, 2.0]).double(), "b": torch.tensor([3.0]).double()}
    assert fetched(numbers) == {"a": (1.0, 2.0), "b": (3.0,)}
    assert fetched({}) == {}

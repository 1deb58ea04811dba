"""The engine's promises once more, on real weights and a prompt of real prose."""

from pydoc_data.topics import topics

import pytest
import torch
from transformers import AutoModelForCausalLM

from kvmerger.building import build_variant
from kvmerger.cache.slot_table import storage_addresses
from kvmerger.decoding.batch import Batch
from kvmerger.engine import Engine
from kvmerger.engine.compress import compress_all
from kvmerger.generation import Prompt, Question
from kvmerger.limits import bucket_for
from kvmerger.models.demo import demo_folder
from kvmerger.models.loading import load_model, load_tokenizer
from kvmerger.prefill.prefill import prefill
from kvmerger.variants import FULL, parse_policies
from tests.fakes.tiny_models import TinyModel, assert_same_greedy_tokens
from tests.kvmerger.engine.test_engine import make_rows

pytestmark = pytest.mark.demo
NUM_NEW_TOKENS = 12
POLICIES = [
    {"name": "kvmerger", "budget": 0.5},
    {"name": "kvmerger_paper", "budget": 0.35, "label": "paper"},
    {"name": "snapkv", "budget": 0.5},
]


@pytest.fixture(scope="module")
def demo() -> TinyModel:
    plain = AutoModelForCausalLM.from_pretrained(demo_folder(with_weights=True), dtype=torch.float32)
    return TinyModel(load_model("demo", dtype="float32"), plain.eval())


@pytest.fixture(scope="module")
def prompt(seed: int) -> Prompt:
    tokenizer = load_tokenizer("demo")
    prose = " ".join(" ".join(text.split()) for text in topics.values())
    start = seed % (len(prose) // 2)
    ids = tokenizer(prose[start : start + 4000])["input_ids"][:400]
    tail = tokenizer("\n\nIn one sentence, this text explains")["input_ids"]
    return Prompt(
        tuple(ids), (Question(tuple(tail), tuple(tokenizer(" the language")["input_ids"]), NUM_NEW_TOKENS),)
    )


def test_full_row_decodes_and_predicts_as_transformers_does(demo: TinyModel, prompt: Prompt) -> None:
    variants = [build_variant(spec) for spec in parse_policies(POLICIES)]
    generations = {g.label: g for g in Engine(demo.ours).run(prompt, variants)}
    ids_1T = torch.tensor([[*prompt.context_ids, *prompt.questions[0].tail_ids]])
    expected = demo.plain.generate(ids_1T, max_new_tokens=NUM_NEW_TOKENS, do_sample=False)
    assert_same_greedy_tokens(demo.plain, ids_1T, generations[FULL].token_ids, expected)
    with torch.inference_mode():
        gold = prompt.questions[0].gold_ids
        logits_TV = demo.plain(torch.cat([ids_1T, torch.tensor([gold])], dim=1)).logits[
            0, -len(gold) - 1 : -1
        ]
    nll = torch.nn.functional.cross_entropy(logits_TV, torch.tensor(gold))
    assert generations[FULL].answer_nll == pytest.approx(float(nll), abs=1e-4)
    heads = [slots for layer in generations["paper"].slots_LH for slots in layer]
    assert len(set(heads)) > 10, "threshold mode should leave heads of many lengths"


def test_every_row_alone_has_the_bits_it_has_in_the_batch(demo: TinyModel, prompt: Prompt) -> None:
    rows = dict(enumerate(make_rows(demo, prompt, POLICIES, ragged_label="paper")))
    bucket = bucket_for(len(rows))
    together = Batch(demo.ours, prompt, rows, bucket)
    answers = together.decode()
    hidden = together.force(dict.fromkeys(rows, answers[0].token_ids), NUM_NEW_TOKENS)
    for index, row in rows.items():
        if row.label not in ("kvmerger@0.5", "paper"):
            continue
        alone = Batch(demo.ours, prompt, {index: row}, bucket)
        assert alone.decode()[index] == answers[index], row.label
        assert torch.equal(
            alone.force({index: answers[0].token_ids}, NUM_NEW_TOKENS)[index], hidden[index]
        ), row.label


def test_forced_logits_equal_a_plain_forward(demo: TinyModel, prompt: Prompt) -> None:
    rows = [row for row in make_rows(demo, prompt, POLICIES, ragged_label="paper") if row.label == FULL]
    forced_ids = prompt.context_ids[:NUM_NEW_TOKENS]
    hidden_TE = Batch(demo.ours, prompt, {0: rows[0]}, bucket=4).force({0: forced_ids}, NUM_NEW_TOKENS)[0]
    ids_1T = torch.tensor([[*prompt.context_ids, *prompt.questions[0].tail_ids, *forced_ids]])
    with torch.inference_mode():
        plain_TV = demo.plain(ids_1T).logits[0, -NUM_NEW_TOKENS - 1 : -1]
    torch.testing.assert_close(demo.ours.logits(hidden_TE), plain_TV, atol=1e-4, rtol=0)


def test_neighbours_and_rewinding_change_no_bit(demo: TinyModel, prompt: Prompt) -> None:
    rows = make_rows(demo, prompt, POLICIES, ragged_label="paper")
    watched = next(index for index, row in enumerate(rows) if row.label == "paper")
    others = [row for row in rows if row.label != "paper"][::-1]
    ids = prompt.context_ids[:NUM_NEW_TOKENS]
    hidden = []
    for arrangement in (rows, [*others[:watched], rows[watched], *others[watched:]]):
        batch = Batch(demo.ours, prompt, dict(enumerate(arrangement)), bucket_for(len(rows)))
        hidden.append(batch.force(dict.fromkeys(batch.rows, ids), NUM_NEW_TOKENS)[watched])
        batch.force(dict.fromkeys(batch.rows, ids[::-1]), NUM_NEW_TOKENS)
        hidden.append(batch.force(dict.fromkeys(batch.rows, ids), NUM_NEW_TOKENS)[watched])
    assert [row.label for row in rows] != [row.label for row in arrangement]
    assert all(torch.equal(hidden[0], again) for again in hidden[1:])


def test_bytes_and_kept_slots_are_what_they_are_said_to_be(demo: TinyModel, prompt: Prompt) -> None:
    variants = [build_variant(spec) for spec in parse_policies(POLICIES)]
    needs = frozenset(need for variant in variants for need in variant.policy.needs())
    prefilled = prefill(demo.ours, prompt.context_ids, needs)
    done = compress_all(prefilled, variants).done
    full = storage_addresses(tensor for layer in prefilled.layers for tensor in layer.tensors())
    for label, compressed in done.items():
        # Head size 64 in fp32: a key, a value and an int32 position.
        assert compressed.nbytes == (2 * 64 * 4 + 4) * sum(layer.num_slots for layer in compressed.prefix)
        held = storage_addresses(tensor for layer in compressed.prefix for tensor in layer.tensors())
        assert label == FULL or not held & full
    for kept, whole in zip(done["snapkv@0.5"].prefix, prefilled.layers, strict=True):
        for head, (start, length) in enumerate(zip(kept.head_starts, kept.num_slots_H, strict=True)):
            position_S = kept.position_S[start : start + length].long()
            assert torch.equal(kept.k_SD[start : start + length], whole.k_HND[head, position_S])
            assert torch.equal(kept.v_SD[start : start + length], whole.v_HND[head, position_S])

"""The engine's promises once more, on real weights and a prompt of real prose."""

from pydoc_data.topics import topics

import pytest
import torch
from transformers import AutoModelForCausalLM

from kvmerger.batch import Batch, bucket_for
from kvmerger.demo_model import demo_folder
from kvmerger.engine import Engine
from kvmerger.generation import Prompt, Question
from kvmerger.models import load_model, load_tokenizer
from kvmerger.variants import FULL, build_variant, parse_policies
from tests.tiny_models import TinyModel, assert_same_greedy_tokens

pytestmark = pytest.mark.demo
NUM_NEW_TOKENS = 32
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
    ids = tokenizer(prose[start : start + 4000])["input_ids"][:600]
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
    from tests.kvmerger.test_engine import make_rows

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

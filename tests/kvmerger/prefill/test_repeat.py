"""A repetition of the context sees what transformers' own forward pass over its own cache sees, and leaves nothing behind."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from kvmerger.engine import Engine
from kvmerger.generation import Generation, VariantFailure
from kvmerger.kernels import prompt_attention
from kvmerger.models.loading import load_tokenizer
from kvmerger.models.repeat_words import RepeatWords, repeat_words
from kvmerger.prefill import repeat_evidence
from kvmerger.prefill.evidence import EvidenceError, Need, register_evidence
from kvmerger.prefill.prefill import Prefilled, prefill
from kvmerger.prefill.repeat import parts_of, repeat
from kvmerger.prefill.repeat_evidence import repeat_attention, repeat_mean_square, repeat_queries
from kvmerger.prefill.repeat_states import RepeatStates
from tests.fakes.tiny_models import REPEAT_WORDS, VOCAB_SIZE, TinyModel, tiny_model
from tests.kvmerger.engine.test_engine import make_prompt
from tests.kvmerger.engine.test_engine_runs import built

SEEN = Need("test_repeat_seen")
BREAKS = Need("test_repeat_breaks")
NUM_TOKENS, PART_TOKENS = 53, 20


@register_evidence(SEEN.name, reads_queries=True, reads_hidden_states=True, pieces="joined")
def seen(states: RepeatStates) -> torch.Tensor:
    """Inputs of attention, and how many tokens of the context can be seen, as one more row."""
    assert states.hidden_TE is not None
    return states.hidden_TE[None]


@register_evidence(BREAKS.name, reads_queries=True, pieces="summed")
def breaks(states: RepeatStates) -> torch.Tensor:
    raise ZeroDivisionError("a user's evidence")


def context_of(seed: int, num_tokens: int = NUM_TOKENS) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB_SIZE, (num_tokens,), generator=generator).tolist()


def repeated(model: TinyModel, ids: list[int], *needs: Need) -> Prefilled:
    prefilled = prefill(model.ours, ids, frozenset(needs))
    assert repeat(model.ours, ids, prefilled, frozenset(needs), part_tokens=PART_TOKENS)
    return prefilled


@torch.inference_mode()
def plain_passes(model: TinyModel, ids: list[int]) -> list:
    """transformers' outputs of every part, each on a cache of the context of its own."""
    outputs = []
    for part in parts_of(ids, REPEAT_WORDS, PART_TOKENS):
        cache = DynamicCache(config=model.plain.config)
        model.plain(torch.tensor([ids]), past_key_values=cache)
        outputs.append(
            model.plain(torch.tensor([part.ids]), past_key_values=cache, output_hidden_states=True)
        )
    return outputs


def test_parts_cover_the_context_once_and_say_where_to_start() -> None:
    ids = list(range(100, 100 + NUM_TOKENS))
    parts = parts_of(ids, REPEAT_WORDS, PART_TOKENS)
    assert [token for part in parts for token in part.tokens] == list(range(NUM_TOKENS))
    assert parts[0].ids == (3, 5, 17, *ids[:20])
    assert parts[2].ids == (7, 11, 13, *ids[32:40], 17, *ids[40:])
    assert len(parts_of(ids[:PART_TOKENS], REPEAT_WORDS, PART_TOKENS)) == 1


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_every_layer_sees_what_transformers_own_forward_gives_it(model_type: str, seed: int) -> None:
    model, ids = tiny_model(seed, model_type=model_type), context_of(seed)
    prefilled = repeated(model, ids, SEEN)
    outputs = plain_passes(model, ids)
    with torch.inference_mode():
        for index, layer in enumerate(model.plain.model.layers):
            expected_TE = torch.cat([layer.input_layernorm(out.hidden_states[index])[0] for out in outputs])
            found_TE = prefilled.evidence[index].get(SEEN)[0]
            # The pieces' tokens lie along the second dimension.
            torch.testing.assert_close(found_TE, expected_TE, atol=2e-4, rtol=2e-4)
    assert not any(module._forward_pre_hooks for module in model.ours.attention_modules)


def test_the_cache_is_as_it_was(seed: int) -> None:
    model, ids = tiny_model(seed), context_of(seed)
    before = prefill(model.ours, ids, frozenset())
    after = repeated(model, ids, SEEN)
    for ours, theirs in zip(after.layers, before.layers, strict=True):
        assert torch.equal(ours.k_SD, theirs.k_SD) and torch.equal(ours.v_SD, theirs.v_SD)
        assert ours.num_slots_H == theirs.num_slots_H


def test_it_is_run_only_where_evidence_reads_it(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny_model(seed), context_of(seed)
    prefilled = prefill(model.ours, ids, frozenset())
    assert not repeat(replace(model.ours, repeat_words=None), ids, prefilled, frozenset({Need("key_norms")}))


def test_attention_behind_a_prompt_does_not_depend_on_its_blocks(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(seed)
    before = [torch.randn(1, 2, 31, 16, generator=generator) for _ in range(2)]
    new = [torch.randn(1, heads, 9, 16, generator=generator) for heads in (4, 2, 2)]
    whole = prompt_attention.attention_after(*before, *new, 0.25)
    monkeypatch.setattr(prompt_attention, "_MOST_MASKED_PAIRS", 4 * 40 * 2)
    torch.testing.assert_close(prompt_attention.attention_after(*before, *new, 0.25), whole)
    k_HXD, v_HXD = (
        torch.cat([old[0], added[0]], dim=1).repeat_interleave(2, dim=0).double()
        for old, added in zip(before, new[1:], strict=True)
    )
    logits_QTX = 0.25 * new[0][0].double() @ k_HXD.mT
    is_hidden_TX = torch.ones(9, 40, dtype=torch.bool).triu(32)
    expected_QTD = logits_QTX.masked_fill(is_hidden_TX, -torch.inf).softmax(dim=2) @ v_HXD
    torch.testing.assert_close(whole[0].transpose(0, 1).double(), expected_QTD, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def slow_attention(model: TinyModel, ids: list[int], n_sink: int, is_weighted: bool) -> torch.Tensor:
    """The most any token of a repetition pays to each token, pair by pair, in float64: (L, H, N)."""
    layers = model.plain.model.layers
    found_LHN = torch.zeros(len(layers), 2, len(ids), dtype=torch.float64)
    outputs = plain_passes(model, ids)
    for part, out in zip(parts_of(ids, REPEAT_WORDS, PART_TOKENS), outputs, strict=True):
        num_new = len(part.ids)
        for index, layer in enumerate(layers):
            hidden_1TE = layer.input_layernorm(out.hidden_states[index])
            position_1T = torch.arange(len(ids), len(ids) + num_new)[None]
            cos_sin = model.plain.model.rotary_emb(hidden_1TE, position_1T)
            q_1TQD = layer.self_attn.q_proj(hidden_1TE).unflatten(2, (4, 16))
            from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

            q_1QTD, _ = apply_rotary_pos_emb(q_1TQD.transpose(1, 2), q_1TQD.transpose(1, 2), *cos_sin)
            k_HXD = out.past_key_values.layers[index].keys[0].double()
            v_HXD = out.past_key_values.layers[index].values[0].double()
            weight_ED = layer.self_attn.o_proj.weight.double()
            seen = [*range(min(n_sink, part.tokens.start)), *part.tokens]
            for query_head in range(4):
                head = query_head // 2
                for token in range(num_new):
                    places = [*seen, *range(len(ids), len(ids) + token + 1)]
                    logits_X = k_HXD[head, places] @ q_1QTD[0, query_head, token].double() / 4
                    shares_X = logits_X.softmax(dim=0)
                    for share, place in zip(shares_X.tolist(), places, strict=False):
                        if place not in part.tokens:
                            continue
                        if is_weighted:
                            out_E = weight_ED[:, 16 * query_head : 16 * query_head + 16] @ v_HXD[head, place]
                            share *= float(out_E.norm() / hidden_1TE[0, token].double().norm())
                        found_LHN[index, head, place] = max(found_LHN[index, head, place], share)
    return found_LHN


@pytest.mark.parametrize("is_weighted", [False, True])
def test_most_attention_equals_loops_over_pairs(
    is_weighted: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeat_evidence, "_MOST_SCORES", 4 * 48 * 5)  # blocks of about five queries
    model, ids = tiny_model(seed, num_layers=2), context_of(seed)
    need = repeat_attention(4, is_weighted)
    prefilled = repeated(model, ids, need)
    found_LHN = torch.stack([evidence.get(need) for evidence in prefilled.evidence])
    expected_LHN = slow_attention(model, ids, 4, is_weighted)
    torch.testing.assert_close(found_LHN.double(), expected_LHN, atol=1e-4, rtol=1e-3)
    assert is_weighted or ((found_LHN >= 0).all() and (found_LHN <= 1).all())


def test_sampled_queries_are_the_repeated_tokens_own_and_no_more_than_is_kept(seed: int) -> None:
    model, ids = tiny_model(seed), context_of(seed)
    few, most, square = repeat_queries(8), repeat_queries(10_000), repeat_mean_square(8)
    prefilled = repeated(model, ids, few, most, square)
    evidence = prefilled.evidence[2]
    assert evidence.get(few).shape == (2, 8, 16)
    assert evidence.get(most).shape == (2, 26, 16)
    logits_HKN = evidence.get(few).double() @ prefilled.layers[2].k_HND.double().mT / 4
    expected_HN = logits_HKN.softmax(dim=2).square().mean(dim=1)
    torch.testing.assert_close(evidence.get(square).double(), expected_HN, atol=1e-5, rtol=1e-4)


def test_what_breaks_in_it_is_told_to_those_that_ask_for_it(seed: int) -> None:
    model, ids = tiny_model(seed), context_of(seed)
    prefilled = repeated(model, ids, BREAKS, SEEN)
    assert prefilled.evidence[0].get(SEEN).shape[0] == 1
    with pytest.raises(ZeroDivisionError):
        prefilled.evidence[0].get(BREAKS)
    for changed, message in (
        (replace(model.ours, repeat_words=None), "has no tokenizer"),
        (replace(model.ours, info=replace(model.ours.info, max_positions=60)), "lower model.max_prompt_tokens by"),
    ):  # fmt: skip
        prefilled = prefill(changed, ids, frozenset({SEEN}))
        assert repeat(changed, ids, prefilled, frozenset({SEEN}), part_tokens=PART_TOKENS)
        with pytest.raises(EvidenceError, match=message):
            prefilled.evidence[0].get(SEEN)


def test_evidence_of_it_must_be_declared(seed: int) -> None:
    model, ids = tiny_model(seed), context_of(seed)
    prefilled = prefill(model.ours, ids, frozenset())
    with pytest.raises(EvidenceError, match="declare it in needs"):
        prefilled.evidence[0].get(repeat_queries(8))


@pytest.mark.demo
def test_words_are_the_tokenizers_with_the_templates_own_end() -> None:
    tokenizer = load_tokenizer("demo")
    words = repeat_words(tokenizer)
    assert tokenizer.decode(words.first_ids) == "\n\nRepeat the previous context exactly."
    assert tokenizer.decode(words.suffix_ids) == "<|im_end|>\n<|im_start|>assistant\n"
    tokenizer.chat_template = None
    assert tokenizer.decode(repeat_words(tokenizer).suffix_ids) == "\n"


KVZIP = (
    {"name": "kvzip", "budget": [0.5, 0.3]},
    {"name": "kvzip_plus", "budget": 0.5},
    {"name": "snapkv", "budget": 0.5, "window_size": 8},
)


def test_one_repetition_serves_all_policies_and_budgets_and_its_seconds_stand_apart(seed: int) -> None:
    asked: list[int] = []

    def words() -> RepeatWords:
        asked.append(1)
        return REPEAT_WORDS

    engine = Engine(replace(tiny_model(seed).ours, repeat_words=words))
    prompt = make_prompt(seed, 120, "query_agnostic", num_questions=1)
    rows = engine.run(prompt, built(*KVZIP))
    assert len(asked) == 1
    assert {row.label: row for row in rows}["kvzip@0.3"].seconds["repeat_shared_s"] > 0
    assert all(isinstance(row, Generation) and "repeat_shared_s" in row.seconds for row in rows)
    isolated = engine.run(prompt, built(*KVZIP), execution="isolated")
    assert len(asked) == 4
    assert {row.label for row in isolated if "repeat_s" in row.seconds} == {
        "kvzip@0.5",
        "kvzip@0.3",
        "kvzip_plus@0.5",
    }
    rows = engine.run(prompt, built(KVZIP[2]))
    assert len(asked) == 4 and not any("repeat_shared_s" in row.seconds for row in rows)


def test_it_never_sees_the_question(seed: int) -> None:
    engine = Engine(tiny_model(seed).ours)
    prompt = make_prompt(seed, 120, "query_agnostic", num_questions=1)
    other = replace(prompt, questions=(replace(prompt.questions[0], tail_ids=(9, 8, 7)),))
    slots = [
        [row.slots_LH for row in engine.run(asked, built(*KVZIP[:2])) if row.label.startswith("kvzip")]
        for asked in (prompt, other)
    ]
    assert len(slots[0]) == 3 and slots[0] == slots[1]


def test_without_a_tokenizer_the_others_answer_all_the_same(seed: int) -> None:
    engine = Engine(replace(tiny_model(seed).ours, repeat_words=None))
    rows = engine.run(make_prompt(seed, 120, "query_agnostic", num_questions=1), built(*KVZIP))
    failed = {row.label: row for row in rows if isinstance(row, VariantFailure)}
    assert failed.keys() == {"kvzip@0.5", "kvzip@0.3", "kvzip_plus@0.5"}
    assert all("has no tokenizer" in row.message for row in failed.values())


def test_what_it_ranks_and_fits_is_merged_stored_and_decoded_like_all_else(seed: int) -> None:
    names = (
        "kvzip+int4",
        "kvzip+compensated+h2o_decode",
        "attention_matching+int8",
        "kvzip+grkv+streaming_llm_decode",
        "expected_attention+criticalkv+int4",
        "snapkv+chunkkv+keepkv+fp8",
    )
    asked = [
        {"name": name, "budget": 0.5, **({"window_size": 8} if "snapkv" in name else {})} for name in names
    ]
    prompt = make_prompt(seed, 120, "query_agnostic", num_questions=1)
    rows = Engine(tiny_model(seed).ours).run(prompt, built(*asked))
    assert [row for row in rows if isinstance(row, VariantFailure)] == []
    assert len(rows) == len(names) + 3

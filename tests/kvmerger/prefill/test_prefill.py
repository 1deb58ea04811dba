"""What prefill hands to evidence, and what it leaves behind in the model: nothing."""

import torch

from kvmerger.prefill.evidence import LayerStates, Need, register_evidence
from kvmerger.prefill.prefill import prefill, prompt_seed
from tests.fakes.tiny_models import tiny_model

UNROTATED_QUERIES = Need("test_unrotated_queries")


@register_evidence(UNROTATED_QUERIES.name, reads_queries=False, reads_hidden_states=True)
def unrotated_queries(states: LayerStates) -> torch.Tensor:
    return states.attention.q_proj(states.hidden_NE)


def test_evidence_may_read_hidden_states_and_leaves_no_hook(seed: int) -> None:
    model = tiny_model(seed)
    ids = list(range(50))
    prefilled = prefill(model.ours, ids, frozenset({UNROTATED_QUERIES}))
    with torch.inference_mode():
        hidden_L1NE = model.plain(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for index, layer in enumerate(model.plain.model.layers):
            expected_NX = layer.self_attn.q_proj(layer.input_layernorm(hidden_L1NE[index]))[0]
            found_NX = prefilled.evidence[index].get(UNROTATED_QUERIES)
            torch.testing.assert_close(found_NX, expected_NX, atol=1e-4, rtol=1e-4)
    assert not any(module._forward_pre_hooks for module in model.ours.attention_modules)


def test_a_prompts_seed_follows_its_tokens_and_the_sweeps_seed() -> None:
    seeds = {prompt_seed(ids, seed) for ids in ([1, 2], [12], [2, 1]) for seed in (0, 1)}
    assert len(seeds) == 6
    assert prompt_seed([1, 2], 0) == prompt_seed((1, 2), 0)

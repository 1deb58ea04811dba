"""What a policy is said to need of a server is what it does, and what the documentation's table says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from kvmerger.building import build
from kvmerger.contract.case import Case
from kvmerger.policies import registry
from kvmerger.serving import NOWHERE, ServerNeed, Serving, describe, needs_of
from kvmerger.variant_names import ALIASES

DESCRIBED = {f"+{it.name}" if it.is_wrapper else it.name: it for it in describe()}
BLOCK_TOKENS = 16
_PROMPTS = 8
# So that a prompt of random layers, which is short, leaves heads something to compete for.
SETTINGS = {
    "defensivekv": {"guaranteed_mass": 0.5},
    "duo_attention": {"sink_size": 4, "recent_size": 30},
    "simlayerkv": {"n_recent": 151, "lazy_threshold": 0.5},
    # At an even share half of fp32's bytes hold every token, at one width or another.
    "rdkv": {"key_share": 0.92},
}


def spelt_out(shown: str) -> str:
    """A name that can be built, with something in front of what wraps."""
    name = shown.removeprefix("+")
    return ALIASES.get(name, f"snapkv+{name}") if shown.startswith("+") else name


def row_of(shown: str, it: Serving) -> str:
    """The documentation's."""
    return f"| {shown} | {it.needs_shown} | {it.runs_today} |"


def test_every_policy_and_part_is_described_in_order() -> None:
    assert [(it.name, it.is_wrapper) for it in describe()] == [
        (it.name, it.is_wrapper) for it in registry.describe()
    ]


def test_the_documentation_has_this_table(repo_root: Path) -> None:
    page = (repo_root / "docs" / "policies.md").read_text(encoding="utf-8")
    section = page.partition("## What a server needs")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if re.match(r"\| \+?\w+ \| ", line)][1:]
    wanted = [row_of(shown, it) for shown, it in DESCRIBED.items()]
    assert rows == wanted, "docs/policies.md, `What a server needs`, should have\n" + "\n".join(wanted)
    for need in ServerNeed:
        assert f"**{need[0].upper()}{need[1:]}**" in section, need


@pytest.mark.parametrize("shown", list(DESCRIBED))
def test_lengths_are_as_unlike_as_it_says(shown: str, seed: int) -> None:
    name = spelt_out(shown)
    parts = build(name, {}).parts
    says_so = any(part.heads_differ or part.layers_differ for part in parts)
    # Where the prompt decides, all layers of one may be alike by chance; of several prompts that never happens.
    for prompt in range(_PROMPTS):
        kept_L = Case(name, seed + prompt, torch.float32, SETTINGS.get(name, {})).compressed()
        lengths = [layer.num_slots_H for layer in kept_L]
        if not says_so or len({slots for slots_H in lengths for slots in slots_H}) > 1:
            break
    if not any(part.heads_differ for part in parts):
        assert all(len(set(slots_H)) == 1 for slots_H in lengths), lengths
        if not any(part.layers_differ for part in parts):
            assert len(set(lengths)) == 1, lengths
    if any(part.heads_differ for part in parts):
        assert any(len(set(slots_H)) > 1 for slots_H in lengths), f"{name} says so and does not"
    elif any(part.layers_differ for part in parts):
        assert len(set(lengths)) > 1, f"{name} says so and does not"


@pytest.mark.parametrize("shared_by", ["model", "layer"])
def test_whole_blocks_are_whole_and_the_same_in_all_heads(shared_by: str, seed: int) -> None:
    kept_L = Case("keydiff+blocks16", seed, torch.float32, {"shared_by": shared_by}).compressed()
    last = max(int(layer.position_S.max()) for layer in kept_L)
    blocks_LH = [
        [set((part // BLOCK_TOKENS).tolist()) for part in layer.position_S.split(layer.num_slots_H)]
        for layer in kept_L
    ]
    for layer, blocks_H in zip(kept_L, blocks_LH, strict=True):
        assert blocks_H == [blocks_H[0]] * len(blocks_H)
        whole = [token for token in range(last + 1) if token // BLOCK_TOKENS in blocks_H[0]]
        assert layer.position_S.split(layer.num_slots_H)[0].tolist() == whole
    assert (blocks_LH == [blocks_LH[0]] * len(blocks_LH)) == (shared_by == "model")


def test_needs_are_a_parts_own() -> None:
    assert needs_of(build("snapkv+keepkv+h2o_decode", {})) == (
        ServerNeed.ATTENTION_WEIGHTS,
        ServerNeed.EVERY_STEP,
    )
    assert needs_of(build("pyramidkv+adakv", {})) == (ServerNeed.RAGGED_HEADS,)
    assert ServerNeed.LOGIT_BIAS in needs_of(build("kvmerger", {"log_mass": "count"}))
    assert needs_of(build("kvzip", {"compete": "head"}))[0] is ServerNeed.ATTENTION_WEIGHTS


def test_what_runs_nowhere_says_so() -> None:
    assert {it.runs_today for it in DESCRIBED.values() if it.name in ("kvzip", "adakv")} == {NOWHERE}

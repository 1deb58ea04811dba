"""The seam answers whoever calls it the way transformers' own attention functions are called."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvmerger.models.attention import ATTENTION_NAME, register_attention
from kvmerger.prefill.prefill import prefill
from tests.fakes.tiny_models import VOCAB_SIZE, tiny_model

# `load_model`, since its probe must pass too, and a whole run, since decoding calls the seam as well. The order comes from
# outside; what is printed is tokens and losses of every row, in full precision.
RUN = """
import sys
from kvmerger import Engine, Prompt, Question, build_variant, load_model, parse_policies

def rows(model):
    prompt = Prompt(tuple(range(1, 49)), (Question((3, 5, 7), (9, 11), 4),))
    variants = [build_variant(spec) for spec in parse_policies([{"name": "knorm", "budget": 0.5}])]
    return [(row.label, row.token_ids, row.answer_nll, row.kl_mean) for row in Engine(model).run(prompt, variants)]

for step in sys.argv[2:]:
    if step == "import":
        import kvpress
    elif step == "load":
        model = load_model(sys.argv[1], dtype="float32", device="cpu")
    else:
        print(rows(model))
"""


def test_a_wrapper_may_hand_on_six_arguments_by_position(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    register_attention()
    answer: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME]
    num_calls = 0

    def wrapped(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, dropout: float, **kwargs: Any
    ) -> Any:
        nonlocal num_calls
        num_calls += 1
        return answer(module, query, key, value, attention_mask, dropout, **kwargs)

    model = tiny_model(seed).ours
    ids = torch.randint(VOCAB_SIZE, (40,), generator=torch.Generator().manual_seed(seed)).tolist()
    plain = prefill(model, ids, frozenset())
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, ATTENTION_NAME, wrapped)
    through_wrapper = prefill(model, ids, frozenset())
    assert num_calls == len(plain.layers)
    for ours, theirs in zip(plain.layers, through_wrapper.layers, strict=True):
        assert torch.equal(ours.k_HND, theirs.k_HND) and torch.equal(ours.v_HND, theirs.v_HND)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("kvpress", "datasets", "fire")),
    reason="kvpress, datasets or fire is not installed: `make install`",
)
def test_kvpress_may_be_imported_at_any_time(tmp_path: Path, repo_root: Path, seed: int) -> None:
    tiny_model(seed).plain.save_pretrained(tmp_path)

    def printed(*steps: str) -> list[str]:
        command = [sys.executable, "-c", RUN, str(tmp_path), *steps]
        done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    # Fresh processes: the import wraps transformers' functions once and for all.
    after = printed("load", "run", "import", "run", "load", "run")
    before = printed("import", "load", "run")
    assert len(set(after + before)) == 1 and len(after) == 3

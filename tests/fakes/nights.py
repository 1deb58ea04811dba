"""Nights small enough for a test and yet real: a model whose own answers are the gold, and a policy that can be made worse.

The gold answers are what the full cache says, so a policy that drops more of the context truly answers worse.
"""

from __future__ import annotations

import importlib
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import LlamaForCausalLM

from jobs.results.store import ResultStore
from jobs.sweep import main as sweep
from tests.fakes.sweeps import save_tiny_model

NUM_ITEMS = 54
LABEL = "Planted@0.8"
_NUM_WORDS = 8
_NEW_TOKENS = 4
_PLANTED = """
import dataclasses
from kvmerger import KEY_NORMS, ScoringPolicy

@dataclasses.dataclass(frozen=True)
class Planted(ScoringPolicy):
    def scores(self, evidence):
        return -evidence.get(KEY_NORMS)

    def compress(self, layer, evidence, budget):
        {first}
        slots = tuple(min(evidence.num_tokens, round({factor} * it)) for it in budget.num_slots_H)
        return super().compress(layer, evidence, dataclasses.replace(budget, num_slots_H=slots))
"""


def save_sure_model(folder: Path) -> Path:
    """A random model that reads its context, is sure of what it says, and says it in letters."""
    save_tiny_model(folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    letters = [index for symbol, index in vocab.items() if len(symbol) == 1 and "a" <= symbol <= "z"]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.mul_(8)
        head = model.lm_head.weight
        kept = head[letters].clone()
        head.zero_()
        head[letters] = kept
    model.save_pretrained(folder)
    return folder


def save_night(folder: Path, model: Path, num_items: int = NUM_ITEMS, **changes: Any) -> Path:
    """Settings of a nightly beside its data and its policy, without tracking; nights go to `folder/nights`."""
    settings: dict[str, Any] = {
        "name": "tiny-nightly",
        "model": {"name": str(model)},
        "tasks": [{"name": "longbench/qasper", "data": str(folder), "max_new_tokens": _NEW_TOKENS}],
        "policies": [{"name": "nightly_policies:Planted", "budget": 0.8}],
        "check_policies": False,  # some nights want it to raise, or to keep more than it is allowed
        "query_mode": "query_agnostic",
        "executor": "inline",
        "output_dir": str(folder / "nights"),
        "tracking": False,
        "gate": {"margins": {"score_points": 7, "nll_nats": 0.005}},
    }
    path = folder / "nightly.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    if not (folder / "qasper.jsonl").exists():
        _save_data(folder, model, num_items)
    plant(folder, 1.0)
    return path


def plant(folder: Path, factor: float, first: str = "") -> None:
    """The policy now keeps `factor` times what it is allowed, after the statement `first`."""
    (folder / "nightly_policies.py").write_text(_PLANTED.format(factor=factor, first=first))
    sys.modules.pop("nightly_policies", None)
    sys.path[:] = [
        it for it in sys.path if not (Path(it) / "nightly_policies.py").exists()
    ]  # of earlier tests
    shutil.rmtree(
        folder / "__pycache__", ignore_errors=True
    )  # a file of equal size and second counts as unchanged
    importlib.invalidate_caches()


def _save_data(folder: Path, model: Path, num_items: int) -> None:
    """Questions whose gold answers are the full cache's own."""
    rng = random.Random(7)
    rows: list[dict[str, Any]] = [
        {
            "input": "what then",
            "context": " ".join("".join(rng.choices("abcdefgh", k=4)) for _ in range(_NUM_WORDS)),
            "answers": ["x"],
            "length": _NUM_WORDS,
            "all_classes": None,
            "_id": f"row{index}",
        }
        for index in range(num_items)
    ]
    data = folder / "qasper.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    asked = {
        "model": {"name": str(model)},
        "tasks": [{"name": "longbench/qasper", "data": str(folder), "max_new_tokens": _NEW_TOKENS}],
        "policies": ["full"],
        "query_mode": "query_agnostic",
        "executor": "inline",
        "output_dir": str(folder / "answers"),
        "tracking": False,
    }
    path = folder / "answers.yaml"
    path.write_text(yaml.safe_dump(asked))
    assert sweep([str(path)]) == 0
    table = ResultStore(folder / "answers").read_table().to_pylist()
    said = {row["item_id"].rpartition("/")[2]: row["prediction"] for row in table if row["variant"] == "full"}
    data.write_text("\n".join(json.dumps({**row, "answers": [said[row["_id"]]]}) for row in rows))

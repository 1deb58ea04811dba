"""A small world to plan in: a word tokenizer, a model's shape, items on one context, settings without a file."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from evaluators.item import BenchmarkItem
from jobs.planning.plan import Plan, build_plan
from jobs.planning.sizes import VariantFacts
from jobs.settings.schema import Settings
from kvmerger.cache.forms import registry
from kvmerger.cache.forms.base import Form
from kvmerger.form_names import split_parts
from kvmerger.variants import VariantSpec

CONTEXT = "one two three four five six seven eight nine ten"


class WordTokenizer:
    """A real, if small, tokenizer: a word or a blank is a token; ids are stable numbers of the words."""

    bos_token_id = None
    eos_token_id = 0
    chat_template = None

    def __init__(self) -> None:
        self._words: dict[int, str] = {}

    def __call__(self, text: str, **options: Any) -> Mapping[str, Any]:
        ids, spans, start = [], [], 0
        for word in text.replace(" ", "\0 \0").split("\0"):
            if word:
                ids.append(zlib.crc32(word.encode()))
                self._words[ids[-1]] = word
                spans.append((start, start + len(word)))
                start += len(word)
        return {"input_ids": ids, "offset_mapping": spans}

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any:
        raise AssertionError("this tokenizer has no chat template")

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        return "".join(self._words[token] for token in token_ids)


class Model(NamedTuple):
    """The facts of a model that a plan reads."""

    name: str = "tiny"
    revision: str | None = "r1"
    dtype: str = "float32"
    num_layers: int = 2
    num_kv_heads: int = 3
    head_dim: int = 4
    max_positions: int = 64
    device: str = "cpu"
    attention: str = "torch"


def item(index: int, **values: Any) -> BenchmarkItem:
    """Item `index`; items share the context unless told otherwise."""
    shape: dict[str, Any] = {
        "item_id": f"bench/task/{index}",
        "benchmark": "bench",
        "task": "task",
        "cluster_id": "c",
        "before_context": "read this: ",
        "context": CONTEXT,
        "after_context": f" what is number {index}",
        "answer_prefix": "",
        "answers": (f"word{index}",),
        "max_new_tokens": 4,
        "use_chat_template": False,
        "metric": "qa_f1",
    }
    return BenchmarkItem(**(shape | values))


def settings_of(
    policies: Sequence[Any] = ("full", {"name": "knorm", "budget": 0.5}), **values: Any
) -> Settings:
    """Settings without a file; the task is a placeholder, since items are given to the plan."""
    shape: dict[str, Any] = {
        "tasks": ["longbench/qasper"],
        "policies": list(policies),
        "query_mode": "query_agnostic",
    }
    return Settings.model_validate(shape | values)


def never_impossible(spec: VariantSpec, num_tokens: int) -> str | None:
    return None


def form_of(spec: VariantSpec) -> Form | None:
    form = split_parts(spec.policy.split("+")).form
    return None if form is None else registry.get(form)(**dict(spec.params))


def plan_of(
    settings: Settings,
    items: Sequence[BenchmarkItem],
    done: Sequence[str] = (),
    check: Any = never_impossible,
    **values: Any,
) -> Plan:
    facts = {
        spec.label: VariantFacts(
            values.get("versions", {}).get(spec.label, values.get("version", "1")),
            spec.policy.startswith("kvmerger_paper"),
            "_decode" in spec.policy,
            form_of(spec),
            "keepkv" in spec.policy,
            repeats_context="kvzip" in spec.policy,
            spends_bytes=spec.policy == "rdkv",
        )
        for spec in settings.variants
    }
    model = values.get("model", Model())
    tokenizer = values.get("tokenizer") or WordTokenizer()
    return build_plan(settings, {"bench/task": items}, tokenizer, model, facts, done, check)


def identities(plan: Plan) -> list[str]:
    """Of all rows, in their order."""
    return [planned.key.identity for planned in plan.rows]

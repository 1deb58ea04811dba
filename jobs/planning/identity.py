"""The key of a result: equal exactly when the same computation was asked for.

Everything that is asked for goes in; labels, the number of actors, output folders and what else is in the sweep do not.
So the same command again computes only what is missing. Left out on purpose is what only turns last bits, and with
them a close greedy token here and there: the device, and how many rows share a batch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluators.item import BenchmarkItem, text_digest
from evaluators.prompting import TokenizedPrompt
from kvmerger import RESULTS_VERSION

_PROMPT_DIGITS = 16  # 64 bits
_UNIT_ID_DIGITS = 20
"""80 bits: no two units of a sweep share a file, and the name stays short."""
# A folder's fingerprint, the packaged model's, and a hub's commit, as `kvmerger.models.source` gives them.
_CONTENT = re.compile("(files|gguf)-[0-9a-f]+|[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What all rows of a sweep share: model as (name, revision, dtype), query mode, execution, seed."""

    model: tuple[str, str | None, str]
    query_mode: str
    execution: str
    seed: int


def names_other_content(planned: str | None, loaded: str | None) -> bool:
    """Whether a model of the revision `loaded` is another one than was planned.

    A branch, or nothing, names no content: what was planned by it can be any.
    """
    return planned is not None and _CONTENT.fullmatch(planned) is not None and loaded != planned


def item_digest(item: BenchmarkItem, tokens: TokenizedPrompt | None, run: RunSettings) -> str:
    """Digest of all but the variant: the run, the item's id, its token ids, answer length and all that its score depends on.

    Without `tokens` (the prompt could not be made) the text stands in.
    """
    # Whatever changes below, be it a key or an order, changes every identity: all stored results would be computed anew.
    prompt: Any = [item.before_context, item.context, item.after_context, item.answer_prefix]
    if tokens is not None:
        # Context and tail apart: the same ids cut elsewhere are compressed otherwise.
        prompt = [tokens.context_ids, tokens.tail_ids, tokens.gold_ids]
        if tokens.stop_ids:  # only then, so that rows without them are found as before
            prompt.append(tokens.stop_ids)
        if tokens.is_context_free:
            prompt.append("context_free")
        if tokens.earlier:
            prompt.append({"earlier": tokens.earlier})
    elif item.follow_ups:
        prompt.append([[it.text, it.answer_tokens] for it in item.follow_ups])
    return _digest(
        {
            "model": run.model,
            "query_mode": run.query_mode,
            "execution": run.execution,
            "seed": run.seed,
            "engine": RESULTS_VERSION,  # raised when the engine's numbers change
            "item_id": item.item_id,
            "prompt": prompt,
            "max_new_tokens": item.max_new_tokens,
            "scoring": [item.metric, item.answers, item.all_classes],
        }
    )


def context_digest(item: BenchmarkItem) -> str:
    """Digest of the text that is compressed, whatever is asked about it: what a table was calibrated on is told by it."""
    return text_digest(item.context or item.before_context or item.prompt_text)


def prompt_digest(tokens: TokenizedPrompt, max_new_tokens: int) -> str:
    """Short digest of the ids that the model reads, with their split, and of what ends its answer."""
    asked: list[Any] = [tokens.context_ids, tokens.tail_ids, tokens.stop_ids, max_new_tokens]
    if tokens.earlier:
        asked.append(tokens.earlier)
    return _digest(asked)[:_PROMPT_DIGITS]


def row_identity(
    digest_of_item: str, canonical_variant: Mapping[str, Any], policy_versions: Sequence[str]
) -> str:
    """Key of one (item x variant) row: sha256, 64 hexadecimal digits.

    `policy_versions` are the policy's own and those of the variants its `like` budget leads to.
    """
    return _digest(
        {"item": digest_of_item, "variant": canonical_variant, "policy_versions": list(policy_versions)}
    )


def unit_id(identities: Iterable[str]) -> str:
    """Name of the unit that owes exactly these rows, whatever their order."""
    return _digest(sorted(identities))[:_UNIT_ID_DIGITS]


def _digest(value: Any) -> str:
    # ASCII with \u escapes: UTF-8 takes no lone surrogates, which recorded data holds. JSON has no tuples: as lists, both
    # have one digest.
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()

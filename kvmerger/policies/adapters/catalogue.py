"""kvpress's classes of presses, one by one: what each does and reads, and what must be known to run it here.

What is made of a call, and which classes cannot be called, is not written here: `kinds` finds it from the class.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from kvmerger.policies.adapters.kinds import Gives, facts_of, refusal_of
from kvmerger.policies.adapters.presses import PACKAGE, imported, is_press, text_of


class Entry(NamedTuple):
    """A class in a table: what it does, what it reads, a remark, and parameters that make one to look at."""

    does: str
    reads: str
    remark: str = ""
    params: Mapping[str, Any] = {}


_H, _HQ, _HR = "hidden states", "hidden states, RoPE", "hidden states, the rotary embedding"
_INNER = "what the press inside reads"
_WEIGHTS = "downloads weights for the model's name"
_OUTCOME = "takes no budget: its parameters and the prompt decide"
_KNORM: Mapping[str, Any] = {"press": {"name": "KnormPress"}}
# fmt: off
ENTRIES: Mapping[str, Entry] = {
    "AdaKVPress": Entry("heads of a layer compete for its slots", _INNER, "or the press inside, `+adakv`", _KNORM),
    "BasePress": Entry("what presses are made from", "nothing"),
    "BlockPress": Entry("block after block competes with what is kept", _INNER, "", _KNORM),
    "CAMPress": Entry("merges as slots leave", "hidden states of the answer"),
    "CapPress": Entry("log-determinant capacity under expected queries", _HR),
    "ChunkKVPress": Entry("whole chunks, the same in all heads", _INNER, "counts whole chunks", _KNORM),
    "ChunkPress": Entry("every chunk by itself", _INNER, "", _KNORM),
    "CompactorPress": Entry("leverage and non-causal attention, blended", _HQ, "blends by its ratio"),
    "ComposedPress": Entry("one press after the other", "what the presses inside read",
                           f"{_OUTCOME}; ratios stand at the presses inside; changed slots where one of them changes some",
                           {"presses": [{"name": "KnormPress", "compression_ratio": 0.5}]}),
    "CompressionRatioDecodingPress": Entry("a ratio kept while answering", "hidden states of the answer"),
    "CriticalAdaKVPress": Entry("CriticalKV across the heads of a layer", _INNER, "", _KNORM),
    "CriticalKVPress": Entry("scores times norms of projected values", _INNER, "its first stage reads the ratio", _KNORM),
    "CURPress": Entry("local norm leverage", "keys, values"),
    "DecodingPress": Entry("a press every so many tokens of the answer", "hidden states of the answer"),
    "DMSPress": Entry("what scores below a threshold leaves", _INNER, _OUTCOME, {**_KNORM, "threshold": -4.0}),
    "DuoAttentionPress": Entry("streaming heads keep sinks and recent tokens", "a pattern of the model's heads",
                               f"{_OUTCOME}; downloads patterns of models it knows"),
    "EntropyGatedChunkKVPress": Entry("chunks, thinned where scores are even", _INNER, "", _KNORM),
    "ExpectedAttentionPress": Entry("expected attention of future queries", _HR),
    "ExpectedAttentionStatsPress": Entry("the same by stored query statistics", "the rotary embedding", _WEIGHTS),
    "FastKVzipPress": Entry("gates score; all layers share one budget", _H, f"{_WEIGHTS}; chooses behind the last layer"),
    "FinchPress": Entry("what a window attends to, keys re-rotated", _HQ,
                        "wants `window_size`; by kept tokens with `rerotate_keys: false`", {"window_size": 16}),
    "KeyDiffPress": Entry("keys unlike the mean", "keys"),
    "KeyRerotationPress": Entry("kept keys get positions 0, 1, 2 and so on", _INNER, "the question follows them", _KNORM),
    "KnormPress": Entry("small key norms stay", "keys"),
    "KVComposePress": Entry("composite tokens by attention", "attention weights of a second pass"),
    "KVgradPress": Entry("gradients of a repetition", "a repetition, with gradients"),
    "KVzapPress": Entry("a surrogate of KVzip+", _H, _WEIGHTS),
    "KVzipPress": Entry("what a repetition attends to", "a repetition"),
    "LagKVPress": Entry("tokens that vary beside those that follow", "keys, values"),
    "LeverageScorePress": Entry("leverage of keys before RoPE, sketched", _H),
    "LUKVPress": Entry("stored budgets of heads", _INNER, "downloads curves of models it knows"),
    "MergingPress": Entry("values fold into the nearest kept token", _INNER, "ours: `+nearest`", _KNORM),
    "NonCausalAttnPress": Entry("non-causal attention in chunks, times value norms", _HQ),
    "ObservedAttentionPress": Entry("mean attention received", "attention weights of all pairs of tokens",
                                    "up to 4096 tokens; ours, `observed_attention`, needs no weights"),
    "PerLayerCompressionPress": Entry("a ratio for each layer", _INNER, _OUTCOME, {**_KNORM, "compression_ratios": [0.5]}),
    "PrefillDecodingPress": Entry("a press for the prompt, one for the answer", _INNER,
                                  f"{_OUTCOME}; without its decoding_press",
                                  {"prefilling_press": {"name": "KnormPress", "compression_ratio": 0.5}}),
    "PyramidKVPress": Entry("SnapKV, fewer slots in later layers", _HQ, "layers' slots are kvpress's"),
    "QFilterPress": Entry("learnt directions of queries", "keys", _WEIGHTS),
    "RandomPress": Entry("any tokens", "nothing", "without a seed it draws by prompt and layer"),
    "RestoreKVPress": Entry("KVzip and eight slots of its own", "a repetition, an adapter of the model"),
    "ScorerPress": Entry("what presses that score are made from", "nothing"),
    "SimLayerKVPress": Entry("lazy layers keep sinks and recent tokens", _HQ, _OUTCOME),
    "SnapKVPress": Entry("what the last tokens attend to, smoothed", _HQ),
    "StreamingLLMPress": Entry("sinks and recent tokens", "nothing", "its score reads the ratio"),
    "ThinKPress": Entry("weak key channels become 0", _HQ, f"{_OUTCOME}; frees no memory"),
    "TOVAPress": Entry("what the last token attends to", _HQ),
}
# fmt: on
_WAYS = {Gives.SCORES: "by scores", Gives.KEPT: "by kept tokens", Gives.CHANGED: "with changed slots"}


def class_names() -> list[str]:
    """All classes of presses that kvpress has, sorted without regard to capitals."""
    package = imported(PACKAGE)
    found = (
        name
        for name in package.__all__
        if inspect.isclass(press := getattr(package, name)) and is_press(press)
    )
    return sorted(found, key=str.casefold)


def how_it_runs(name: str) -> str:
    """In what way a class of presses runs here, or why it does not."""
    path = f"{PACKAGE}:{name}"
    if refusal := refusal_of(getattr(imported(PACKAGE), name)):
        return f"{'own passes' if refusal.needs_own_passes else 'cannot'}: {refusal.why}"
    facts = facts_of(text_of(path, ENTRIES[name].params))
    return f"shared pass, {_WAYS[facts.gives]}"

"""A variant is found by every name that our own outputs print, and by those that people write for it."""

import random

import pytest

from jobs.analysis.labels import LabelError, label_meant
from jobs.analysis.variant_summary import VariantSummary
from jobs.reporting.notation import shown_name
from kvmerger.variants import REFERENCE_LABELS, parse_policies

POLICIES = (
    "full",
    {"name": "kvmerger", "budget": [0.5, 0.35]},
    {"name": "kvmerger_paper", "budget": 0.5},
    {"name": "kvmerger_paper+fp8", "budget": 0.3},
    "snapkv@0.5",
    "snapkv+adakv@512",
    "streaming_llm@0.5",
    "int4",
    "fp8",
    {"name": "keydiff+int8", "budget": {"bytes": {"like": "int4"}}},
    {"name": "knorm", "budget": {"bytes": 0.2}},
    {"name": "my_module:Mine", "budget": 0.5},
    {"name": "cam", "budget": 0.5},
)
LABELS = [*REFERENCE_LABELS, *(it.label for it in parse_policies(POLICIES) if it.label != "full")]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("snapkv@0.5", "snapkv@0.5"),
        ("snapkv@0.50", "snapkv@0.5"),
        ("snapkv", "snapkv@0.5"),
        ("SnapKV", "snapkv@0.5"),
        ("SnapKVPress", "snapkv@0.5"),
        ("StreamingLLMPress", "streaming_llm@0.5"),
        ("streaming-llm@0.5", "streaming_llm@0.5"),
        ("adakv_snapkv@512", "snapkv+adakv@512"),
        ("snapkv@512+adakv", "snapkv+adakv@512"),
        ("kvmerger_paper", "kvmerger_paper[0.17+0.12]"),
        ("kvmerger_paper@0.5", "kvmerger_paper[0.17+0.12]"),
        ("kvmerger_paper (51.5% kept)", "kvmerger_paper[0.17+0.12]"),
        ("knorm", "knorm@bytes:0.2"),
        ("Mine", "Mine@0.5"),
        ("streaming_llm+cam@0.5", "cam@0.5"),
        ("fp8_e4m3", "fp8"),
        ("full cache", "full"),
        ("no_press", "full"),
        ("full again (A/A noise)", "full_aa"),
        ("snapkv@0.5 (degenerate on 3)", "snapkv@0.5"),
    ],
)
def test_a_name_means_one_variant(name: str, label: str) -> None:
    assert label_meant(name, LABELS) == label


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "kvmerger",
            "'kvmerger' is the name of 2 variants, 'kvmerger@0.5', 'kvmerger@0.35'; name one of them",
        ),
        ("snapvk@0.5", "there is no variant 'snapvk@0.5' (did you mean 'snapkv@0.5'?); there is 'full', "),
        ("snapkv@0.25", "there is no variant 'snapkv@0.25'"),
        ("zzz", "there is no variant 'zzz'; there is "),
    ],
)
def test_what_means_none_or_several_is_told(name: str, told: str) -> None:
    with pytest.raises(LabelError) as caught:
        label_meant(name, LABELS)
    assert str(caught.value).startswith(told)


def test_every_label_and_every_printed_name_means_itself(seed: int) -> None:
    draw = random.Random(seed)
    labels = draw.sample(LABELS, len(LABELS))
    for label in labels:
        printed = shown_name(_kept(label, draw.random()))
        assert label_meant(label, labels) == label
        assert label_meant(printed, labels) == label


def _kept(label: str, kept_ratio: float) -> VariantSummary:
    policy = next((it.policy for it in parse_policies(POLICIES) if it.label == label), label)
    fields = dict.fromkeys(VariantSummary.__dataclass_fields__)
    return VariantSummary(**{**fields, "label": label, "policy": policy, "kept_ratio": kept_ratio})  # type: ignore[arg-type]

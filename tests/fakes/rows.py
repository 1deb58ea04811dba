"""Result rows without an engine."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from jobs.results.schema import OK, RESULT_SCHEMA, Row


def make_row(identity: str, unit_id: str = "u1", **values: Any) -> Row:
    """A row of the schema; what is not named is null, or the least that a finished row needs."""
    row: Row = dict.fromkeys(RESULT_SCHEMA.names)
    row |= {field.name: field.name for field in RESULT_SCHEMA if not field.nullable}
    row |= {"identity": identity, "unit_id": unit_id, "status": OK, "created_at_s": 1.0}
    row |= {"score_reason": "none", "answer_nll_reason": "none", "fidelity_reason": "none"}
    return row | values


REFERENCES = (("full", 1.0, 0.1), ("full_aa", 1.0, 0.1), ("no_context", 0.0, 2.5))
FULL_BYTES = 4 * 2**20


def make_sweep_rows(
    rng: random.Random, policies: Mapping[str, float], tasks: Sequence[str], num_items: int, **values: Any
) -> list[Row]:
    """Whole rows of a made-up sweep: the references and `policies` (label → kept ratio) on every item of every task.

    A policy costs more answer NLL the less it keeps; every item has a depth, a trace and both kinds of answers.
    """
    variants = [*REFERENCES, *((label, ratio, 0.1 + 2 * (1 - ratio)) for label, ratio in policies.items())]
    return [
        make_row(
            f"{task}/{index}/{label}",
            f"{task}/{index}".replace("/", "-"),
            sweep="made-up",
            item_id=f"{task}/{index}",
            cluster_id=f"{task}/{index}",
            benchmark=task.partition("/")[0],
            task=task.partition("/")[2],
            variant=label,
            policy=label.partition("@")[0],
            query_mode="query_agnostic",
            execution="fused",
            model="model",
            kept_ratio=ratio,
            kv_bytes=int(ratio * FULL_BYTES),
            full_kv_bytes=FULL_BYTES,
            **_measured(rng, nll, ratio),
            **_asked(rng, index),
        )
        | values
        for task in tasks
        for index in range(num_items)
        for label, ratio, nll in variants
    ]


def _measured(rng: random.Random, nll: float, ratio: float) -> Row:
    live = [FULL_BYTES, *(int(ratio * FULL_BYTES) + 1000 * step for step in range(1, 17))]
    trace = [[step, "decode" if step else "prefill", held, held + 20_000] for step, held in enumerate(live)]
    return {
        "answer_nll": max(0.0, rng.gauss(nll, 0.3)),
        "kl_mean": max(0.0, rng.gauss(nll, 0.2)),
        "top1_agreement": min(1.0, max(0.0, rng.gauss(1 - nll / 3, 0.1))),
        "score": float(rng.random() > nll / 2.5),
        "prediction": f"made up {rng.random()}",
        "trace": json.dumps(trace),
        "slots": [[100] * 8] * 32,
    }


def _asked(rng: random.Random, index: int) -> Row:
    metadata = {"depth_percent": rng.randrange(101), "length_tokens": 4096}
    return {
        "answers": ["gold"],
        "prompt_tail": "What is it? " * 40,
        "item_metadata": json.dumps(metadata),
        "context_tokens": 4000 + index,
        "versions": "{}",
    }


class FakeForm(NamedTuple):
    """A form: its name, bits of keys and values, its bytes over the plain form's, and the part that a step reads."""

    name: str
    bits_k: float
    bits_v: float
    bytes_ratio: float
    read_ratio: float = 1.0


PLAIN = FakeForm("plain", 16.0, 16.0, 1.0)
INT4 = FakeForm("int4", 4.0, 4.0, 72 / 256)  # of heads of 64 numbers, with a scale and an offset a slot
KIVI2 = FakeForm("kivi2", 2.0, 2.0, 48 / 256)
K8V4 = FakeForm("k8v4", 8.0, 4.0, 104 / 256)
FULL_POSITION_BYTES = FULL_BYTES // 64  # 4 bytes beside the 256 of a slot


def with_forms(rows: Iterable[Row], forms: Mapping[str, FakeForm] = MappingProxyType({})) -> list[Row]:
    """Rows of `make_sweep_rows` as an engine gives them that knows forms: by label, all others plain; positions told."""
    stored = []
    for row in rows:
        form = forms.get(row["variant"], PLAIN)
        held = int(row["kept_ratio"] * FULL_BYTES * form.bytes_ratio)
        positions = int(row["kept_ratio"] * FULL_POSITION_BYTES)
        columns = {
            "form": form.name,
            "tail_form": "plain",
            "bits_k": form.bits_k,
            "bits_v": form.bits_v,
            "kv_bytes": held + positions,
            "full_kv_bytes": FULL_BYTES + FULL_POSITION_BYTES,
            "position_bytes": positions,
            "full_position_bytes": FULL_POSITION_BYTES,
            "read_bytes": int(held * form.read_ratio),
            "full_read_bytes": FULL_BYTES,
        }
        stored.append(row | columns)
    return stored

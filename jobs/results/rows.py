"""Every row that a unit owes is made exactly once, whatever the engine returned or failed to return.

Pure: outcomes go in, plain dicts with exactly the schema's keys come out. A number that is missing or not
finite is null with its reason.
"""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluators import scoring
from evaluators.item import BenchmarkItem
from jobs.planning.identity import prompt_digest
from jobs.planning.work import ModelFacts, PlannedItem, RowKey, WorkUnit
from jobs.results.schema import FAILED, OK, RESULT_SCHEMA, TRUNCATED, Row
from jobs.results.stored_bytes import storage_columns
from kvmerger.generation import Generation, VariantFailure
from kvmerger.variants import VariantSpec

Outcome = Generation | VariantFailure
Decode = Callable[[Sequence[int]], str]
"""Token ids, without an end token, to text."""

_FAILED_REASON = "the row failed"
_PROMPT_TAIL_CHARS = 600  # the question and a few sentences before it: enough to judge an answer by
_NO_PEAK_REASON = "a peak per variant is measured in isolated runs on CUDA only"


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all rows of a sweep share; travels to actors. `policy_versions` is by label."""

    sweep: str
    model: str
    model_revision: str | None
    query_mode: str
    seed: int
    versions: Mapping[str, str] = field(default_factory=dict)
    policy_versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a row has no result. `phase` is where it happened: plan, load, variant, engine, score, actor …"""

    phase: str
    error_type: str
    message: str
    traceback: str

    @classmethod
    def of(cls, phase: str, error: BaseException) -> Failure:
        """Describe an exception that was caught in `phase`."""
        lines = traceback.format_exception(error)
        return cls(phase, type(error).__name__, str(error), "".join(lines))


@dataclass(frozen=True, slots=True)
class RowMaker:
    """Makes the rows of one unit; `now_s` is Unix time.

    `model`, `layers` and `device_name` are None if no model was loaded.
    """

    context: RunContext
    unit_id: str
    execution: str
    now_s: float
    model: ModelFacts | None = None
    layers: str | None = None
    device_name: str | None = None

    def failed(self, key: RowKey, item: BenchmarkItem, spec: VariantSpec, failure: Failure) -> Row:
        """A row without a result: it failed, or could not run."""
        return {
            # First every column as null: what is set below is set on top of it, and none can be missing.
            **dict.fromkeys(RESULT_SCHEMA.names),
            **self._shared(),
            **self._asked(key, item, spec),
            **_failure_columns(failure),
        }

    def finished(
        self,
        key: RowKey,
        planned: PlannedItem,
        spec: VariantSpec,
        outcome: Generation,
        decode: Decode,
        digest: str,
    ) -> Row:
        """The row of a generation, scored; if its metric raises, a failed row that keeps its numbers.

        `digest` is the item's `prompt_digest`.
        """
        # The stop token counts as generated, but is no part of the text that is scored.
        is_whole = outcome.stop_reason != "length"
        prediction = decode(outcome.token_ids[:-1] if is_whole else outcome.token_ids)
        return {
            **dict.fromkeys(RESULT_SCHEMA.names),
            **self._shared(),
            **self._asked(key, planned.item, spec),
            "status": TRUNCATED if planned.tokens.is_truncated else OK,
            "prediction": prediction,
            **_measured(outcome, planned),
            "prompt_digest": digest,
            **_scored(prediction, planned.item),
        }

    def _shared(self) -> Row:
        return {
            "sweep": self.context.sweep,
            "unit_id": self.unit_id,
            "query_mode": self.context.query_mode,
            "execution": self.execution,
            "model": self.context.model,
            # Of the loaded model where there is one: the settings may name a branch, or nothing.
            "model_revision": self.model.revision if self.model else self.context.model_revision,
            "dtype": self.model.dtype if self.model else None,
            "device": self.model.device if self.model else None,
            "device_name": self.device_name,
            "attention": self.model.attention if self.model else None,
            "layers": self.layers,
            "seed": self.context.seed,
            "versions": _json(self.context.versions),
            "created_at_s": self.now_s,
        }

    def _asked(self, key: RowKey, item: BenchmarkItem, spec: VariantSpec) -> Row:
        asked = spec.canonical()
        return {
            "identity": key.identity,
            "item_id": key.item_id,
            "cluster_id": item.cluster_id,
            "benchmark": item.benchmark,
            "task": item.task,
            "variant": key.label,
            "policy": spec.policy,
            "policy_version": self.context.policy_versions.get(key.label),
            "policy_params": _json(asked["params"]),
            "budget_asked": _json(asked["budget"]),
            "answers": list(item.answers),
            "all_classes": list(item.all_classes),
            "metric": item.metric,
            "prompt_tail": prompt_tail(item),
            "item_metadata": _json(dict(item.metadata)),
        }


def build_rows(unit: WorkUnit, outcomes: Sequence[Outcome], maker: RowMaker, decode: Decode) -> list[Row]:
    """The unit's rows in the order of its keys; outcomes for which the unit owes no row are left out.

    An outcome's `question_index` counts `unit.items`. A key without outcome gets a failed row.
    """
    by_key = {(outcome.label, outcome.question_index): outcome for outcome in outcomes}
    index_of = {planned.item.item_id: index for index, planned in enumerate(unit.items)}
    # Once per item: of a long prompt it costs more than the rest of a row.
    digests = [prompt_digest(planned.tokens, planned.item.max_new_tokens) for planned in unit.items]
    rows = []
    for key in unit.row_keys:
        index = index_of[key.item_id]
        planned, spec = unit.items[index], spec_of(unit, key.label)
        match by_key.get((key.label, index)):
            case Generation() as outcome:
                rows.append(maker.finished(key, planned, spec, outcome, decode, digests[index]))
            case VariantFailure(phase=phase, error_type=error_type, message=message, traceback=trace):
                failure = Failure(phase, error_type, message, trace)
                rows.append(maker.failed(key, planned.item, spec, failure))
            case None:  # a bug of ours or of a policy: the row is owed all the same
                failure = Failure("engine", "MissingOutcome", "the engine returned nothing for this row", "")
                rows.append(maker.failed(key, planned.item, spec, failure))
    return rows


def failed_rows(unit: WorkUnit, failure: Failure, maker: RowMaker) -> list[Row]:
    """A failed row for every key, all for the same reason."""
    item_of = {planned.item.item_id: planned.item for planned in unit.items}
    return [
        maker.failed(key, item_of[key.item_id], spec_of(unit, key.label), failure) for key in unit.row_keys
    ]


def spec_of(unit: WorkUnit, label: str) -> VariantSpec:
    """The unit's variant of that label; a reference row is its own policy."""
    # A unit lists no reference rows.
    found = (spec for spec in unit.variants if spec.label == label)
    return next(found, VariantSpec(label, label))


def prompt_tail(item: BenchmarkItem) -> str:
    """The end of the user's text and the answer prefix, before any truncation or chat template."""
    # Through UTF-8 and back: parquet takes no lone surrogates, which recorded data holds.
    text = (item.prompt_text + item.answer_prefix)[-_PROMPT_TAIL_CHARS:]
    return text.encode("utf-8", "replace").decode("utf-8")


def _failure_columns(failure: Failure) -> Row:
    return {
        "status": FAILED,
        "failure_phase": failure.phase,
        "failure_type": failure.error_type,
        "failure_message": failure.message,
        "failure_traceback": failure.traceback,
        "score_reason": _FAILED_REASON,
        "answer_nll_reason": _FAILED_REASON,
        "fidelity_reason": _FAILED_REASON,
        "peak_bytes_reason": _FAILED_REASON,
    }


def _measured(outcome: Generation, planned: PlannedItem) -> Row:
    tokens = planned.tokens
    # Counted in slots of all layers and heads: heads may keep different numbers.
    full_slots = len(tokens.context_ids) * sum(len(heads) for heads in outcome.slots_LH)
    kept_slots = sum(sum(heads) for heads in outcome.slots_LH)
    asked = {} if outcome.asked_slots is None else {"asked_slots": outcome.asked_slots}
    return {
        **_or_reason("answer_nll", outcome.answer_nll, "answer_nll_reason", _no_nll_reason(planned)),
        **_or_reason("kl_mean", outcome.kl_mean, "fidelity_reason", "the engine gave no value"),
        "top1_agreement": _finite(outcome.top1_agreement),
        "num_fidelity_tokens": outcome.num_fidelity_tokens,
        "context_tokens": len(tokens.context_ids),
        "tail_tokens": len(tokens.tail_ids),
        "new_tokens": len(outcome.token_ids),
        "stop_reason": outcome.stop_reason,
        "slots": [list(heads) for heads in outcome.slots_LH],
        "kept_ratio": kept_slots / full_slots if full_slots else None,
        **storage_columns(outcome),
        **_or_reason("peak_bytes", outcome.peak_bytes, "peak_bytes_reason", _NO_PEAK_REASON),
        "is_degenerate": outcome.is_degenerate,
        "degenerate_reason": outcome.degenerate_reason,
        "counters": _json({**outcome.counters, **asked}),
        "seconds": _json(outcome.seconds),
        "trace": _json([list(point) for point in outcome.trace]),
    }


def _no_nll_reason(planned: PlannedItem) -> str:
    if planned.tokens.gold_ids:
        return "the engine gave no value"
    return planned.tokens.no_gold_reason or planned.item.unscored_reason


def _scored(prediction: str, item: BenchmarkItem) -> Row:
    if not item.answers:
        return {"score": None, "score_reason": item.unscored_reason}
    try:
        return score_columns(item.metric, prediction, item.answers, item.all_classes)
    except Exception as error:  # noqa: BLE001 - metrics are plug-ins: one that raises costs its row, not the unit
        # The row is failed, since it is owed again, but keeps what was measured.
        columns = _failure_columns(Failure.of("score", error))
        measured = {"answer_nll_reason", "fidelity_reason", "peak_bytes_reason"}  # these numbers are there
        reason = f"metric {item.metric!r} raised {type(error).__name__}"
        return {key: value for key, value in columns.items() if key not in measured} | {
            "score_reason": reason
        }


def score_columns(metric: str, prediction: str, answers: Sequence[str], all_classes: Sequence[str]) -> Row:
    """The columns of the score; raises what the metric raises."""
    score = scoring.score_item(metric, prediction, answers, all_classes)
    return {
        **_or_reason("score", score.value, "score_reason", ""),
        # A score of texts that were cut stands, and says so.
        **({"score_reason": score.note} if score.note and math.isfinite(score.value) else {}),
        "score_parts": _json(dict(score.parts)) if score.parts else None,
        "scorer": scoring.scorer_label(metric),
    }


def _or_reason(column: str, value: float | None, reason_column: str, reason: str) -> Row:
    """The value in `column`, or null with a reason: the given one, or that the value is not finite."""
    # NaN must not reach a mean, and parquet would keep it as a number.
    if value is not None and not math.isfinite(value):
        return {column: None, reason_column: f"not finite: {value}"}
    return {column: value, reason_column: reason if value is None else None}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)

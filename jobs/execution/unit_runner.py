"""Running a unit returns every row that it owes, once; no exception leaves a loaded runner but `DeviceLostError`.

Units run on the model that was planned: a runner whose machine has another one does not get loaded.

The same runner works in this process and inside an actor. It imports the engine only when it loads the model.
"""

from __future__ import annotations

import dataclasses
import gc
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from evaluators.tokenizer import Tokenizer, decode
from jobs.execution.thread_waiting import choose_thread_waiting
from jobs.planning.identity import names_other_content
from jobs.planning.policy_version import version_of
from jobs.planning.work import ModelFacts, PlannedItem, WorkUnit
from jobs.results.rows import Failure, Outcome, RowMaker, RunContext, build_rows, failed_rows
from jobs.results.schema import FAILED, Row
from jobs.settings.schema import ModelSettings
from kvmerger.generation import EarlierTurn, Prompt, Question, VariantFailure
from kvmerger.variants import REFERENCE_LABELS, VariantSpec


class DeviceLostError(RuntimeError):
    """The accelerator no longer works in this process: only another process can run the unit."""


class OtherModelError(ValueError):
    """Where this process runs, the planned model's name leads to another model."""


class OtherPolicyError(ValueError):
    """Where this process runs, the planned policy's code is other code."""


class EngineLike(Protocol):
    """The part of `kvmerger.engine.engine.Engine` that runs a unit."""

    def run(self, prompt: Prompt, variants: Sequence[Any], *, execution: Any, seed: int) -> Sequence[Outcome]:
        """One outcome per variant and question, the reference rows included."""
        ...

    def run_many(
        self, prompts: Sequence[Prompt], variants: Sequence[Any], *, seed: int
    ) -> Sequence[Sequence[Outcome]]:
        """The same for each of several prompts, fused; what goes wrong with one is in its outcomes."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine ready to run, and what turns specs into policies and ids into text.

    `layers` says who computes the model's layers: "fused" or "transformers". `device_name` is the kind of GPU or processor
    that computes, None where it is not known. `version_of` tells the version of a variant that was built; without it none is
    compared.
    """

    engine: EngineLike
    tokenizer: Tokenizer
    info: ModelFacts
    build_variant: Callable[[VariantSpec], Any]
    layers: str
    device_name: str | None
    version_of: Callable[[Any], str] | None = None


LoadEngine = Callable[[ModelSettings], LoadedEngine]
"""Loads a model; picklable, since actors call it in their own process."""


def load_engine(settings: ModelSettings) -> LoadedEngine:
    """Load model, tokenizer and engine (imports torch; seconds to minutes).

    Raises:
        ModelError: the model cannot be found or is not supported.
    """
    choose_thread_waiting()
    # Here, not at the top: a driver whose actors run the units needs neither torch nor the seconds to import it.
    from kvmerger.device import device_name
    from kvmerger.engine import Engine
    from kvmerger.models.loading import load_model, load_tokenizer

    model = load_model(
        settings.name, revision=settings.revision, dtype=settings.dtype, device=settings.device
    )
    tokenizer = load_tokenizer(settings.name, revision=settings.revision)
    name = device_name(model.device)
    return LoadedEngine(
        Engine(model),
        tokenizer,
        model.info,
        variant_builder(settings),
        model.layers,
        name,
        lambda variant: version_of(variant.policy),
    )


def variant_builder(settings: ModelSettings) -> Callable[[VariantSpec], Any]:
    """What makes variants of specs (imports torch); they count massive tokens where ``settings`` say so."""
    from kvmerger.building import build_variant

    return lambda spec: dataclasses.replace(build_variant(spec), counts_massive=settings.count_massive)


class UnitRunner:
    """Runs units one after the other on one model. Making it costs nothing; `load` takes seconds to minutes."""

    def __init__(self, settings: ModelSettings, context: RunContext, load: LoadEngine = load_engine) -> None:
        self._settings = settings
        self._context = context
        self._load = load
        self._loaded: LoadedEngine | None = None

    def load(self) -> None:
        """Load the model; raises what loading raises. A second call does nothing.

        Raises:
            OtherModelError: it is not the model that was planned; its rows would stand under that one's identities.
        """
        if self._loaded is None:
            loaded = self._load(self._settings)
            self._refuse_other_model(loaded.info.revision)
            self._loaded = loaded

    def run(self, unit: WorkUnit) -> list[Row]:
        """The unit's rows, one for each of its `row_keys`; an exception becomes failed rows. Needs `load` first.

        Raises:
            DeviceLostError: rows failed, and the device no longer works.
        """
        assert self._loaded is not None, "load() comes before run()"
        rows = self._run_or_fail(self._loaded, unit)
        # Here, where the exception and the frames that its traceback held are gone: they keep tensors alive.
        if any(row["status"] == FAILED for row in rows):
            _release_memory()
        return rows

    def _refuse_other_model(self, found: str | None) -> None:
        planned = self._context.model_revision
        if names_other_content(planned, found):
            raise OtherModelError(
                f"model {self._settings.name!r} is {found} on {socket.gethostname()}, and {planned} was planned: its files "
                f"there (weights, or any *.json) are others than the plan was made with. Give every machine the same files "
                f"at that path, leave them alone while a sweep runs, and run the same command again"
            )

    def _run_or_fail(self, loaded: LoadedEngine, unit: WorkUnit) -> list[Row]:
        try:
            return self._run(loaded, unit)
        # A policy that calls sys.exit must not end the sweep, or worse, choose its exit code.
        except (Exception, SystemExit) as error:  # noqa: BLE001 - edge of the process: failed rows are owed too
            return failed_rows(unit, Failure.of("engine", error), self._maker(unit, loaded))

    def _run(self, loaded: LoadedEngine, unit: WorkUnit) -> list[Row]:
        variants, failures = _build_variants(loaded, unit, self._context.policy_versions)
        outcomes = _outcomes(loaded.engine, unit, variants, self._context.seed)
        return build_rows(
            unit,
            [*failures, *outcomes],
            self._maker(unit, loaded),
            lambda token_ids: decode(token_ids, loaded.tokenizer),
        )

    def _maker(self, unit: WorkUnit, loaded: LoadedEngine) -> RowMaker:
        # Unix time, since a later run compares it with its own: the newer of two rows counts.
        return RowMaker(
            self._context,
            unit.unit_id,
            unit.execution,
            time.time(),
            loaded.info,
            loaded.layers,
            loaded.device_name,
        )


def _outcomes(engine: EngineLike, unit: WorkUnit, variants: Sequence[Any], seed: int) -> list[Outcome]:
    """The engine's outcomes for all items, with `question_index` counting `unit.items`."""
    contexts = unit.contexts
    prompts = [_prompt_of([unit.items[index] for index in indices]) for indices in contexts]
    if len(prompts) == 1:
        found = [engine.run(prompts[0], variants, execution=unit.execution, seed=seed)]
    else:
        assert unit.execution == "fused", "isolated rows share nothing"
        found = list(engine.run_many(prompts, variants, seed=seed))
    # The engine counts the questions of each prompt from 0.
    return [
        dataclasses.replace(outcome, question_index=indices[outcome.question_index])
        for indices, outcomes in zip(contexts, found, strict=True)
        for outcome in outcomes
    ]


def _prompt_of(items: Sequence[PlannedItem]) -> Prompt:
    """Items on their shared context, in order: question i is item i."""
    questions = tuple(
        Question(
            planned.tokens.tail_ids,
            planned.tokens.gold_ids,
            planned.item.max_new_tokens,
            planned.tokens.stop_ids,
            tuple(EarlierTurn(*turn) for turn in planned.tokens.earlier),
        )
        for planned in items
    )
    return Prompt(items[0].tokens.context_ids, questions, items[0].tokens.is_context_free)


def _build_variants(
    loaded: LoadedEngine, unit: WorkUnit, planned_versions: Mapping[str, str]
) -> tuple[list[Any], list[VariantFailure]]:
    """The variants that could be made as planned, and a failure per question for each that could not."""
    variants: list[Any] = []
    failures: list[VariantFailure] = []
    # The engine adds the reference rows itself.
    for spec in (spec for spec in unit.variants if spec.label not in REFERENCE_LABELS):
        try:
            variant = loaded.build_variant(spec)
            if loaded.version_of is not None:
                _refuse_other_policy(spec.label, planned_versions.get(spec.label), loaded.version_of(variant))
            variants.append(variant)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - policies are plug-ins: one that cannot be made costs its own rows
            failure = Failure.of("variant", error)
            failures += [
                VariantFailure(
                    spec.label, index, failure.phase, failure.error_type, failure.message, failure.traceback
                )
                for index in range(len(unit.items))
            ]
    return variants, failures


def _refuse_other_policy(label: str, planned: str | None, found: str) -> None:
    # A worker that starts later than the plan was made imports what the file holds by then.
    if planned is not None and found != planned:
        raise OtherPolicyError(
            f"the code of {label!r} has changed since the plan was made: version {found} on {socket.gethostname()}, and "
            f"{planned} was planned. Run the same command again: it computes the rows of the code as it is then"
        )


def _release_memory() -> None:
    """Free what a failed unit held, or the next one starts with less memory; raises DeviceLostError if the device is lost."""
    gc.collect()  # tracebacks hold tensors in cycles, and only what nobody holds can be given back
    # Not imported: an engine without torch (a test's) has nothing to free.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    try:
        # Kernels run after their launch has returned: only waiting for them shows whether the device still works.
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:  # after an illegal access every later call raises, for every unit
        raise DeviceLostError(f"the device stopped working: {error}") from error

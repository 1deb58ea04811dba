"""From settings to a plan: all that can be found wrong is found here, before any weights are loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluators import registry
from evaluators.benchmarks.sources.noting import noted_sources
from evaluators.item import BenchmarkItem
from evaluators.tokenizer import Tokenizer
from jobs.planning.lengths import refuse_lengths
from jobs.planning.model_reading import read_model
from jobs.planning.plan import Plan, build_plan
from jobs.planning.policy_contract import require_contracts
from jobs.planning.policy_version import version_of
from jobs.planning.repeat_room import RepeatRoom
from jobs.planning.sizes import SizeForecast, VariantFacts, itemsize_of
from jobs.settings.schema import Settings
from kvmerger.budget import BudgetError, BudgetSpec, KeptRatio
from kvmerger.names import FormError
from kvmerger.variants import REFERENCE_LABELS, VariantSpec

if TYPE_CHECKING:
    from kvmerger.building import Variant
    from kvmerger.models.loading import ModelInfo
    from kvmerger.policies.base import CacheShape, Policy

_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run needs: the plan, the model as its configuration describes it, policy versions by label.

    `warnings` are sentences on the model, to be shown before it runs; `read` tells, for JSON, what files the items are of.
    """

    plan: Plan
    model: ModelInfo
    tokenizer: Tokenizer
    policy_versions: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    read: tuple[Mapping[str, str | int], ...] = ()

    def settled(self, settings: Settings) -> Settings:
        """`settings` with the planned device, dtype and commit: an actor that loads the model decides none of them again."""
        planned = {"device": self.model.device, "dtype": self.model.dtype}
        # Of a hub id; what a folder's revision is called names nothing that could be asked for.
        if _COMMIT.fullmatch(self.model.revision):
            planned["revision"] = self.model.revision
        return settings.model_copy(update={"model": settings.model.model_copy(update=planned)})


def prepare(
    settings: Settings,
    done: Collection[str],
    find_device: Callable[[], str],
    say: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """Build the policies, read the model's configuration and tokenizer, load the items, plan, and try users' policies.

    Imports torch and transformers; writes nothing. `done` are the identities of rows that are there already; `find_device`
    says where the work will be done, and is asked once the policies are known to be right; `say` is told what takes time.

    Raises:
        ValueError: one of our own subclasses, for whatever the settings, data or model cannot do.
    """
    # The cheap checks come first: policies, then the model's configuration and tokenizer, then items.
    from kvmerger.building import build_variant

    variants = {
        spec.label: build_variant(spec) for spec in settings.variants if spec.label not in REFERENCE_LABELS
    }
    read = read_model(settings, find_device())
    facts = {label: _known_facts_of(variant) for label, variant in variants.items()}
    refuse_lengths(settings, read.tokenizer, read.info.max_positions)
    items, sources = _load_items(settings, read.tokenizer)
    said = read.warnings_for(item for several in items.values() for item in several)
    sizes = SizeForecast({spec.label: spec for spec in settings.variants}, facts, read.info)
    room = RepeatRoom(read.tokenizer, read.info.max_positions)
    check = _VariantCheck(variants, sizes, room)
    plan = build_plan(settings, items, read.tokenizer, read.info, facts, done, check, check.answering)
    if settings.check_policies:
        # Only now is it known whose rows are all there already: nothing of those policies will run.
        owed = {planned.key.label for planned in plan.rows if planned.is_owed}
        require_contracts((spec for spec in settings.variants if spec.label in owed), say)
    versions = {label: fact.version for label, fact in facts.items()}
    # Without any context there is no length at which a budget could mean something else than it says.
    cautions = check.cautions(settings.variants, plan.typical_tokens) if plan.typical_tokens else []
    return Prepared(plan, read.info, read.tokenizer, versions, (*said, *cautions), sources)


@dataclass(frozen=True, slots=True)
class _VariantCheck:
    """Asks the variant's policy why it cannot work on so many tokens."""

    variants: Mapping[str, Variant]
    sizes: SizeForecast
    room: RepeatRoom

    def __call__(self, spec: VariantSpec, num_tokens: int) -> str | None:
        from kvmerger.policies.base import PolicyError

        policy, shape = self.variants[spec.label].policy, self._shape(num_tokens)
        try:
            policy.check(shape, self._in_slots(spec, shape))
        except (BudgetError, FormError, PolicyError) as error:
            return str(error)
        # Policies are plug-ins: one whose check fails costs its own rows, not the sweep.
        except Exception as error:  # noqa: BLE001
            return f"its check() raised {type(error).__name__}: {error}"
        return self.room.lacking(num_tokens) if self.sizes.facts[spec.label].repeats_context else None

    def answering(self, spec: VariantSpec, num_tokens: int, num_new_tokens: int) -> str | None:
        """Why its rows cannot answer a prompt of so many tokens of which nothing is compressed; None where they can."""
        from kvmerger.engine.context_free import answering_rule
        from kvmerger.policies.base import PolicyError

        try:
            answering_rule(self.variants[spec.label], self._shape(num_tokens), num_new_tokens, prompt_seed=0)
        except (BudgetError, PolicyError) as error:
            return str(error)
        # As above: what a plug-in raises costs its own rows.
        except Exception as error:  # noqa: BLE001
            return f"its rule raised {type(error).__name__}: {error}"
        return None

    def cautions(self, specs: Iterable[VariantSpec], num_tokens: int) -> list[str]:
        """What policies say of their budgets on a context of so many tokens, by sentences that begin with the label."""
        said = []
        for spec in specs:
            # What a plug-in raises, or a budget that cannot be met there, is told by the check.
            with suppress(Exception):
                shape = self._shape(num_tokens)
                budget = self._in_slots(spec, shape)
                cautions = (part.caution(shape, budget) for part in self.variants[spec.label].policy.parts)
                said += [f"{spec.label}: {caution}" for caution in cautions if caution]
        return said

    def _shape(self, num_tokens: int) -> CacheShape:
        from kvmerger.policies.base import CacheShape

        model = self.sizes.model
        return CacheShape(
            num_tokens, model.num_layers, model.num_kv_heads, model.head_dim, itemsize_of(model)
        )

    def _in_slots(self, spec: VariantSpec, shape: CacheShape) -> BudgetSpec:
        from kvmerger.building import in_slots

        def bytes_of(label: str) -> int:
            # Where the other one cannot run, that is the reason, and not what this one would make of its bytes.
            size = self.sizes.of(label, shape.num_tokens)
            return size.num_bytes if size else self.sizes.full_bytes(shape.num_tokens)

        # A form alone keeps everything.
        return in_slots(spec.budget or KeptRatio(1.0), self.variants[spec.label].policy, shape, bytes_of)


def _known_facts_of(variant: Variant) -> VariantFacts:
    from kvmerger.policies.base import PolicyError

    try:
        return _facts_of(variant)
    # Policies are plug-ins: what one says of itself, and where its code lies, may raise anything.
    except Exception as error:
        raise PolicyError(
            f"{variant.label!r}: what its policy says of itself raised {type(error).__name__}: {error}"
        ) from error


def _facts_of(variant: Variant) -> VariantFacts:
    from kvmerger.building import is_uneven, sizes_of_form, spends_bytes

    policy = variant.policy
    return VariantFacts(
        version_of(policy),
        bool(policy.budget_is_outcome),
        _acts(policy),
        sizes_of_form(policy),
        bool(policy.adds_log_mass),
        is_uneven(policy),
        _repeats(policy),
        spends_bytes=spends_bytes(policy),
    )


def _repeats(policy: Policy) -> bool:
    from kvmerger.policies.base import declared_needs
    from kvmerger.prefill.evidence import repeat_needs

    # As in `_acts`: what is wrong with its needs is told where they are read.
    with suppress(Exception):
        return bool(repeat_needs(declared_needs(policy)))
    return False


def _acts(policy: Policy) -> bool:
    # Policies are plug-ins: one that raises here costs its own rows when it runs, not the sweep.
    with suppress(Exception):
        return policy.decode_rule(prompt_seed=0) is not None
    return False


def _load_items(
    settings: Settings, tokenizer: Tokenizer
) -> tuple[dict[str, list[BenchmarkItem]], tuple[Mapping[str, str | int], ...]]:
    """Items by task, and what they were read from; the key is the task's place too: one may be listed at two lengths."""
    items: dict[str, list[BenchmarkItem]] = {}
    read: list[Mapping[str, str | int]] = []
    for index, task in enumerate(settings.tasks):
        with noted_sources() as sources:
            items[f"tasks.{index} ({task.name})"] = registry.load_items(task.to_spec(), tokenizer)
        read += [{"task": task.name, **source.told()} for source in sources]
    return items, tuple(read)

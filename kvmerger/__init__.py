"""KV-cache compression policies, and an engine that runs many of them on one prefill.

The names in `__all__` are what a policy's author and a caller of the engine need: ``from kvmerger import ScoringPolicy``
stays valid wherever the modules behind it move. Importing the package loads none of them, and so no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmerger.budget import (
        Budget,
        BudgetError,
        BudgetSpec,
        BytesLike,
        BytesShare,
        KeptRatio,
        LikeVariant,
        SlotCount,
        num_slots_for,
        share_of,
    )
    from kvmerger.building import Variant, build_variant
    from kvmerger.cache.forms.base import CodedForm, Form
    from kvmerger.cache.forms.layouts import CodeLayout, Grid, Per
    from kvmerger.cache.head_counters import PerHead
    from kvmerger.cache.layer_cache import LayerCache
    from kvmerger.contract.checks import CheckResult, check_policy
    from kvmerger.decoding.decode_rule import DecodeRule, DecodeRuleError, DecodeStep, Heirs
    from kvmerger.engine.engine import Engine
    from kvmerger.generation import (
        Generation,
        InvalidPromptError,
        MemoryPoint,
        Prompt,
        Question,
        VariantFailure,
    )
    from kvmerger.kernels.reference.nearest import EVICTED
    from kvmerger.limits import Limits
    from kvmerger.merging.merge import Groups, groups_of, merge_groups, slot_log_mass, whole_runs
    from kvmerger.merging.runs import Runs, first_argmax, protect, run_maxima, run_sums, runs_of
    from kvmerger.merging.targets import (
        Targets,
        first_kept_after,
        heaviest_kept_of_run,
        last_kept_before,
        more_similar_neighbour,
        most_similar_kept,
    )
    from kvmerger.merging.weights import member_weights, normalised_weights
    from kvmerger.models.loading import LoadedModel, load_model, load_tokenizer
    from kvmerger.models.source import ModelError, ModelInfo
    from kvmerger.names import FormError, VariantError
    from kvmerger.policies.base import CacheShape, Policy, PolicyError
    from kvmerger.policies.decoding.base import DecodingPolicy, ScoredDecodingPolicy
    from kvmerger.policies.parameters import (
        require_choice,
        require_choices,
        require_cosine,
        require_count,
        require_flag,
        require_positive,
        require_ratio,
        require_share,
        require_switches,
    )
    from kvmerger.policies.reducers.base import AttentionReducer, Reducer
    from kvmerger.policies.registry import register, register_wrapper
    from kvmerger.policies.scoring import ScoringPolicy
    from kvmerger.policies.selection import SelectingPolicy, is_among_highest, keep_highest, take_selected
    from kvmerger.prefill.evidence import (
        ATTENTION_MASS,
        KEY_NORMS,
        NEIGHBOUR_COSINES,
        Evidence,
        EvidenceError,
        LayerStates,
        Need,
        attention_mass,
        register_evidence,
        window_attention,
    )
    from kvmerger.prefill.repeat_states import RepeatStates
    from kvmerger.variants import VariantSpec, parse_policies

RESULTS_VERSION = 1
"""Raise it when the engine itself gives other numbers: rows of the old version then no longer count as done."""

__all__ = [
    "ATTENTION_MASS", "EVICTED", "KEY_NORMS", "NEIGHBOUR_COSINES", "AttentionReducer", "Budget",
    "BudgetError", "BudgetSpec", "BytesLike", "BytesShare", "CacheShape", "CheckResult", "CodeLayout",
    "CodedForm", "DecodeRule", "DecodeRuleError", "DecodeStep", "DecodingPolicy", "Engine", "Evidence",
    "EvidenceError", "Form", "FormError", "Generation", "Grid", "Groups", "Heirs", "InvalidPromptError",
    "KeptRatio", "LayerCache", "LayerStates", "LikeVariant", "Limits", "LoadedModel", "MemoryPoint",
    "ModelError", "ModelInfo", "Need", "Per", "PerHead", "Policy", "PolicyError", "Prompt", "Question",
    "Reducer", "RepeatStates", "Runs", "ScoredDecodingPolicy", "ScoringPolicy", "SelectingPolicy", "SlotCount",
    "Targets", "Variant", "VariantError", "VariantFailure", "VariantSpec", "attention_mass",
    "build_variant", "check_policy", "first_argmax", "first_kept_after", "groups_of",
    "heaviest_kept_of_run", "is_among_highest", "keep_highest", "last_kept_before", "load_model",
    "load_tokenizer", "member_weights", "merge_groups", "more_similar_neighbour", "most_similar_kept",
    "normalised_weights", "num_slots_for", "parse_policies", "protect", "register", "register_evidence",
    "register_wrapper", "require_choice", "require_choices", "require_cosine", "require_count",
    "require_flag", "require_positive", "require_ratio", "require_share", "require_switches",
    "run_maxima", "run_sums", "runs_of", "share_of", "slot_log_mass", "take_selected", "whole_runs",
    "window_attention",
]  # fmt: skip

_NAMES_OF_MODULE = {
    "budget": (
        "Budget BudgetError BudgetSpec BytesLike BytesShare KeptRatio LikeVariant SlotCount num_slots_for "
        "share_of"
    ),
    "building": "Variant build_variant",
    "cache.forms.base": "CodedForm Form",
    "cache.forms.layouts": "CodeLayout Grid Per",
    "cache.head_counters": "PerHead",
    "cache.layer_cache": "LayerCache",
    "contract.checks": "CheckResult check_policy",
    "decoding.decode_rule": "DecodeRule DecodeRuleError DecodeStep Heirs",
    "engine.engine": "Engine",
    "generation": "Generation InvalidPromptError MemoryPoint Prompt Question VariantFailure",
    "kernels.reference.nearest": "EVICTED",
    "limits": "Limits",
    "merging.merge": "Groups groups_of merge_groups slot_log_mass whole_runs",
    "merging.runs": "Runs first_argmax protect run_maxima run_sums runs_of",
    "merging.targets": (
        "Targets first_kept_after heaviest_kept_of_run last_kept_before more_similar_neighbour "
        "most_similar_kept"
    ),
    "merging.weights": "member_weights normalised_weights",
    "models.loading": "LoadedModel load_model load_tokenizer",
    "models.source": "ModelError ModelInfo",
    "names": "FormError VariantError",
    "policies.base": "CacheShape Policy PolicyError",
    "policies.decoding.base": "DecodingPolicy ScoredDecodingPolicy",
    "policies.parameters": (
        "require_choice require_choices require_cosine require_count require_flag require_positive "
        "require_ratio require_share require_switches"
    ),
    "policies.reducers.base": "AttentionReducer Reducer",
    "policies.registry": "register register_wrapper",
    "policies.scoring": "ScoringPolicy",
    "policies.selection": "SelectingPolicy is_among_highest keep_highest take_selected",
    "prefill.evidence": (
        "ATTENTION_MASS KEY_NORMS NEIGHBOUR_COSINES Evidence EvidenceError LayerStates Need "
        "attention_mass register_evidence window_attention"
    ),
    "prefill.repeat_states": "RepeatStates",
    "variants": "VariantSpec parse_policies",
}
_MODULE_OF_NAME = {name: module for module, names in _NAMES_OF_MODULE.items() for name in names.split()}

# Seen by mypy, a module's __getattr__ would make every misspelt import valid.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """The name's own object, imported when it is first asked for.

        Raises:
            AttributeError: there is no such name, with the nearest one.
        """
        # `from kvmerger import engine` comes by here too, before Python imports the submodule: it must get this error.
        if name not in _MODULE_OF_NAME:
            from kvmerger.names import nearest

            # Told the name, Python's traceback does not add a second "did you mean" to ours.
            raise AttributeError(
                f"module {__name__!r} has no attribute {name!r}{nearest(name, __all__)}", name=name
            )
        found = getattr(import_module(f"{__name__}.{_MODULE_OF_NAME[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    """What is loaded, and what can be asked for."""
    return sorted({*globals(), *__all__})

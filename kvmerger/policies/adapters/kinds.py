"""What calling a press gives: scores, kept tokens, or changed keys and values; and which presses cannot be called.

Decided from a press's class before anything runs, so that one that would need a pass of its own is refused, never given one.
"""

from __future__ import annotations

import enum
import functools
import inspect
import json
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from kvmerger.names import VariantError
from kvmerger.policies.adapters.presses import found_at, fresh, is_a, is_press, made, nested_in
from kvmerger.policies.registry import names, wrapper_names


class Gives(enum.Enum):
    """What is made of a press's call.

    SCORES: its scores, once for all budgets. KEPT: which tokens its hook keeps. CHANGED: the keys and values it leaves.
    """

    SCORES = "scores"
    KEPT = "kept tokens"
    CHANGED = "changed slots"


class Facts(NamedTuple):
    """What is known of a press before it is called.

    Attributes:
        has_budget: whether it takes a compression ratio; if not, its parameters and the prompt decide what is kept.
        rerotates: whether its keys get new positions, behind which the question then stands.
        wants_attention: whether it reads attention weights, a number for each pair of tokens.
    """

    gives: Gives
    has_budget: bool
    rerotates: bool
    wants_attention: bool


class Refusal(NamedTuple):
    """Why a press cannot be called here: shortly, and as the end of a sentence that begins with its name."""

    needs_own_passes: bool
    why: str
    sentence: str


_OWN_PASSES = {
    "KVComposePress": ("attends to the prompt once more with its weights in view", None),
    "KVgradPress": ("repeats the context, and goes back through it for gradients", None),
    "RestoreKVPress": (
        "repeats the context as KVzip does, and runs once more with an adapter of its own",
        None,
    ),
    "KVzipPress": ("repeats the context to score it", "kvzip"),
}
_WHILE_ANSWERING = {
    "CAMPress": "cam",
    "CompressionRatioDecodingPress": "h2o_decode",
    "DecodingPress": "h2o_decode",
}
# Their context managers do what is done here without: set a window, unset a buffer, and compress behind the last layer.
_CALLS_HANDLED = ("BasePress", "FastKVzipPress", "FinchPress", "PrefillDecodingPress")
_BASES = ("BasePress", "ScorerPress")
_CHANGING = ("KeyRerotationPress", "MergingPress", "ThinKPress")
# Where a ratio is a parameter like another, or only makes the number of slots.
_NOT_SCORING = (
    "__init__",
    "__post_init__",
    "__setattr__",
    "__repr__",
    "__eq__",
    "__call__",
    "compress",
    "forward_hook",
)


@functools.cache
def facts_of(text: str) -> Facts:
    """What is known of the press that ``text`` makes (`presses.text_of`).

    Raises:
        VariantError: it cannot be made, or cannot be called in one prefill that all variants share.
    """
    path, params = json.loads(text)
    # Of the class first: some presses warn when they are made of what they cost.
    found = found_at(path)
    if isinstance(found, type) and (refusal := refusal_of(found)):
        raise VariantError(f"{path} {refusal.sentence}")
    press = made(text)
    for it in (press, *nested_in(press)):
        refusal = refusal_of(type(it))
        if why := refusal.sentence if refusal else _setting_refused(it, is_nested=it is not press):
            raise VariantError(f"{path}{'' if it is press else ' with ' + type(it).__name__} {why}")
    has_budget = _takes_ratio(press)
    if has_budget and _has_ratio(params):
        raise VariantError(
            f"{path}: the presses inside it follow its own budget; write compression_ratio beside its name alone"
        )
    return Facts(gives(press), has_budget, rerotates(press), _wants_attention(press))


def gives(press: Any) -> Gives:
    """What calling ``press`` gives."""
    if _changes(press):
        return Gives.CHANGED
    base = next((it for it in type(press).__mro__ if it.__name__ == "ScorerPress"), None)
    if base is None or not is_a(press, "ScorerPress"):
        return Gives.KEPT
    is_plain = all(getattr(type(press), it) is getattr(base, it) for it in ("compress", "forward_hook"))
    reads_ratio = any(_scores_by_ratio(type(it)) for it in (press, *nested_in(press)))
    return Gives.SCORES if is_plain and not reads_ratio else Gives.KEPT


def rerotates(press: Any) -> bool:
    """Whether the keys that ``press`` leaves have positions from 0 on, one for each slot."""
    if is_a(press, "ComposedPress"):
        return bool(press.presses) and rerotates(press.presses[-1])
    if is_a(press, "PrefillDecodingPress"):
        return rerotates(press.prefilling_press)
    return is_a(press, "KeyRerotationPress") or (is_a(press, "FinchPress") and press.rerotate_keys)


def _changes(press: Any) -> bool:
    if any(is_a(press, name) for name in _CHANGING) or rerotates(press):
        return True
    # A user's press says so itself: it cannot be told before it has run.
    return bool(getattr(press, "changes_slots", False)) or (
        any(is_a(press, name) for name in ("ComposedPress", "PrefillDecodingPress"))
        and any(map(_changes, nested_in(press)))
    )


def refusal_of(press_class: type) -> Refusal | None:
    """Why presses of this class cannot be called; None where they can, as far as the class tells."""
    for it in press_class.__mro__:
        if it.__name__ in _OWN_PASSES and is_a(it, it.__name__):
            what, ours = _OWN_PASSES[it.__name__]
            sentence = (
                f"needs passes of its own over the prompt ({what}), and every press here sees the one prefill that all "
                f"variants share{_instead(ours)}"
            )
            return Refusal(True, f"{what}{_instead(ours)}", sentence)
        if it.__name__ in _WHILE_ANSWERING and is_a(it, it.__name__):
            instead = _instead(_WHILE_ANSWERING[it.__name__])
            sentence = f"acts while the answer is made, and every press here sees the prompt alone{instead}"
            return Refusal(False, f"acts while the answer is made{instead}", sentence)
    if press_class.__name__ in _BASES and is_a(press_class, press_class.__name__):
        what = "is what presses are made from"
        return Refusal(False, what, f"{what}: name one of them, or your own as `module:Class`")
    own = next((it for it in press_class.__mro__ if "__call__" in vars(it)), None)
    if own is None or (own.__name__ in _CALLS_HANDLED and is_a(own, own.__name__)):
        return None
    what = f"has a context manager of its own ({own.__name__}.__call__), which may run passes of its own"
    return Refusal(True, what, f"{what}: here it is never entered")


def _instead(ours: str | None) -> str:
    return f"; ours is `{ours}`" if ours in {*names(), *wrapper_names()} else ""


def _setting_refused(press: Any, *, is_nested: bool) -> str | None:
    if is_a(press, "DMSPress") and press.decoding:
        return "with decoding: true acts while the answer is made; leave it out"
    if is_a(press, "DuoAttentionPress") and press.on_the_fly_scoring:
        return "with on_the_fly_scoring: true needs passes of its own, over texts of its own; leave it out"
    if is_a(press, "FinchPress") and press.window_size is None:
        return (
            "needs window_size, the tokens at the end of the compressed part that score the others: kvpress takes those "
            "behind a delimiter token"
        )
    if is_a(press, "FastKVzipPress") and is_nested:
        return "compresses behind the last layer, and so cannot stand inside another press"
    if is_a(press, "PrefillDecodingPress") and (
        press.decoding_press is not None or press.prefilling_press is None
    ):
        return "acts in prefill alone here: give it a prefilling_press and no decoding_press"
    if is_a(press, "ComposedPress") and not press.presses:
        return "has no press to run: name them in presses, as in [{name: KnormPress, compression_ratio: 0.5}]"
    if is_a(press, "ComposedPress") and any(map(rerotates, press.presses[:-1])):
        return "can turn keys to new positions in its last press only"
    return None


def _takes_ratio(press: Any) -> bool:
    """Whether ``press`` follows a ratio that is set from outside."""
    if any(is_a(press, name) for name in ("ComposedPress", "PrefillDecodingPress")):
        return False
    if inspect.getattr_static(press, "compression_ratio", None) is None:
        return False
    try:
        fresh(press).compression_ratio = 0.5
    # How presses say that what they keep is an outcome.
    except AttributeError:
        return False
    return True


def _has_ratio(value: Any, *, is_nested: bool = False) -> bool:
    if isinstance(value, list):
        return any(_has_ratio(it, is_nested=True) for it in value)
    if not isinstance(value, Mapping):
        return False
    return (is_nested and "compression_ratio" in value) or any(
        _has_ratio(it, is_nested=True) for it in value.values()
    )


def _wants_attention(press: Any) -> bool:
    return any(is_a(it, "ObservedAttentionPress") for it in (press, *nested_in(press)))


def _scores_by_ratio(press_class: type) -> bool:
    """Whether what ``press_class`` scores with reads a compression ratio: such scores hold at one budget only."""
    return any(
        "compression_ratio" in code.co_names
        for base in press_class.__mro__
        if base.__name__ not in _BASES and is_press(base)
        for function in _scoring_functions(base)
        for code in _codes(function.__code__)
    )


def _scoring_functions(press_class: type) -> Iterator[FunctionType]:
    for name, found in vars(press_class).items():
        function = found.__func__ if isinstance(found, staticmethod | classmethod) else found
        if isinstance(function, FunctionType) and name not in _NOT_SCORING:
            yield function


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for it in code.co_consts:
        if isinstance(it, CodeType):
            yield from _codes(it)

"""Policy classes by name. Classes, never instances: an instance is built from its spec every time (`building`).

Every module under this folder is imported when a name is first asked for: adding a file is enough to add a policy.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, TypeVar

from kvmerger.cache.forms.base import Form
from kvmerger.form_names import ALL_NAMES
from kvmerger.names import VariantError, nearest
from kvmerger.policies.base import Policy
from kvmerger.policies.own_modules import attribute_at
from kvmerger.variant_names import ALIASES

PolicyClass = TypeVar("PolicyClass", bound=type[Policy])
INNER = "inner"
"""The field of a wrapper that holds what it wraps; it is no parameter."""
_POLICIES: dict[str, type[Policy]] = {}
_WRAPPERS: dict[str, type[Policy]] = {}
_UNLISTED: dict[str, type[Policy]] = {}
_BEFORE_FORMS: dict[str, type[Policy]] = {}


def register(name: str) -> Callable[[PolicyClass], PolicyClass]:
    """Register the decorated policy under ``name``; returns it unchanged."""

    def add(policy_class: PolicyClass) -> PolicyClass:
        # No error where the name is taken: a user's module that is imported again registers itself again.
        _POLICIES[name] = policy_class
        return policy_class

    return add


def register_wrapper(name: str) -> Callable[[PolicyClass], PolicyClass]:
    """Register the decorated class, a policy with a field ``inner``, as what may follow ``+``; returns it unchanged."""

    def add(wrapper_class: PolicyClass) -> PolicyClass:
        _WRAPPERS[name] = wrapper_class
        return wrapper_class

    return add


def register_before_form(name: str) -> Callable[[PolicyClass], PolicyClass]:
    """Register the decorated policy as what ``name`` stands for where a form follows, which ``name`` alone brings itself."""

    def add(policy_class: PolicyClass) -> PolicyClass:
        _BEFORE_FORMS[name] = policy_class
        return policy_class

    return add


def register_unlisted(name: str) -> Callable[[PolicyClass], PolicyClass]:
    """Call the decorated class ``name`` in messages, without a name that users could ask for; returns it unchanged."""

    def add(policy_class: PolicyClass) -> PolicyClass:
        _UNLISTED[name] = policy_class
        return policy_class

    return add


def names() -> list[str]:
    """Every registered policy, sorted."""
    _import_shipped()
    return sorted(_POLICIES)


def wrapper_names() -> list[str]:
    """Everything that may follow a policy's name and a ``+``, sorted."""
    _import_shipped()
    return sorted(_WRAPPERS)


@dataclass(frozen=True, slots=True)
class Description:
    """What a list of policies says about one: parameters are (name, default) pairs in the order they are declared.

    A parameter without default has `dataclasses.MISSING`.
    """

    name: str
    is_wrapper: bool
    summary: str
    parameters: tuple[tuple[str, Any], ...]
    is_form: bool = False


def describe() -> list[Description]:
    """Every registered policy, then everything that may follow a ``+``; each sorted by name."""
    _import_shipped()
    return [
        Description(
            name,
            is_wrapper,
            _summary(policy_class),
            tuple(map(_name_and_default, parameters_of(policy_class))),
        )
        for registered, is_wrapper in ((_POLICIES, False), (_WRAPPERS, True))
        for name, policy_class in sorted(registered.items())
    ]


def parameters_of(policy_class: type[Policy]) -> Iterable[Field]:
    """The fields a user may set."""
    return [field for field in fields(policy_class) if field.init and field.name != INNER]


def _summary(policy_class: type[Policy]) -> str:
    return (policy_class.__doc__ or "").strip().partition("\n")[0]


def _name_and_default(field: Field) -> tuple[str, Any]:
    made = MISSING if field.default_factory is MISSING else field.default_factory()
    return field.name, made if field.default is MISSING else field.default


def name_of(policy: Policy) -> str:
    """What users call ``policy``: the name its class is registered under, or its class's own, unless it says so itself."""
    if policy.given_name is not None:
        return policy.given_name
    # By the class itself: a subclass of `SnapKV` that has no name must not be called snapkv.
    registered = {
        found: name
        for classes in (_POLICIES, _WRAPPERS, _UNLISTED, _BEFORE_FORMS)
        for name, found in classes.items()
    }
    return registered.get(type(policy), type(policy).__name__)


def path_of(policy: Policy) -> str:
    """What a sweep calls ``policy``: its parts' registered names, ``module:Class`` for those without one, joined by ``+``."""
    # A form's own name is whole: that of a user's has its module in it.
    parts = ((part, name_of(part)) for part in policy.parts)
    return "+".join(
        f"{type(part).__module__}:{name}" if name == type(part).__name__ else name for part, name in parts
    )


def get_wrapper(name: str) -> type[Policy]:
    """The class registered as what may follow ``+``.

    Raises:
        VariantError: there is none, with the nearest name.
    """
    _import_shipped()
    if name not in _WRAPPERS:
        raise VariantError(
            f"nothing called {name!r} may follow a `+`{nearest(name, [*wrapper_names(), *ALL_NAMES])}; there is "
            f"{wrapper_names()}, and as forms {list(ALL_NAMES)}, or your own as `module:Class`"
        )
    return _WRAPPERS[name]


def get(name: str, *, is_before_form: bool = False) -> type[Policy]:
    """The policy class called ``name`` (before a form, where that is another), or the class a ``module:Class`` path names.

    Raises:
        VariantError: there is none, with the nearest name or the import's own error.
    """
    _import_shipped()
    if is_before_form and name in _BEFORE_FORMS:
        return _BEFORE_FORMS[name]
    if name in _POLICIES:
        return _POLICIES[name]
    if ":" not in name:
        raise VariantError(
            f"unknown policy {name!r}{_likely(name)}; `sweep.py ls policies` shows all, or name your own as `module:Class`"
        )
    return imported_class(name, Policy, "policy")


def imported_class(name: str, base: type, kind: str) -> type[Any]:
    """The class that a ``module:Class`` path names, a subclass of ``base``; ``kind`` says what it should be.

    Raises:
        VariantError: it cannot be imported, or is none, with the import's own error; or there is no such path.
    """
    found = attribute_at(name, kind)
    if not (isinstance(found, type) and issubclass(found, base)):
        is_form = isinstance(found, type) and issubclass(found, Form)
        remedy = f": it is a form, so write snapkv+{name}, or full+{name} for every slot" if is_form else ""
        raise VariantError(f"{kind} {name!r} is not a subclass of kvmerger.{base.__name__}{remedy}")
    return found


def _likely(name: str) -> str:
    """The policy that is meant by a name that is none: the nearest, or the user's own with a dot for its colon."""
    near = nearest(name, [*names(), *wrapper_names(), *ALL_NAMES, *ALIASES])
    module_name, dot, class_name = name.rpartition(".")
    return f" (did you mean '{module_name}:{class_name}'?)" if dot and not near else near


# An import that fails is not cached: it is tried, and raises, again.
@functools.cache
def _import_shipped() -> None:
    package = importlib.import_module("kvmerger.policies")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)

"""Forms as parts of names: made from their parameters like policies, shipped ones by name and users' as ``module:Class``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from kvmerger.cache.forms import registry as shipped
from kvmerger.cache.forms.base import Form
from kvmerger.policies.base import Policy
from kvmerger.policies.registry import Description, imported_class
from kvmerger.policies.storage.stored import Stored


def maker_of(name: str) -> Callable[..., Stored]:
    """What makes the part called ``name`` from the policy that it wraps and the form's parameters.

    Raises:
        VariantError: a ``module:Class`` that cannot be imported, or is no form.
    """
    make = imported_class(name, Form, "form") if ":" in name else shipped.get(name)

    def stored(inner: Policy, **parameters: Any) -> Stored:
        return Stored(inner=inner, form=make(**parameters))

    return stored


def parameter_names(name: str) -> Sequence[str]:
    """What a user may set of the form called ``name``."""
    if ":" in name:
        return [it.name for it in fields(imported_class(name, Form, "form")) if it.init]
    return list(shipped.parameters_of(name))


def describe() -> list[Description]:
    """Every shipped form, sorted by name; a summary says what is stored."""
    return [
        Description(name, False, shipped.summary_of(name), tuple(shipped.parameters_of(name).items()), True)
        for name in shipped.names()
    ]

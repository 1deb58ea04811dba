"""Shipped forms by name. A name is a class with some of its parameters settled; the others are the user's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

from kvmerger.bits_table import FORM
from kvmerger.cache.forms.base import Form
from kvmerger.cache.forms.kvtuner import KvTuner
from kvmerger.cache.forms.mixed_widths import MixedWidths
from kvmerger.cache.forms.shipped import TOKEN_WISE_BITS, Fp8, Kivi, Nvfp4, TokenWise, TurboQuant
from kvmerger.names import FormError

# What a name settles; a parameter that is not named here keeps its class's default and can be set.
_SETTLED: dict[str, tuple[type[Form], dict[str, Any]]] = {
    "fp8": (Fp8, {"is_scaled": False}),
    "fp8_scaled": (Fp8, {"is_scaled": True}),
    "int8": (TokenWise, {"bits_k": 8, "bits_v": 8}),
    "int4": (TokenWise, {"bits_k": 4, "bits_v": 4}),
    "int4_rotated": (TokenWise, {"bits_k": 4, "bits_v": 4, "rotate": True}),
    "nvfp4": (Nvfp4, {}),
    "turboquant_k8v4": (TurboQuant, {"bits_k": 8, "bits_v": 4}),
    "turboquant_4bit_nc": (TurboQuant, {"bits_k": 4, "bits_v": 4}),
    "turboquant_k3v4_nc": (TurboQuant, {"bits_k": 3, "bits_v": 4}),
    "turboquant_3bit_nc": (TurboQuant, {"bits_k": 3, "bits_v": 3}),
    **{
        f"k{bits_k}v{bits_v}": (TokenWise, {"bits_k": bits_k, "bits_v": bits_v})
        for bits_k in TOKEN_WISE_BITS
        for bits_v in TOKEN_WISE_BITS
        if bits_k != bits_v
    },
}
# What a name proposes: the user may set it otherwise.
_PROPOSED: dict[str, tuple[type[Form], dict[str, Any]]] = {
    f"kivi{bits}": (Kivi, {"bits_k": bits, "bits_v": bits}) for bits in (4, 3, 2)
}

# What no name makes alone: each needs a table, found once for a model.
_OF_TABLES: dict[str, tuple[type[Form], dict[str, Any]]] = {FORM: (KvTuner, {})}

# Forms that policies bring, which choose widths for them: no names that users could put behind another policy.
_UNLISTED: dict[type[Form], str] = {MixedWidths: "mixed_widths"}


def names() -> list[str]:
    """Every shipped form that needs no table, sorted."""
    return sorted(_SETTLED | _PROPOSED)


def names_of_tables() -> list[str]:
    """Every shipped form that is made of a table, sorted."""
    return sorted(_OF_TABLES)


def get(name: str) -> Callable[..., Form]:
    """What makes the form ``name`` from the parameters that it leaves open.

    Raises:
        FormError: there is no such form.
    """
    form_class, values = _entry(name)
    return functools.partial(form_class, **values)


def parameters_of(name: str) -> dict[str, Any]:
    """The parameters of the form ``name`` that can be set, with their defaults; a table has `dataclasses.MISSING`."""
    form_class, values = _entry(name)
    if name in _OF_TABLES:
        return {field.name: MISSING for field in fields(form_class)}
    proposed = values if name in _PROPOSED else {}
    return {
        field.name: proposed.get(field.name, field.default)
        for field in fields(form_class)
        if field.name in proposed or (field.name not in values and field.default is not MISSING)
    }


def name_of(form: Form) -> str:
    """What a form is called: its name, with the parameters that are not the name's own; ``module:Class`` for a user's."""
    if isinstance(form, KvTuner):
        return form.called  # all of its table would be no name
    values = {field.name: getattr(form, field.name) for field in fields(form)}
    # Of several names of one class, the one that leaves the least to be said.
    alike = {name: _not_alike(values, vars(get(name)())) for name in names() if _entry(name)[0] is type(form)}
    if type(form) in _UNLISTED:
        return _UNLISTED[type(form)]
    own = min(
        alike, key=lambda name: len(alike[name]), default=f"{type(form).__module__}:{type(form).__name__}"
    )
    told = ",".join(f"{name}={value}" for name, value in alike.get(own, values).items())
    return f"{own}({told})" if told else own


def _not_alike(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != others[name]}


def _entry(name: str) -> tuple[type[Form], dict[str, Any]]:
    known = _SETTLED | _PROPOSED | _OF_TABLES
    if name not in known:
        raise FormError(f"there is no form {name!r}; there is {sorted(known)}")
    return known[name]

"""Forms as parts of names: made from their parameters like policies, shipped ones by name and users' as ``module:Class``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from kvmerger.budget import LayerBytes
from kvmerger.cache.forms import registry as shipped
from kvmerger.cache.forms.base import Form
from kvmerger.cache.forms.layouts import CodeLayout, Grid, Per
from kvmerger.policies.base import Policy
from kvmerger.policies.registry import Description, imported_class
from kvmerger.policies.storage.stored import Stored

SHOWN_HEAD_DIM = 128
"""The head size at which a list of forms tells their bytes."""
_BF16_BYTES = 2
_SHOWN_SLOTS = 4096  # many, so that what a head has once does not count


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
    """Every shipped form, sorted by name; a summary says how keys and values are stored."""
    return [
        Description(name, False, _summary(name), tuple(shipped.parameters_of(name).items()), True)
        for name in sorted([*shipped.names(), *shipped.names_of_tables()])
    ]


def _summary(name: str) -> str:
    if name in shipped.names_of_tables():
        return "Keys and values: bits of each layer's own, 8, 4 or 2, from a table made by jobs/calibrate.py."
    layouts = shipped.get(name)().layouts()
    assert layouts is not None, "every shipped form has layouts"
    k_words, v_words = map(_words, layouts)
    return f"Keys and values: {k_words}." if k_words == v_words else f"Keys: {k_words}; values: {v_words}."


def _words(layout: CodeLayout) -> str:
    numbers = {
        Grid.SIGNED: f"{layout.bits}-bit integers",
        Grid.UNSIGNED: f"{layout.bits}-bit integers",
        Grid.E4M3: "e4m3 floats",
        Grid.E2M1: "e2m1 floats",
        Grid.GAUSSIAN: f"{layout.bits}-bit points of a normal distribution",
    }[layout.grid]
    per = {
        Per.NOTHING: "",
        Per.SLOT: "token",
        Per.BLOCK: f"token and {layout.group} channels",
        Per.CHANNEL: f"channel and {layout.group} tokens",
    }[layout.per]
    scale = f", {'scale and minimum' if layout.has_offset else 'scale'} per {per}" if per else " at scale 1"
    return f"{'rotated ' if layout.is_rotated else ''}{numbers}{scale}{', and one per head' if layout.has_global else ''}"


def share_of_bf16(name: str) -> float | None:
    """Bytes of the shipped form ``name`` with its defaults, as a share of bf16's; None where a table decides."""
    if name in shipped.names_of_tables():
        return None
    num_bytes = shipped.get(name)().num_bytes((_SHOWN_SLOTS,), SHOWN_HEAD_DIM)
    return num_bytes / LayerBytes(1, SHOWN_HEAD_DIM, _BF16_BYTES).full(_SHOWN_SLOTS)

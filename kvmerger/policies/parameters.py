"""Checks of a policy's parameters, in one wording: the policy, the parameter, what it may be, what came."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from kvmerger.policies.base import PolicyError


def require_choices(policy: str, values: Mapping[str, object], allowed: Mapping[str, Sequence[str]]) -> None:
    """Every parameter that ``allowed`` names must have one of its values."""
    for name, choices in allowed.items():
        if values[name] not in choices:
            raise PolicyError(f"{policy}: {name} must be one of {tuple(choices)}, got {values[name]!r}")


def require_cosine(policy: str, name: str, value: object) -> None:
    """A threshold on cosines, in (-1, 1]."""
    if not (is_number(value) and -1 < value <= 1):
        raise PolicyError(f"{policy}: {name} is a cosine in (-1, 1], got {value!r}")


def require_ratio(policy: str, name: str, value: object) -> None:
    """A fraction of the prompt in [0, 1)."""
    if not (is_number(value) and 0 <= value < 1):
        raise PolicyError(f"{policy}: {name} is a fraction in [0, 1), got {value!r}")


def require_positive(policy: str, name: str, value: object, otherwise: str = "") -> None:
    """A finite number above 0; ``otherwise`` names what else there is."""
    if not (is_number(value) and 0 < value < math.inf):
        raise PolicyError(f"{policy}: {name} must be positive{otherwise}, got {value!r}")


def require_count(policy: str, name: str, value: object) -> None:
    """A whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PolicyError(f"{policy}: {name} is a whole number from 1 on, got {value!r}")


def require_switches(policy: str, values: Mapping[str, object], names: Sequence[str]) -> None:
    """Each is true or false: a quoted ``"false"`` would count as true."""
    for name in names:
        if not isinstance(values[name], bool):
            raise PolicyError(f"{policy}: {name} is true or false, got {values[name]!r}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is an int or a float; True and False are neither here."""
    return isinstance(value, int | float) and not isinstance(value, bool)

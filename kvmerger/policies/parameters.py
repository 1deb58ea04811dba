"""Checks of a policy's parameters, for ``__post_init__``: each error names the policy, the parameter and what it got."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TypeGuard

from kvmerger.policies.base import PolicyError


def require_count(policy: str, name: str, value: object, at_least: int = 1) -> None:
    """A whole number of at least ``at_least``."""
    # True is an int, and would count as 1.
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise PolicyError(f"{policy}: {name} must be a whole number from {at_least} on, got {value!r}")


def require_share(policy: str, name: str, value: object) -> None:
    """A number from 0 to 1."""
    # Written as what must hold: every comparison with NaN is false, so NaN is refused here and below.
    if not (is_number(value) and 0 <= value <= 1):
        raise PolicyError(f"{policy}: {name} is a share from 0 to 1, got {value!r}")


def require_ratio(policy: str, name: str, value: object) -> None:
    """A fraction of the prompt in [0, 1)."""
    if not (is_number(value) and 0 <= value < 1):
        raise PolicyError(f"{policy}: {name} is a fraction in [0, 1), got {value!r}")


def require_cosine(policy: str, name: str, value: object) -> None:
    """A threshold on cosines, in (-1, 1]."""
    if not (is_number(value) and -1 < value <= 1):
        raise PolicyError(f"{policy}: {name} is a cosine in (-1, 1], got {value!r}")


def require_positive(policy: str, name: str, value: object, otherwise: str = "") -> None:
    """A finite number above 0; ``otherwise`` ends the sentence with what else is accepted."""
    if not (is_number(value) and 0 < value < math.inf):
        raise PolicyError(f"{policy}: {name} must be positive{otherwise}, got {value!r}")


def require_flag(policy: str, name: str, value: object) -> None:
    """True or False: a quoted ``"false"`` would count as true."""
    if not isinstance(value, bool):
        raise PolicyError(f"{policy}: {name} must be true or false, got {value!r}")


def require_choice(policy: str, name: str, value: object, choices: Collection[object]) -> None:
    """One of ``choices``."""
    if value not in choices:
        raise PolicyError(f"{policy}: {name} must be one of {tuple(choices)}, got {value!r}")


def require_choices(policy: str, values: Mapping[str, object], allowed: Mapping[str, Sequence[str]]) -> None:
    """Every parameter that ``allowed`` names must have one of its values."""
    for name, choices in allowed.items():
        require_choice(policy, name, values[name], choices)


def require_switches(policy: str, values: Mapping[str, object], names: Sequence[str]) -> None:
    """Every parameter in ``names`` must be true or false."""
    for name in names:
        require_flag(policy, name, values[name])


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is an int or a float; True and False are neither here."""
    return isinstance(value, int | float) and not isinstance(value, bool)

"""Checks of a policy's parameters, for ``__post_init__``: each error names the policy, the parameter and what it got."""

from __future__ import annotations

from collections.abc import Collection

from kvmerger.policies.base import PolicyError


def require_count(policy: str, name: str, value: object, at_least: int) -> None:
    """A whole number of at least ``at_least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise PolicyError(f"{policy}: {name} must be a whole number from {at_least} on, got {value!r}")


def require_share(policy: str, name: str, value: object) -> None:
    """A number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise PolicyError(f"{policy}: {name} is a share from 0 to 1, got {value!r}")


def require_flag(policy: str, name: str, value: object) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise PolicyError(f"{policy}: {name} must be true or false, got {value!r}")


def require_choice(policy: str, name: str, value: object, choices: Collection[object]) -> None:
    """One of ``choices``."""
    if value not in choices:
        raise PolicyError(f"{policy}: {name} must be one of {choices}, got {value!r}")

"""A policy's version, by which its rows are found again: its own number, and of code that is not ours the code itself."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmerger.policies.base import Policy

_SOURCE_DIGITS = 12


def version_of(policy: Policy) -> str:
    """Of all its parts; the same wherever the same code was imported. Raises whatever a user's policy raises."""
    return "+".join(map(_version_of_part, policy.parts))


def _version_of_part(policy: Policy) -> str:
    from kvmerger.policies.own_modules import sources_of

    version = str(policy.version)
    # A form may be the user's where the part is ours, and the other way round.
    for made in (policy, policy.form):
        if made is not None and not type(made).__module__.startswith("kvmerger."):
            # Nobody else's tests watch over a user's version number, so the code itself counts too: that which runs, not
            # what was saved since, and what it imports from beside it.
            source = b"".join(sources_of(type(made)))
            version += f"+{hashlib.sha256(source).hexdigest()[:_SOURCE_DIGITS]}"
    return f"{version}+{policy.code_version}" if policy.code_version else version

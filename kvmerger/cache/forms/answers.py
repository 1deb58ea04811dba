"""What a form says of itself, checked: a form may be a user's, and what it does wrong is then one sentence that names it.

Shapes: H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvmerger.cache.forms.base import Form
from kvmerger.cache.forms.layouts import CodeLayout
from kvmerger.cache.forms.registry import name_of
from kvmerger.names import FormError

_MOST_BITS = 32


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of ``form``. Each raises `FormError` for one that has no meaning, and for whatever the form raises."""

    form: Form

    def num_bytes(self, num_slots_H: Sequence[int], head_dim: int) -> int:
        """See `Form.num_bytes`."""
        return self._whole("num_bytes", tuple(num_slots_H), head_dim)

    def most_bytes(self, num_slots: int, num_heads: int, head_dim: int) -> int:
        """See `Form.most_bytes`."""
        return self._whole("most_bytes", num_slots, num_heads, head_dim)

    def bits(self, head_dim: int) -> tuple[float, float]:
        """See `Form.bits`."""
        found = self._asked("bits", head_dim)
        if [_is_number_of_bits(it) for it in _listed(found)] != [True, True]:
            raise FormError(
                f"{name_of(self.form)}: bits({head_dim}) must give two numbers up to {_MOST_BITS}, of a key's and a "
                f"value's numbers, got {found!r:.100}"
            )
        return found

    def layouts(self) -> tuple[CodeLayout, CodeLayout] | None:
        """See `Form.layouts`."""
        found = self._asked("layouts")
        if found is not None and [isinstance(it, CodeLayout) for it in _listed(found)] != [True, True]:
            raise FormError(
                f"{name_of(self.form)}: layouts() must give two of CodeLayout, of keys and values, or None, got "
                f"{found!r:.100}"
            )
        return found

    def check(self, head_dim: int) -> None:
        """See `Form.check`; asks all that is asked before anything is stored."""
        self._asked("check", head_dim)
        # Sizes first: `bits` goes by them unless the form has its own.
        self.num_bytes((1,), head_dim)
        self.most_bytes(1, 1, head_dim)
        self.layouts()
        self.bits(head_dim)

    def of_layer(self, index: int, num_layers: int) -> Form:
        """See `Form.of_layer`."""
        found = self._asked("of_layer", index, num_layers)
        if not isinstance(found, Form):
            raise FormError(
                f"{name_of(self.form)}: of_layer({index}, {num_layers}) must give a Form, got {found!r:.100}"
            )
        return found

    def _whole(self, method: str, *arguments: object) -> int:
        found = self._asked(method, *arguments)
        if type(found) is not int or found < 0:
            remedy = ": divide by // in place of /" if isinstance(found, float) else ""
            raise FormError(
                f"{name_of(self.form)}: {_call(method, arguments)} must give a whole number of bytes, an int, got "
                f"{found!r:.100}{remedy}"
            )
        return found

    def _asked(self, method: str, *arguments: object) -> Any:
        try:
            return getattr(self.form, method)(*arguments)
        except FormError as error:
            raise FormError(f"{name_of(self.form)}: {error}") from error
        # A user's form may raise anything, and whoever reads it must know which form and where.
        except Exception as error:
            raise FormError(
                f"{name_of(self.form)}: its {_call(method, arguments)} raised {type(error).__name__}: {error}"
            ) from error


def _is_number_of_bits(found: object) -> bool:
    # True is a number to Python.
    return isinstance(found, int | float) and not isinstance(found, bool) and 0 < found <= _MOST_BITS


def _call(method: str, arguments: Sequence[object]) -> str:
    return f"{method}({', '.join(map(str, arguments))})"


def _listed(found: object) -> Sequence[object]:
    return found if isinstance(found, tuple | list) else ()

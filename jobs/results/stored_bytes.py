"""How a row says what its cache is stored as and how many bytes that takes, and the shares of the full cache it comes to.

Bytes are measured, never derived from bits or slots: a form whose parts are no smaller than the plain cache shows as that.
"""

from __future__ import annotations

from jobs.results.schema import Row
from kvmerger.generation import TAIL_FORM, Generation


def storage_columns(outcome: Generation) -> Row:
    """The columns on form and bytes of a generation's prefix; bytes read are null where the engine did not count them."""
    is_counted = outcome.full_read_bytes > 0
    return {
        "kv_bytes": outcome.kv_bytes,
        "full_kv_bytes": outcome.full_kv_bytes,
        "tail_bytes": outcome.tail_bytes,
        "form": outcome.form,
        "tail_form": TAIL_FORM,
        "bits_k": outcome.bits_k,
        "bits_v": outcome.bits_v,
        "position_bytes": outcome.position_bytes,
        "full_position_bytes": outcome.full_position_bytes,
        "read_bytes": outcome.read_bytes if is_counted else None,
        "full_read_bytes": outcome.full_read_bytes if is_counted else None,
    }


def held_bytes(row: Row) -> int | None:
    """Bytes of keys and values with all that decoding them takes; positions are left out where the row tells them."""
    return _without_positions(row["kv_bytes"], row["position_bytes"])


def held_share(row: Row) -> float | None:
    """`held_bytes` over the full cache's."""
    # Rows of older versions tell no positions: there they are a part of both sides, and since every form was plain, the
    # share is all but the same.
    full = _without_positions(row["full_kv_bytes"], row["full_position_bytes"])
    return _share(held_bytes(row), full)


def read_share(row: Row) -> float | None:
    """Bytes that attention reads at an answering step over what it reads of the full cache; null in older rows."""
    return _share(row["read_bytes"], row["full_read_bytes"])


def reads_otherwise(row: Row) -> bool:
    """Whether an answering step is known to read other bytes than the row holds."""
    return row["read_bytes"] is not None and row["read_bytes"] != held_bytes(row)


def _without_positions(num_bytes: int | None, position_bytes: int | None) -> int | None:
    return None if num_bytes is None else num_bytes - (position_bytes or 0)


def _share(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None

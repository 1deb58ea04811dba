"""Stored files carry a digest of their own bytes, so that one flipped bit anywhere in them is told and not read.

The digest stands inside the file, where its format has room for it (a parquet footer's metadata, a key of JSON, a comment of
YAML), and is taken of the file with zeros in its own place: file and digest cannot be parted by a copy or a crash. Parquet
pages have checksums too, for readers that are not ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_KEY = "kvmerger_sealed"
_HEAD = "kvmerger-sha256:"
_NUM_DIGITS = 64
_BLANK = _HEAD + "0" * _NUM_DIGITS
_FIRST_LINE = f"# {_KEY}: the last line is a digest of this file; whoever edits it takes out both"


class Seal(Enum):
    """What a file's digest says of it. Files from before there were digests have none."""

    INTACT = "intact"
    BROKEN = "broken"
    ABSENT = "absent"


def seal_of(content: bytes) -> Seal:
    """Whether the bytes are those that were sealed; no bytes are broken ones."""
    # YAML that was cut off in its first line.
    if _FIRST_LINE.encode().startswith(content):
        return Seal.BROKEN
    # The last one: what stands before it may be anybody's text.
    at = content.rfind(_HEAD.encode())
    if at < 0:
        # The key stands apart from the digest: damage in one place cannot make a sealed file look like an older one.
        return Seal.BROKEN if _KEY.encode() in content else Seal.ABSENT
    begin = at + len(_HEAD)
    digits = content[begin : begin + _NUM_DIGITS]
    return Seal.INTACT if digits == _digest(content, begin) else Seal.BROKEN


def sealed_parquet(table: pa.Table) -> bytes:
    """The table as a parquet file. Raises what pyarrow raises for rows that it cannot store."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_KEY: _BLANK})
    return _sealed(sink.getvalue().to_pybytes())


def read_parquet(content: bytes) -> pa.Table:
    """The table in the bytes, whose page checksums are looked at where there are any. Raises what pyarrow raises."""
    table = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read()
    # Text that is no UTF-8 would raise only where it is first looked at.
    table.validate(full=True)
    return table


def sealed_json(value: Mapping[str, Any], indent: int | None = None) -> bytes:
    """An object as JSON, with its digest under a key of its own."""
    return _sealed(json.dumps({**value, _KEY: _BLANK}, indent=indent).encode())


def read_json(content: bytes) -> dict[str, Any]:
    """The object without its digest. Raises ValueError or RecursionError where it is none."""
    value = json.loads(content)
    # Half of a character, as of a path that is no UTF-8: no file and no address could take it.
    if b"\\ud" in content.lower():
        value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    if not isinstance(value, dict):
        raise ValueError("it holds no object")  # noqa: TRY004 - of the file, not of our caller
    value.pop(_KEY, None)
    return value


def sealed_yaml(text: str) -> bytes:
    """YAML with its digest in a comment below it, and a comment above it that says so."""
    # A file that was cut off lacks the last line and has the first.
    return _sealed(f"{_FIRST_LINE}\n{text.rstrip()}\n# {_BLANK}\n".encode())


def read_yaml_text(content: bytes) -> str:
    """The text between both comments. Raises ValueError where it is no text."""
    text = content.decode()
    if "\0" in text:  # what a disk that lost a block reads as; it may have lost both comments
        raise ValueError("it holds zero bytes")
    if not text.startswith(_FIRST_LINE):
        return text
    return text.removeprefix(f"{_FIRST_LINE}\n").rpartition(f"# {_HEAD}")[0]


def _sealed(content: bytes) -> bytes:
    begin = content.rfind(_HEAD.encode()) + len(_HEAD)
    return content[:begin] + _digest(content, begin) + content[begin + _NUM_DIGITS :]


def _digest(content: bytes, begin: int) -> bytes:
    """The digest of `content` with zeros for the digits at `begin`."""
    blank = b"0" * len(content[begin : begin + _NUM_DIGITS])
    return hashlib.sha256(content[:begin] + blank + content[begin + _NUM_DIGITS :]).hexdigest().encode()

"""Addresses as they may be shown, and sqlite files as addresses: passwords stay out, and every path comes back as it went in.

A password may stand before the host, in the query or in the fragment. What is known to be an address is shown without any of
the three; other text is searched for them. Nothing of ours prints, stores or sends an address in another way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

HIDDEN = "…"
"""What stands in the place of a password."""
SQLITE = "sqlite:///"

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"
# Three slashes: a file, without anybody's name before it.
# One slash too, as `Path` leaves of the two.
_HOSTED = r"[A-Za-z][A-Za-z0-9+.-]*:/{1,2}(?!/)"
_PORT = r"\d+(?:[/?#,;.)\]\s'\"]|$)"
_QUOTED = re.compile(
    rf"(?P<quote>[\"'])(?P<head>{_HOSTED})(?:(?!(?P=quote)).)*@(?=(?:(?!(?P=quote)).)*(?P=quote))"
)
# A blank is taken for a part of the password only behind `user:`, since the `@` of snapkv@0.5 may follow an address.
_WITH_BLANKS = re.compile(rf"({_HOSTED})[^\s/?#:@]*:(?!{_PORT})[^\n@]*@(?:\S*@)?")
_PLAIN = re.compile(rf"({_HOSTED})(\S*)@(\S*)")
_NAMED = re.compile(
    r"([?&;#](?:[\w.-]*(?:pass(?:word|wd|phrase)?|pwd|token|secret|credentials?|signature)|"
    r"(?:[\w.-]*[_.-])?(?:sig|auth|key|api_?key|access_?key|account_?key))=)[^&;#\s\"']+",
    re.IGNORECASE,
)
# MLflow's own pages stand behind `#/`.
_FRAGMENT = re.compile(rf"({_HOSTED}[^\s#\"']*#)(?!/)[^\s\"')\]]+")
# A commit stands behind this one's @, and there is no host and no name before it. Nothing may be joined to it.
_DATA_SET = re.compile(
    r"((?<![^\s=\"'(\[{,])hf://datasets/[\w.-]+/[\w.-]+@[0-9a-f]{40}(?:/[\w.+/-]*)?(?=[\s\"')\]}]|[.,:;]*(?:\s|$)))"
)
_WHOLE = re.compile(rf"(?P<key>[\w.\[\]-]+=)?(?P<address>{_SCHEME}.*)", re.DOTALL)


def shown_address(address: str) -> str:
    """The address with `…` for what stands before its host, and for its query and fragment."""
    scheme, slashes, rest = address.partition("://")
    if not slashes or _DATA_SET.fullmatch(address):
        return without_passwords(address)
    if rest.startswith("/"):  # a file's, in whose path a # is a letter
        return without_passwords(address)
    user, at, place = rest.rpartition("@")
    if re.search("[?#]", user):  # the last @ may be one of the query, and nothing tells which
        return f"{scheme}://{HIDDEN}"
    bare = re.split("[?#]", place, maxsplit=1)[0]
    asked = place[len(bare) : len(bare) + 1]
    return f"{scheme}://{HIDDEN if user else ''}{at}{bare}{asked and asked + HIDDEN}"


def without_passwords(text: str) -> str:
    """Any text without the passwords of the addresses in it; rather too much is taken out than too little."""
    if "hf://" in text:
        parts = _DATA_SET.split(text)  # every second is such an address
        return "".join(part if number % 2 else _without(part) for number, part in enumerate(parts))
    return _without(text)


def _without(text: str) -> str:
    if ":/" in text:
        text = _QUOTED.sub(rf"\g<quote>\g<head>{HIDDEN}@", text)
        text = _WITH_BLANKS.sub(rf"\1{HIDDEN}@", text)
        text = _PLAIN.sub(_shown_match, text)
        text = _FRAGMENT.sub(rf"\1{HIDDEN}", text)
    return _NAMED.sub(rf"\1{HIDDEN}", text)


def _shown_match(found: re.Match[str]) -> str:
    head, user, place = found.groups()
    return f"{head}{HIDDEN}" if re.search("[?#]", user) else f"{head}{HIDDEN}@{place}"


def hidden_in(value: Any) -> Any:
    """Settings, words of a command line or anything else as JSON has it, without passwords. Keys stay."""
    if isinstance(value, Mapping):
        return {key: hidden_in(it) for key, it in value.items()}
    if isinstance(value, list | tuple):
        return [hidden_in(it) for it in value]
    if not isinstance(value, str):
        return value
    # In `key=ADDRESS`, as behind --set, all that follows is the address, blanks and quotes too.
    if whole := _WHOLE.fullmatch(value):
        return f"{whole['key'] or ''}{shown_address(whole['address'])}"
    return without_passwords(value)


def has_hidden(address: str) -> bool:
    """Whether something was taken out of the address, so that nobody can be reached with it."""
    return HIDDEN in address


def malformed(address: str) -> str | None:
    """What in the address has to be spelled in another way, without saying its password; None where nothing has."""
    rest = address.partition("://")[2]
    if rest.startswith("/"):
        return None
    if re.search(r"\s", rest):
        return "holds a blank; write it as %20"
    # Whatever reads such an address cuts it in the middle of the password, and shows a half in its error.
    user = rest.rpartition("@")[0]
    if wrong := next((it for it in "@/?#" if it in user), ""):
        return f"holds a {wrong!r} before its last '@'; write that of a name or password as %{ord(wrong):02X}"
    try:
        _ = urlsplit(address).port
    except ValueError:  # its words would be of the password as well
        return "has no number from 0 to 65535 for its port, or brackets that do not close; write HOST:PORT"
    return None


def sqlite_uri(path: Path) -> str:
    """The address of a sqlite file, absolute; what an address would read as something else is escaped."""
    # No more than that, so that addresses of before stay as they were.
    return SQLITE + str(path.absolute()).replace("%", "%25").replace("?", "%3F")


def sqlite_path(uri: str) -> Path:
    """The file that the address of a sqlite database names, as SQLAlchemy reads it; `Path()` where it names none."""
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0]))


def absolute_sqlite(uri: str, path: Path) -> str:
    """The address with `path` for its file, and its own query."""
    query = uri.partition("?")
    return f"{sqlite_uri(path)}{query[1]}{query[2]}"

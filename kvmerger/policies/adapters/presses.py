"""kvpress's presses, found by name and made from plain data: ``kvpress:SnapKVPress``, one inside another, or a user's own.

kvpress is no dependency: nothing of it is imported before a press is asked for, and what its import does to transformers is
undone, since nothing here computes attention with keys that are only masked.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from kvmerger.names import VariantError, nearest, words_of_path
from kvmerger.nested import top_module
from kvmerger.policies import own_modules

PACKAGE = "kvpress"
INSTALL = "pip install --no-deps kvpress==0.5.5 datasets fire"
_INSTALLED = (PACKAGE, "datasets", "fire")
"""What `INSTALL` brings."""
_METHODS = ("compress", "forward_hook", "post_init_from_model")
"""What every press has, and no policy of ours has all of."""
# Set by kvpress itself while it runs, and by nobody where it does not: see `catalogue`.
_SET_AFTERWARDS = {"FinchPress": ("window_size",)}
_DIGITS = 12
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def is_press(found: object) -> bool:
    """Whether an object, or what a class makes, can be called as a press."""
    return all(callable(getattr(found, name, None)) for name in _METHODS)


def is_a(press: object, name: str) -> bool:
    """Whether a press, or a press's class, is kvpress's class ``name`` or a subclass of it."""
    press_class = press if isinstance(press, type) else type(press)
    # By name: kvpress need not be there for a press of another package to be asked.
    return any(it.__name__ == name and top_module(it.__module__) == PACKAGE for it in press_class.__mro__)


def found_at(path: str) -> object | None:
    """The press, or the class of presses, that ``module:Name`` leads to; None where that is something else, or nothing.

    Raises:
        VariantError: kvpress has no such press, or cannot be imported.
    """
    module_name, name = words_of_path(path)
    try:
        module = imported(module_name)
    except ImportError:
        return None  # whoever looks for a policy there says so better
    try:
        found = getattr(module, name, None)
    except Exception:  # noqa: BLE001 - a module's own `__getattr__` may raise anything: told where a policy is looked for
        return None
    if is_press(found):
        return found
    if top_module(path) == PACKAGE:
        known = sorted(
            it for it, press in vars(module).items() if isinstance(press, type) and is_press(press)
        )
        raise VariantError(f"kvpress has no press {name!r}{nearest(name, known)}; docs/kvpress.md lists them")
    return None


def imported(module_name: str) -> Any:
    """A module that may import kvpress, or be kvpress.

    Raises:
        VariantError: it imports kvpress, which is not there or lacks a package.
        ImportError: it cannot be imported for another reason.
    """
    try:
        with _attention_left_alone():
            return own_modules.imported(module_name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _INSTALLED:
            raise VariantError(f"{module_name} needs {missing}, which is not installed: {INSTALL}") from error
        if top_module(module_name) == PACKAGE and missing != PACKAGE:
            raise VariantError(
                f"kvpress needs {missing}, which is not installed: pip install {missing}"
            ) from error
        raise


@contextmanager
def _attention_left_alone() -> Iterator[None]:
    """Inside, kvpress's import wraps every attention function of transformers; here that is taken back."""
    if PACKAGE in sys.modules:
        yield
        return
    # Its wrapper looks for keys that a press has marked to be masked. Here such keys are really dropped.
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = dict(ALL_ATTENTION_FUNCTIONS.items())
    try:
        yield
    finally:
        if PACKAGE in sys.modules:
            for name, function in before.items():
                ALL_ATTENTION_FUNCTIONS[name] = function


def parameters_of(found: object) -> list[str]:
    """What a user may set of a press; nothing of one that is made already."""
    if not isinstance(found, type):
        return []
    names = [it for it in inspect.signature(found).parameters if not it.startswith("_")]
    return [*names, *_set_afterwards(found)]


def _set_afterwards(found: type) -> list[str]:
    return [it for name, those in _SET_AFTERWARDS.items() if is_a(found, name) for it in those]


def text_of(path: str, params: Mapping[str, Any]) -> str:
    """A press as text, equal where it is made alike: what evidence about it is asked for by."""
    return json.dumps([path, params], sort_keys=True)


def path_in(text: str) -> str:
    """The ``module:Name`` of a press's text."""
    path: str = json.loads(text)[0]
    return path


def made(text: str) -> Any:
    """A new press of what `text_of` gives.

    Raises:
        VariantError: no such press, a parameter that it does not have, or values that it cannot take.
    """
    path, params = json.loads(text)
    return _made(path, params)


def _made(path: str, params: Mapping[str, Any]) -> Any:
    found = found_at(path)
    if found is None:
        raise VariantError(f"{path!r} is no press: is its folder on PYTHONPATH?")
    known = parameters_of(found)
    for name in params:
        if name not in known:
            what = f"it has {known}" if isinstance(found, type) else "it is made already: name its class"
            raise VariantError(f"{path} has no parameter {name!r}{nearest(name, known)}; {what}")
    if not isinstance(found, type):
        return fresh(found)
    values = {name: _thawed(value) for name, value in params.items()}
    later = {name: values.pop(name) for name in _set_afterwards(found) if name in values}
    try:
        press = found(**values)
    except VariantError:
        raise
    # Assertions are how kvpress refuses values, often without a word.
    except Exception as error:
        why = str(error) or f"{type(error).__name__} in its __init__ or __post_init__"
        raise VariantError(f"{path} cannot be made with {dict(params)}: {why}") from error
    vars(press).update(later)
    return press


def _thawed(value: Any) -> Any:
    """A parameter as kvpress takes it: presses for mappings with a name."""
    if isinstance(value, list | tuple):
        return [_thawed(it) for it in value]
    if isinstance(value, Mapping) and isinstance(name := value.get("name"), str):
        path = name if ":" in name else f"{PACKAGE}:{name}"
        return _made(path, {key: it for key, it in value.items() if key != "name"})
    return dict(value) if isinstance(value, Mapping) else value


def nested_in(press: Any) -> list[Any]:
    """The presses that a press holds, itself apart; each before those that it holds."""
    held = [
        it for value in vars(press).values() for it in (value if isinstance(value, list | tuple) else [value])
    ]
    inner = [it for it in held if is_press(it) and not isinstance(it, type)]
    return [it for press in inner for it in (press, *nested_in(press))]


def fresh(press: Any) -> Any:
    """A press like this one that shares its tensors and modules, and no state of its own: of dicts, lists and presses."""
    # No deepcopy: presses hold downloaded weights. No __init__ or __setattr__ either, which may do more than set.
    copy = object.__new__(type(press))
    vars(copy).update({name: _fresh_value(value) for name, value in vars(press).items()})
    return copy


def _fresh_value(value: Any) -> Any:
    if is_press(value) and not isinstance(value, type):
        return fresh(value)
    if type(value) is list:
        return [_fresh_value(it) for it in value]
    return value.copy() if isinstance(value, dict) else value


@functools.cache
def code_version(text: str) -> str:
    """kvpress's version and code, the code of presses of others, and how a press that was made elsewhere looks."""
    path, _ = json.loads(text)
    press = made(text)
    classes = {base for it in (press, *nested_in(press)) for base in type(it).__mro__ if is_press(base)}
    parts = [_package_version()] if any(top_module(it.__module__) == PACKAGE for it in classes) else []
    # By file: several classes may be of one.
    sources = {
        inspect.getfile(it): b"".join(own_modules.sources_of(it))
        for it in classes
        if top_module(it.__module__) != PACKAGE
    }
    if sources:
        parts.append(_digest(sources[file] for file in sorted(sources)))
    if not isinstance(found_at(path), type):
        looks = repr(press) if is_dataclass(press) else f"{type(press).__name__}({vars(press)})"
        # Where a function lies in memory is another place in every process.
        parts.append(_ADDRESS.sub("", looks))
    return "+".join(parts)


def _package_version() -> str:
    # Its files too: a checkout has the version of the release before it.
    folder = Path(inspect.getfile(sys.modules[PACKAGE])).parent
    files = sorted(map(str, folder.rglob("*.py")))
    digest = _digest(Path(file).read_bytes() for file in files)
    return f"{PACKAGE}{importlib.metadata.version(PACKAGE)}-{digest}"


def _digest(sources: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source)
    return digest.hexdigest()[:_DIGITS]

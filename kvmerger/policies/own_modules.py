"""A user's module is imported, or refused in a sentence that names the line at fault and the remedy.

Its code runs here and may raise or end whatever it likes: nothing of that is a bug of ours, and none of it ends the process.
What is run is what the file holds, and `sources_of` tells those bytes however often the file is saved afterwards.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from kvmerger.names import VariantError, nearest, words_of_path

_FILE_ENDING = ".py"
_sources: dict[str, bytes] = {}
"""Module → the bytes of its file when it was imported."""


def imported(module_name: str) -> ModuleType:
    """The module.

    Raises:
        ImportError: it, or what it imports, is not there.
        VariantError: it raised anything else, with the line and what it raised.
    """
    try:
        with _read_once():
            return importlib.import_module(module_name)
    except (ImportError, KeyboardInterrupt):
        raise
    # Not Exception: a module that calls sys.exit would choose the exit code of a sweep.
    except BaseException as error:
        raise VariantError(
            f"{module_name!r} cannot be imported: {_line_at_fault(error)}{_named(error)}; mend it there"
        ) from error


def attribute_at(path: str, kind: str) -> Any:
    """What a ``module:Name`` path names; ``kind`` says what it should be.

    Raises:
        VariantError: it cannot be imported, with the import's own error; or there is no such path.
    """
    module_name, name = words_of_path(path)
    try:
        return getattr(imported(module_name), name)
    except VariantError:
        raise
    # A module may make its attributes when they are asked for, and raise what it likes.
    except Exception as error:
        raise VariantError(
            f"{kind} {path!r} cannot be imported: {_why_not(error, module_name, name)}"
        ) from error


def sources_of(kind: type) -> list[bytes]:
    """The file of a class's module as it was when it was imported, then those of the user's that it imports, by name.

    What is installed, or imported by another word than `import` or not until a function is called, is not among them. Raises
    what looking for the class's own file raises.
    """
    name = kind.__module__
    if name not in _sources:  # somebody else imported it, and so long ago nobody looked
        _sources[name] = Path(inspect.getfile(kind)).read_bytes()
    found = {name}
    waiting = [name] if _is_users(name) else []
    while waiting:
        # Not all that was imported meanwhile: another policy's helpers would come and go with it. Nor only what lies in the
        # same folder: a cluster's workers have each file in one of its own.
        more = {it for it in _imported_by(waiting.pop()) if it not in found and _is_users(it)}
        found |= more
        waiting += more
    return [_sources[name], *(_source(it) for it in sorted(found - {name}))]


def _source(name: str) -> bytes:
    if name not in _sources:
        _sources[name] = Path(str(sys.modules[name].__file__)).read_bytes()
    return _sources[name]


def _imported_by(name: str) -> set[str]:
    """Modules that are imported and that the module's statements name; what is no module among them does no harm."""
    package = getattr(sys.modules.get(name), "__package__", None) or ""
    asked: set[str] = set()
    for node in ast.walk(ast.parse(_source(name))):
        if isinstance(node, ast.Import):
            asked |= {it.name for it in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: 1 - node.level or None], *filter(None, [base])])
            asked |= {base, *(f"{base}.{it.name}" for it in node.names)}
    parents = {
        ".".join(parts[:end]) for it in asked for parts in [it.split(".")] for end in range(1, len(parts))
    }
    return {it for it in asked | parents if it in sys.modules}


def _is_users(name: str) -> bool:
    """Whether a module is a file of source that is neither installed nor ours."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if not file or not file.endswith(_FILE_ENDING):
        return False
    return not _is_ours(name) and not _is_installed(file)


class _ReadOnce(SourceFileLoader):
    """Runs the very bytes that it notes."""

    def get_code(self, fullname: str) -> CodeType:
        # Python's own takes compiled code for up to date that is as old, to the second, and as long as the file.
        source = self.get_data(self.path)
        _sources[fullname] = source
        return self.source_to_code(source, self.path)


class _OwnFinder:
    """Finds what Python's own finder does, and has users' files read once."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None or type(spec.loader) is not SourceFileLoader:
            return None
        if not _is_ours(fullname) and not _is_installed(spec.origin):
            spec.loader = _ReadOnce(fullname, spec.origin)
        return spec


@contextmanager
def _read_once() -> Iterator[None]:
    # Before Python's own and behind all others: what is built in, frozen or installed for editing is found as ever.
    at = next((index for index, it in enumerate(sys.meta_path) if it is PathFinder), len(sys.meta_path))
    finder = _OwnFinder()
    sys.meta_path.insert(at, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] == __name__.partition(".")[0]


def _is_installed(origin: str) -> bool:
    return any(Path(origin).is_relative_to(place) for place in sysconfig.get_paths().values())


def _why_not(error: Exception, module_name: str, name: str) -> str:
    """What is missing, and where: the module itself, the class in it, or what the module's own lines ask for."""
    module = sys.modules.get(module_name)
    if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
        return f"{error}; {_how_to_be_found(module_name)}"
    if isinstance(error, AttributeError) and module is not None and error.obj is module:
        return f"{error}{nearest(name, vars(module))}{_shadowed(module)}"
    if isinstance(error, ModuleNotFoundError) and (line := _line_at_fault(error)):
        return f"{line.removesuffix(': ')}, imports {error.name!r}, which is not installed"
    line = _line_at_fault(error)
    return f"{line}{error}" if isinstance(error, ImportError | AttributeError) else f"{line}{_named(error)}"


def _line_at_fault(error: BaseException) -> str:
    """ "my_policies.py, line 3: " of the line that raised; "" where none of the module's own did."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno or 1}: "
    # The machinery of imports stands between ours and the module's lines.
    own = [
        it
        for it in traceback.extract_tb(error.__traceback__)
        if not it.filename.startswith("<frozen ") and it.filename not in (importlib.__file__, __file__)
    ]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}: " if own else ""


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _how_to_be_found(module_name: str) -> str:
    file = f"{module_name}{_FILE_ENDING}"
    if "." in module_name and any((Path(place) / file).is_file() for place in sys.path):
        return f"{file!r} has a dot in its name, which stands for a folder: rename it"
    return "is its folder on PYTHONPATH?"


def _shadowed(module: ModuleType) -> str:
    """A word on a file of the module's name that was not imported, since another is found first."""
    found, file = getattr(module, "__file__", None), f"{module.__name__}{_FILE_ENDING}"
    for place in sys.path:
        other = (Path(place) / file).absolute()
        if other.is_file() and (found is None or not other.samefile(found)):
            return f". That is {found or 'a part of Python'}, and {other} is never read: rename your file"
    return ""

"""What `kernels.dispatch` chooses by name: every such function has a launcher that can be called as its reference is."""

import ast
import inspect
from pathlib import Path

import pytest
import torch

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels import dispatch

CHOSEN = {name: function for name, function in vars(dispatch).items() if hasattr(function, "__wrapped__")}
del CHOSEN["has_triton"]  # wrapped by its cache


@pytest.mark.parametrize("name", CHOSEN)
def test_the_launcher_takes_its_references_arguments(name: str, repo_root: Path) -> None:
    """Read, not imported: triton may not be here, and mypy does not see a module that is found by its name."""
    reference = CHOSEN[name].__wrapped__
    module = reference.__module__.replace(".reference.", ".triton.")
    source = (repo_root / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    (launcher,) = [node for node in ast.parse(source).body if getattr(node, "name", "") == name]
    assert isinstance(launcher, ast.FunctionDef)
    parameters = list(inspect.signature(reference).parameters.values())
    names = [argument.arg for argument in launcher.args.args]
    assert [_bare(it) for it in names[: len(parameters)]] == [_bare(it.name) for it in parameters]
    num_required = len(names) - len(launcher.args.defaults)
    assert num_required == sum(it.default is inspect.Parameter.empty for it in parameters)


def _bare(name: str) -> str:
    """A parameter's name without the dimensions, of which a launcher may take fewer."""
    stem, _, suffix = name.rpartition("_")
    return stem if suffix.isupper() else name


def test_what_is_chosen_is_named_as_it_is_imported() -> None:
    assert {name: function.__name__ for name, function in CHOSEN.items()} == {name: name for name in CHOSEN}
    assert len(CHOSEN) == 9


def test_the_cpu_gets_the_reference_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    x_FD = torch.ones(4, 16)
    first_arguments = {
        "ragged_attention": x_FD,
        "merged_slots": LayerCache.from_dense(x_FD[None], x_FD[None]),
    }
    for name, function in CHOSEN.items():
        module = inspect.getmodule(function.__wrapped__)
        monkeypatch.setattr(module, name, lambda *given: given)
        first = first_arguments.get(name, x_FD)
        assert function(first, "others") == (first, "others")

"""The registry of benchmarks: a class in a module under `evaluators/benchmarks` registers itself by name; no list is kept."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import TypeVar

from evaluators.benchmark import Benchmark, TaskInfo, TaskSpec, UnknownNameError
from evaluators.hints import nearest_name_hint
from evaluators.item import BenchmarkItem
from evaluators.tokenizer import Tokenizer

BenchmarkT = TypeVar("BenchmarkT", bound=type[Benchmark])

_benchmarks: dict[str, type[Benchmark]] = {}


def register_benchmark(name: str) -> Callable[[BenchmarkT], BenchmarkT]:
    """Register a benchmark class, which takes no arguments, under `name`; returns the class unchanged."""

    def add(benchmark: BenchmarkT) -> BenchmarkT:
        assert name not in _benchmarks, f"two benchmarks are called {name!r}"
        _benchmarks[name] = benchmark
        return benchmark

    return add


def list_tasks() -> list[str]:
    """Every task as "<benchmark>/<task>", sorted."""
    # Here and not at the top: the benchmarks import this module to register themselves.
    import_shipped("evaluators.benchmarks")
    return sorted(f"{name}/{task}" for name, benchmark in _benchmarks.items() for task in benchmark().tasks())


def describe_tasks() -> list[TaskInfo]:
    """What there is to know about every task, sorted by name; reads no data."""
    import_shipped("evaluators.benchmarks")
    infos = (benchmark().describe(task) for benchmark in _benchmarks.values() for task in benchmark().tasks())
    return sorted(infos, key=lambda info: info.name)


def load_items(spec: TaskSpec, tokenizer: Tokenizer) -> list[BenchmarkItem]:
    """The items of the task `spec.name`, at least one; `BenchmarkError` for what a user can cause.

    Raises UnknownNameError, with the nearest name, for a task that does not exist.
    """
    known = list_tasks()
    if spec.name not in known:
        raise UnknownNameError(f"There is no task {spec.name!r}. {nearest_name_hint(spec.name, known)}")
    items = _benchmarks[spec.benchmark]().load_items(spec, tokenizer)
    assert items and len({item.item_id for item in items}) == len(items), f"{spec.name}: ids are not unique"
    return items


@functools.cache
def import_shipped(package: str) -> None:
    """Import every module under `package`: adding a file there is enough to register what it defines."""
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(module.name)

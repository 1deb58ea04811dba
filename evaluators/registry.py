"""A benchmark or metric exists by being registered, and is found by its name alone."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from evaluators.benchmark import Benchmark, TaskInfo, TaskSpec, UnknownNameError
from evaluators.hints import nearest_name_hint
from evaluators.item import BenchmarkItem
from evaluators.tokenizer import Tokenizer


class Metric(Protocol):
    """Scores a prediction, 0 to 1, against at least one answer; pure, and any text is a valid prediction."""

    def __call__(self, prediction: str, answers: Sequence[str], all_classes: Sequence[str]) -> float: ...


class MetricError(ValueError):
    """A metric was asked to score against nothing."""


BenchmarkT = TypeVar("BenchmarkT", bound=type[Benchmark])
MetricT = TypeVar("MetricT", bound=Metric)

_benchmarks: dict[str, type[Benchmark]] = {}
_metrics: dict[str, Metric] = {}
_scorer_details: dict[str, str] = {}


def register_benchmark(name: str) -> Callable[[BenchmarkT], BenchmarkT]:
    """Register a benchmark class, which takes no arguments, under `name`; returns the class unchanged."""

    def add(benchmark: BenchmarkT) -> BenchmarkT:
        assert name not in _benchmarks, f"two benchmarks are called {name!r}"
        _benchmarks[name] = benchmark
        return benchmark

    return add


def register_metric(name: str, *, details: str = "") -> Callable[[MetricT], MetricT]:
    """Register a metric function under `name`; returns the function unchanged.

    `details` says what the name leaves open and scores depend on, such as a backend.
    """

    def add(metric: MetricT) -> MetricT:
        assert name not in _metrics, f"two metrics are called {name!r}"
        _metrics[name] = metric
        _scorer_details[name] = details
        return metric

    return add


def list_tasks() -> list[str]:
    """Every task as "<benchmark>/<task>", sorted."""
    _import_shipped()
    return sorted(f"{name}/{task}" for name, benchmark in _benchmarks.items() for task in benchmark().tasks())


def describe_tasks() -> list[TaskInfo]:
    """What there is to know about every task, sorted by name; reads no data."""
    _import_shipped()
    infos = (benchmark().describe(task) for benchmark in _benchmarks.values() for task in benchmark().tasks())
    return sorted(infos, key=lambda info: info.name)


def list_metrics() -> list[str]:
    """Every metric's name, sorted."""
    _import_shipped()
    return sorted(_metrics)


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


def scorer_details(name: str) -> str:
    """What a metric's name leaves open and its scores depend on ("difflib" for code_sim); "" for most."""
    return _scorer_details[_known_metric(name)]


def score(name: str, prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """Score one prediction, 0 to 1, with the metric `name`.

    Raises UnknownNameError for an unknown metric and MetricError without answers: not scored is not 0.
    """
    metric = _metrics[_known_metric(name)]
    if not answers:
        raise MetricError(
            f"{name}: there is no answer to score against; store a null score with this reason."
        )
    return metric(prediction, answers, all_classes)


def _known_metric(name: str) -> str:
    known = list_metrics()
    if name not in known:
        raise UnknownNameError(f"There is no metric {name!r}. {nearest_name_hint(name, known)}")
    return name


@functools.cache
def _import_shipped() -> None:
    """Import every module of the two folders: adding a file is enough to add a metric or benchmark."""
    for folder in ("evaluators.benchmarks", "evaluators.metrics"):
        for module in pkgutil.iter_modules(importlib.import_module(folder).__path__, f"{folder}."):
            importlib.import_module(module.name)

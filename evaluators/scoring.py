"""The registry of metrics, and scoring by name. A prediction without gold answers has no score, which is not a score of 0."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple, Protocol, TypeVar

from evaluators.benchmark import UnknownNameError
from evaluators.hints import nearest_name_hint
from evaluators.registry import import_shipped


class Metric(Protocol):
    """Scores a prediction, 0 to 1, against at least one answer; pure, and any text is a valid prediction."""

    def __call__(self, prediction: str, answers: Sequence[str], all_classes: Sequence[str]) -> float: ...


class PartsMetric(Protocol):
    """As `Metric`, but gives several named numbers, always of the same names, each 0 to 1."""

    def __call__(
        self, prediction: str, answers: Sequence[str], all_classes: Sequence[str]
    ) -> dict[str, float]: ...


_BEGINNING_CHARS = (
    300  # of an answer: enough for any metric that counts parts, and scored in a millisecond or two
)

Combine = Callable[[Mapping[str, float]], float]
"""Makes one number, 0 to 1, of a metric's parts: of an item's, or of their means over a corpus."""


@dataclass(frozen=True, slots=True)
class ItemScore:
    """One prediction's score, 0 to 1, and the parts it was made of (none, for most metrics).

    `note` says what was cut before scoring; "" when nothing was.
    """

    value: float
    parts: Mapping[str, float]
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Scorer:
    """A registered metric: either a plain one, or one of parts with what combines them."""

    metric: Metric | None = None
    parts_metric: PartsMetric | None = None
    combine: Combine | None = None
    is_mean: bool = False
    details: str = ""
    package: str = ""
    uses_classes: bool = False
    max_chars: int | None = None


class MetricInfo(NamedTuple):
    """A metric for a list: what it gives, and whether a row needs `all_classes` for it."""

    name: str
    about: str
    uses_classes: bool


class MetricError(ValueError):
    """A metric was asked to score against nothing."""


MetricT = TypeVar("MetricT", bound=Metric)
PartsMetricT = TypeVar("PartsMetricT", bound=PartsMetric)

_scorers: dict[str, _Scorer] = {}


def register_metric(
    name: str,
    *,
    details: str = "",
    package: str = "",
    uses_classes: bool = False,
    max_chars: int | None = None,
) -> Callable[[MetricT], MetricT]:
    """Register a metric function under `name`; returns the function unchanged.

    `details` says what the name leaves open and scores depend on, such as a backend; `package` is the library whose
    version they depend on. `uses_classes`: the metric reads `all_classes`. `max_chars`: it takes more time than n log n, so
    it is given the first so many characters of a text, and the row says so.
    """

    def add(metric: MetricT) -> MetricT:
        scorer = _Scorer(
            metric, details=details, package=package, uses_classes=uses_classes, max_chars=max_chars
        )
        _add_scorer(name, scorer)
        return metric

    return add


def register_metric_of_parts(
    name: str,
    combine: Combine,
    *,
    is_mean: bool = False,
    details: str = "",
    package: str = "",
    max_chars: int | None = None,
) -> Callable[[PartsMetricT], PartsMetricT]:
    """Register a metric that gives several numbers of an item; returns the function unchanged.

    An item's score is `combine` of its parts, and the published number `combine` of the parts' means (`corpus_score`), unless
    it `is_mean`: of one part, and so the mean over items.
    """

    def add(metric: PartsMetricT) -> PartsMetricT:
        scorer = _Scorer(
            parts_metric=metric,
            combine=combine,
            is_mean=is_mean,
            details=details,
            package=package,
            max_chars=max_chars,
        )
        _add_scorer(name, scorer)
        return metric

    return add


def _add_scorer(name: str, scorer: _Scorer) -> None:
    assert name not in _scorers, f"two metrics are called {name!r}"
    _scorers[name] = scorer


def list_metrics() -> list[str]:
    """Every metric's name, sorted."""
    # Here and not at the top: the metrics import this module to register themselves.
    import_shipped("evaluators.metrics")
    return sorted(_scorers)


def describe_metrics() -> list[MetricInfo]:
    """What `ls metrics` says of each, sorted by name."""
    found = []
    for name in list_metrics():
        scorer = _scorers[name]
        doc = (scorer.metric or scorer.parts_metric).__doc__ or ""
        found.append(MetricInfo(name, " ".join(doc.partition("\n\n")[0].split()), scorer.uses_classes))
    return found


def scorer_details(name: str) -> str:
    """What a metric's name leaves open and its scores depend on ("difflib" for code_sim); "" for most."""
    scorer = _scorers[_known_metric(name)]
    version = f"{scorer.package} {_version_of(scorer.package)}" if scorer.package else ""
    return ", ".join(part for part in (version, scorer.details) if part)


def scorer_label(name: str) -> str:
    """The metric's name with its `scorer_details`, as "code_sim (difflib)"."""
    details = scorer_details(name)
    return f"{name} ({details})" if details else name


def uses_classes(name: str) -> bool:
    """Whether a metric reads the item's class names."""
    return _scorers[_known_metric(name)].uses_classes


def score(name: str, prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """Score one prediction, 0 to 1, with the metric `name`.

    Raises UnknownNameError for an unknown metric and MetricError without answers: not scored is not 0.
    """
    return score_item(name, prediction, answers, all_classes).value


def score_item(
    name: str, prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()
) -> ItemScore:
    """As `score`, with the parts that `corpus_score` wants and a note where texts were cut first."""
    scorer = _scorers[_known_metric(name)]
    if not answers:
        raise MetricError(
            f"{name}: there is no answer to score against; store a null score with this reason."
        )
    prediction, answers, note = _cut(name, prediction, answers, scorer.max_chars)
    if scorer.metric is not None:
        return ItemScore(scorer.metric(prediction, answers, all_classes), {}, note)
    assert scorer.parts_metric is not None and scorer.combine is not None
    parts = scorer.parts_metric(prediction, answers, all_classes)
    return ItemScore(scorer.combine(parts), parts, note)


def _cut(
    name: str, prediction: str, answers: Sequence[str], max_chars: int | None
) -> tuple[str, Sequence[str], str]:
    """The beginnings that the metric gets, and a sentence that says what was cut."""
    longest = max(len(prediction), *map(len, answers))
    if max_chars is None or longest <= max_chars:
        return prediction, answers, ""
    note = f"{name} took the first {max_chars:,} characters of each text; the longest has {longest:,}"
    return prediction[:max_chars], [answer[:max_chars] for answer in answers], note


def can_score(name: str, answer: str, all_classes: Sequence[str] = ()) -> bool:
    """Whether the metric gives points to a prediction that says just this answer, or begins as it does.

    Where not, the answer can never be right: qa_f1 deletes "A" as an article, exp_similarity looks for a percentage.
    Raises UnknownNameError for an unknown metric.
    """
    # The beginning first: it is done in a moment, and a sentence of a thousand words makes ROUGE's recursion fail.
    texts = dict.fromkeys((answer[:_BEGINNING_CHARS], answer))
    return any(score(name, text, [answer], all_classes) > 0 for text in texts)


def corpus_score(name: str, parts_of_items: Sequence[Mapping[str, float]]) -> float | None:
    """The published number, 0 to 1, of a metric of parts; None where the published number is the mean over items.

    Raises UnknownNameError for an unknown metric and MetricError without items.
    """
    scorer = _scorers[_known_metric(name)]
    combine = scorer.combine
    if combine is None or scorer.is_mean:
        return None
    if not parts_of_items:
        raise MetricError(f"{name}: there is no item to make a corpus score of.")
    # Not the mean of the items' scores: combining the parts' means gives another number, and that one is published.
    return combine({part: fmean(parts[part] for parts in parts_of_items) for part in parts_of_items[0]})


@functools.cache  # importlib.metadata reads the disk each time
def _version_of(package: str) -> str:
    return importlib.metadata.version(package)


def _known_metric(name: str) -> str:
    known = list_metrics()
    if name not in known:
        raise UnknownNameError(f"There is no metric {name!r}. {nearest_name_hint(name, known)}")
    return name

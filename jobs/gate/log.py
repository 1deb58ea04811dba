"""A night's verdict in ten lines: what got worse, by how much, on which items, and what could not be decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.gate.check import Check
from jobs.gate.judge import NightOutcome, NightVerdict
from jobs.reporting.notation import signed

MAX_LINES = 10
_NUM_FAILED_SHOWN = 2  # two lines each: with the others' line, a head and what is told, they make ten
_NUM_NAMED = 4
_MAX_REASONS = 3
_MAX_CHARS = 200
OUTCOME_WORDS: dict[NightOutcome, str] = {
    "pass": "PASS",
    "fail": "REGRESSION",
    "inconclusive": "INCONCLUSIVE",
    "too many failed": "TOO MANY FAILED ITEMS",
}


@dataclass(frozen=True, slots=True)
class NightNames:
    """The names in the log lines: the night, the baseline and where it was found, and the file with all details."""

    night: str
    baseline: str
    origin: str
    details: str


def log_lines(verdict: NightVerdict, names: NightNames) -> list[str]:
    """The lines, the verdict first, at most ten."""
    lines = [
        _head(verdict, names),
        *_failed_items(verdict),
        *_worse(verdict.having("fail")),
        *_reasons("open", verdict.having("inconclusive")),
        *_of_no_quality(verdict),
        *_reasons("not measured", verdict.having("not measured")),
        *_told(verdict, names),
    ]
    return [_cut(line) for line in lines[: MAX_LINES - 1]] + [f"details  {names.details}"]


def change(check: Check, loss: float) -> str:
    """A loss as the change of its metric, with its unit."""
    return f"{signed_change(check, loss)} {check.unit}"


def signed_change(check: Check, loss: float) -> str:
    """The same without its unit."""
    # A lost score is a fall; lost nats, seconds and bytes are a rise.
    # A margin of NLL is hundredths of a nat, so its losses need significant digits rather than decimals.
    layout = "{:+.3g}" if check.unit == "nats" else "{:+.1f}"
    return signed(-loss if check.unit == "points" else loss, layout)


def where(check: Check) -> str:
    """The check's task, or that it is the mean over all tasks."""
    return check.task or "mean over tasks"


def _head(verdict: NightVerdict, names: NightNames) -> str:
    measured = [check for check in verdict.checks if check.verdict != "not measured"]
    counts = [
        f"{len(verdict.having(kind))} {word}"
        for kind, word in (("fail", "worse"), ("pass", "passed"), ("inconclusive", "open"))
    ]
    word = OUTCOME_WORDS[verdict.outcome]
    return f"{word}  {names.night} against {names.baseline}: of {len(measured)} checks {', '.join(counts)}"


def _failed_items(verdict: NightVerdict) -> Iterator[str]:
    failed = verdict.failed
    if failed.missing:
        named = ", ".join(f"{label} on {item}" for item, label in failed.missing[:_NUM_NAMED])
        yield (
            f"failed   {len(failed.missing)} of {failed.num_planned} items x variants ({failed.percent:.1f} %): {named}"
        )


def _worse(checks: Sequence[Check]) -> Iterator[str]:
    """The largest losses for their margin, each variant's first before any other's second."""
    # In multiples of the margin, since points, nats and percents cannot be sorted together.
    ordered = sorted(checks, key=_excess, reverse=True)
    labels = list(dict.fromkeys(check.label for check in ordered))
    ranks: dict[str, int] = dict.fromkeys(labels, 0)
    places = []
    for check in ordered:
        places.append((ranks[check.label], -_excess(check)))
        ranks[check.label] += 1
    ordered = [check for _, check in sorted(zip(places, ordered, strict=True), key=lambda pair: pair[0])]
    for check in ordered[:_NUM_FAILED_SHOWN]:
        yield f"worse    {check.label} on {where(check)}: {check.metric} {_size(check)}"
        yield f"         {_items(check)}"
    others = ordered[_NUM_FAILED_SHOWN:]
    if others:
        named = "; ".join(f"{it.label} on {where(it)} {it.metric} {_loss(it)}" for it in others[:_NUM_NAMED])
        more = f"; and {len(others) - _NUM_NAMED} more" if len(others) > _NUM_NAMED else ""
        yield f"worse    {named}{more}"


def _excess(check: Check) -> float:
    return (check.loss or 0.0) / check.margin


def _loss(check: Check) -> str:
    return "?" if check.loss is None else change(check, check.loss)


def _size(check: Check) -> str:
    sure = "" if check.least_loss is None else f"at least {change(check, check.least_loss)}, "
    noise = "" if check.noise is None else f", A/A noise {check.noise:.2g}"
    return f"{_loss(check)} ({sure}margin {check.margin:g} {check.unit}{noise})"


def _items(check: Check) -> str:
    worst = ", ".join(f"{it.item_id} {change(check, it.loss)}" for it in check.worst_items)
    return f"{check.num_worse} of {check.num_items} items are worse, most: {worst}"


def _reasons(head: str, checks: Sequence[Check]) -> Iterator[str]:
    """Checks that share a reason are told together."""
    by_reason: dict[str, list[Check]] = {}
    for check in checks:
        by_reason.setdefault(check.reason, []).append(check)
    for reason, group in list(by_reason.items())[:_MAX_REASONS] if head == "open" else []:
        yield f"open     {len(group)}: {reason} ({_named(group)})"
    if head != "open" and by_reason:
        told = "; ".join(
            f"{', '.join(dict.fromkeys(check.metric for check in group))}: {reason}"
            for reason, group in by_reason.items()
        )
        yield f"no data  {told}"


def _of_no_quality(verdict: NightVerdict) -> Iterator[str]:
    if verdict.outcome == "inconclusive" and not verdict.having("inconclusive"):
        yield "open     no check of quality could be measured, so nothing is said of the answers"


def _named(checks: Sequence[Check]) -> str:
    names = [f"{check.label} {where(check)} {check.metric}" for check in checks]
    more = f", and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def _told(verdict: NightVerdict, names: NightNames) -> Iterator[str]:
    told = [*verdict.skipped, *verdict.told]
    yield f"against  {names.origin}{'; ' if told else ''}{'; '.join(told)}"


def _cut(line: str) -> str:
    """The line, or as much of it as fits."""
    if len(line) <= _MAX_CHARS:
        return line
    # Between words, since a number that lost its end is another number; a single long word is cut all the same.
    whole_words = line[: _MAX_CHARS - 1].rpartition(" ")[0]
    return f"{whole_words} …" if 2 * len(whole_words) > _MAX_CHARS else f"{line[: _MAX_CHARS - 1]}…"

"""The whole report in a few sentences a setting: what is certified, what is worse, or how many contexts that would take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from evaluators.statistics.intervals import MIN_CLUSTERS
from jobs.analysis.choosing.certificates import Certificates
from jobs.analysis.differences import Difference
from jobs.analysis.folder.findings import Findings
from jobs.analysis.summary import MacroMean, ResultSummary, TaskSummary, policies_of
from jobs.reporting.choice_words import certificate_sentence
from jobs.reporting.notation import counted, percent, shown_label, why_no_scale
from kvmerger.variants import FULL, REFERENCE_LABELS

_NLL = "answer_nll"
_MAX_NAMED_TASKS = 3


class VerdictCounts(NamedTuple):
    """How many variants predict the right answer worse than the full cache on some task, only better, or as far as is known
    alike."""

    worse: int
    better: int
    unclear: int


def headline_of(findings: Findings) -> list[str]:
    """How every report of the findings begins or ends: a text per setting, the cheapest certified variant first."""
    return headline(findings.summary, findings.differences, findings.certificates)


def headline(
    summary: ResultSummary, differences: Sequence[Difference], certificates: Certificates | None = None
) -> list[str]:
    """One text per setting, or one on why there is none."""
    if summary.num_ok + summary.num_truncated == 0:
        return [_nothing(summary)]
    certified = (
        {it.setting: f"{certificate_sentence(certificates, it)} " for it in certificates.groups}
        if certificates
        else {}
    )
    return [
        certified.get(setting, "")
        + _sentence(
            [it for it in summary.tasks if it.setting == setting],
            summary.macro_means(setting),
            [it for it in differences if it.setting == setting],
        )
        for setting in summary.settings()
    ]


def _nothing(summary: ResultSummary) -> str:
    if summary.num_failed:
        return f"Nothing can be said: all {summary.num_failed} rows that ran have failed."
    return f"Nothing can be said yet: none of {summary.num_planned} planned rows has run."


def _sentence(
    tasks: Sequence[TaskSummary], means: Sequence[MacroMean], differences: Sequence[Difference]
) -> str:
    if not _num_policies(tasks):
        return "Only the reference rows ran, so there is no policy to compare."
    fewest = _fewest_contexts(tasks)
    with_scale = [task for task in tasks if task.has_scale]
    facts = (_range_of_recovered(means) if len(tasks) > 1 else "") or _range_of_nll(with_scale or tasks)
    if not with_scale and fewest >= MIN_CLUSTERS:
        return f"{_no_verdict(tasks)} {facts}".strip()
    counts = verdict_counts(tasks, differences)
    if counts is None:
        contexts = counted(fewest, "context")
        where = contexts if len(tasks) == 1 else f"as few as {contexts} in a task"
        return f"Too few to rank policies by ({where}; {MIN_CLUSTERS} are needed). {facts}".strip()
    if fewest < MIN_CLUSTERS:
        return f"{_verdicts_on_mean(counts, differences, fewest)} {facts}".strip()
    return f"{_verdicts(counts, tasks)} {facts}".strip()


def verdict_counts(tasks: Sequence[TaskSummary], differences: Sequence[Difference]) -> VerdictCounts | None:
    """What the sentence counts of one setting: on its tasks, on their mean where a task has too few contexts, else None."""
    num_policies = _num_policies(tasks)
    if not num_policies or not any(it.has_scale for it in tasks):
        return None
    # Where tasks speak, means over them (task None) are left out: they repeat what the tasks have said.
    judged = [it for it in differences if it.metric.column == _NLL and it.task is not None]
    if _fewest_contexts(tasks) < MIN_CLUSTERS:
        judged = _on_mean(differences)
        if not judged:
            return None
    worse = {it.label for it in judged if it.verdict == "worse"}
    # A variant may be better on one task and worse on another; the loss is what a reader must not miss.
    better = {it.label for it in judged if it.verdict == "better"} - worse
    return VerdictCounts(len(worse), len(better), num_policies - len(worse) - len(better))


def _on_mean(differences: Sequence[Difference]) -> list[Difference]:
    """The differences of the mean over tasks that have enough contexts for a verdict."""
    return [
        it
        for it in differences
        if it.metric.column == _NLL
        and it.task is None
        and it.paired is not None
        and not it.paired.interval.is_too_few
    ]


def _num_policies(tasks: Sequence[TaskSummary]) -> int:
    return len({variant.label for task in tasks for variant in policies_of(task)})


def _fewest_contexts(tasks: Sequence[TaskSummary]) -> int:
    # The task with the fewest contexts decides: the sentence speaks of all of them.
    return min((task.num_clusters for task in tasks), default=0)


def _no_verdict(tasks: Sequence[TaskSummary]) -> str:
    """That no task could tell one policy from another, and why."""
    reasons = list(dict.fromkeys(map(why_no_scale, tasks)))
    where = "" if len(tasks) == 1 else f" on any of {len(tasks)} tasks"
    return f"No verdict is possible{where}: {' or '.join(reasons)}, so these items do not test the cache."


def _verdicts(counts: VerdictCounts, tasks: Sequence[TaskSummary]) -> str:
    """Counts of variants by what answer NLL says of them, against the full cache, on the tasks that can say anything."""
    return _counted(counts, f"on some task{_left_out(tasks)}", "measurably better and nowhere worse")


def _verdicts_on_mean(counts: VerdictCounts, differences: Sequence[Difference], fewest: int) -> str:
    """The counts of the mean over tasks, each of which alone may have too few contexts."""
    judged = _on_mean(differences)[0]
    assert judged.paired is not None
    where = f"on the mean of {len(judged.tasks)} tasks ({counted(judged.paired.interval.num_clusters, 'context')})"
    alone = f"A task alone has as few as {counted(fewest, 'context')}, too few for a verdict ({MIN_CLUSTERS} are needed)."
    return f"{_counted(counts, where, 'measurably better')} {alone}"


def _counted(counts: VerdictCounts, where: str, better: str) -> str:
    parts = [
        f"{counts.worse} of {sum(counts)} variants predict the right answer measurably worse than the full cache {where}"
    ]
    if counts.better:
        parts.append(f"{counts.better} {better}")
    if counts.unclear:
        parts.append(f"for {counts.unclear} no difference is proven (which is not to say that there is none)")
    return "; ".join(parts) + "."


def _left_out(tasks: Sequence[TaskSummary]) -> str:
    """Of how many tasks that is, and which others can carry no verdict; "" where all do."""
    without = [task for task in tasks if not task.has_scale]
    if not without:
        return ""
    named = "; ".join(f"{task.task}: {why_no_scale(task)}" for task in without[:_MAX_NAMED_TASKS])
    more = f"; and {len(without) - _MAX_NAMED_TASKS} more" if len(without) > _MAX_NAMED_TASKS else ""
    return f" of the {len(tasks) - len(without)} out of {len(tasks)} that test the cache (not {named}{more})"


def _range_of_recovered(means: Sequence[MacroMean]) -> str:
    """From which to which share of the context's worth the policies keep over all tasks; "" where a task lacks it."""
    known = [
        (it.nll_recovered, shown_label(it), it.storage.held_share)
        for it in means
        if it.label not in REFERENCE_LABELS
        and it.nll_recovered is not None
        and it.storage.held_share is not None
    ]
    if not known:
        return ""
    (low, lowest, _), (high, highest, _) = min(known), max(known)
    return (
        f"On the mean of all tasks, with {_range([it[2] for it in known])} of the cache's bytes held, from {_share(low)} "
        f"({lowest}) to {_share(high)} ({highest}) of what the context is worth to the right answer is left."
    )


def _share(recovered: float) -> str:
    # Worse than without any context: "-415% is left" would say nothing.
    return percent(recovered, 0) if recovered >= 0 else "less than nothing"


def _range(ratios: Sequence[float]) -> str:
    least, most = percent(min(ratios), 0), percent(max(ratios), 0)
    return least if least == most else f"{least} to {most}"


def _range_of_nll(tasks: Sequence[TaskSummary]) -> str:
    """From which to which NLL the policies reach on the first task that has one, and with how many bytes."""
    for task in tasks:
        full = next((it.answer_nll for it in task.variants if it.label == FULL), None)
        known = [it for it in policies_of(task) if it.answer_nll and it.storage.held_share is not None]
        if full is None or not known:
            continue
        by_nll = sorted(known, key=lambda it: it.answer_nll.mean if it.answer_nll else 0.0)
        held = _range([it.storage.held_share or 0.0 for it in known])
        first, last = by_nll[0], by_nll[-1]
        assert first.answer_nll is not None and last.answer_nll is not None
        return (
            f"On {task.task} the right answer costs {full.mean:.3f} nats a token with the full cache and, with {held} "
            f"of its bytes held, from {first.answer_nll.mean:.3f} ({shown_label(first)}) to {last.answer_nll.mean:.3f} "
            f"({shown_label(last)})."
        )
    return ""

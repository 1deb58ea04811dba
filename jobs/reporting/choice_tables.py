"""What is certified and what fits, as tables for a terminal, the answers in the last lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.analysis.choosing.certificates import CertificateGroup, Certificates, Chain, Level
from jobs.analysis.choosing.fits import Fit, FitGroup, Fits, MeanLoss
from jobs.analysis.choosing.losses import LOSES_MORE, LossKind
from jobs.reporting.choice_words import (
    certificate_answer,
    certificate_notes,
    fit_answer,
    fit_notes,
    how_tested,
    no_promise,
    shown_contract,
)
from jobs.reporting.notation import (
    TO,
    UNKNOWN,
    Shown,
    human_bytes,
    percent,
    plain,
    setting_in_words,
    shown_difference,
    shown_name,
)
from jobs.reporting.table import add_folding_column, broken_name, titled_table

_YES, _NO, _OPEN = Text("yes", style="green"), Text("no", style="red"), Text("open", style="dim")
_STOPPED = "stopped at"
_ROOMY_COLUMNS = 100
"""Below this width only the loss that ranks stands with its interval."""
_LOSS_HEADS = {"score": "points lost", "nll": "NLL lost", "kl": "KL", "top1": "top-1 lost"}


def render_certificates(found: Certificates, width: int) -> RenderableType:
    """A table for each setting or task, what it rests on, and the answer, for a terminal of `width` columns."""
    parts: list[RenderableType] = [Text(shown_contract(found.contract)), Text()]
    for group in found.groups:
        parts += [_certificate_table(group, width), *map(_note, certificate_notes(group)), Text()]
    # The answer last: it is what stands above the prompt when the command has ended.
    answers = [certificate_answer(found, group) for group in found.groups]
    parts += [_dim(how_tested(found)), _dim(no_promise()), Text(), *_answers(found.groups, answers)]
    return Group(*parts)


def render_fits(found: Fits, width: int) -> RenderableType:
    """A table for each setting, what is counted in it, and the answer, for a terminal of `width` columns."""
    parts: list[RenderableType] = []
    for group in found.groups:
        parts += [_fit_table(found, group, width), *map(_note, fit_notes(found, group)), Text()]
    answers = [fit_answer(found, group) for group in found.groups]
    return Group(*parts, *_answers(found.groups, answers))


def _answers(groups: Iterable[CertificateGroup | FitGroup], answers: Iterable[str]) -> Iterator[Text]:
    settings = [group.setting for group in groups]
    is_mixed = len(set(settings)) > 1
    for setting, answer in zip(settings, answers, strict=True):
        where = f"{setting_in_words(setting)}: " if is_mixed else ""
        yield Text(f"{where}{answer}", style="bold")


def _certificate_table(group: CertificateGroup, width: int) -> Table:
    title = group.task or (
        next(iter(group.contexts_by_task), "")
        if len(group.contexts_by_task) == 1
        else f"{len(group.contexts_by_task)} tasks"
    )
    table = _table(title, group, width)
    has_stops = any(chain.smallest and chain.refused for chain in group.chains)
    for head in ("certified", "bytes", "a token", "lose more", *([_STOPPED] if has_stops else [])):
        add_folding_column(table, head, "left" if head in ("certified", _STOPPED) else "right")
    for index, level in enumerate(group.references):
        table.add_row(
            Text(broken_name(shown_name(level), width)),
            "",
            *_memory(level),
            _lost(level),
            *([""] if has_stops else []),
            end_section=index == len(group.references) - 1,
        )
    for chain in sorted(group.chains, key=_chain_place):
        level = chain.smallest or chain.levels[0]
        is_open = group.is_too_few or group.is_blind
        verdict = _YES if chain.smallest else _OPEN if is_open else _NO
        table.add_row(
            Text(broken_name(shown_name(level), width)),
            verdict,
            *_memory(level),
            _lost(level),
            *([_stop(chain)] if has_stops else []),
        )
    return table


def _table(title: str, group: CertificateGroup | FitGroup, width: int) -> Table:
    where = setting_in_words(group.setting)
    table = titled_table(title, where)
    # A title folds at the width of its table, and few columns make a narrow one.
    table.min_width = min(width, len(f"{title}  {where}"))
    return table


def _chain_place(chain: Chain) -> tuple[bool, float, int]:
    """The certified ones first, the fewest bytes first of these; then by what the mildest level lost."""
    level = chain.smallest or chain.levels[0]
    share = level.storage.held_share
    return chain.smallest is None, 0.0 if share is None or not chain.smallest else share, level.num_lost


def _memory(level: Level) -> tuple[str, str]:
    return percent(level.storage.held_share), human_bytes(level.bytes_per_token)


def _lost(level: Level) -> Text:
    text = Text(f"{level.num_lost} of {level.num_contexts}")
    others = level.num_lost - level.lost_by.get(LOSES_MORE, 0)
    if others:
        text.append(f"\n{others} not run", style="yellow")
    return text


def _stop(chain: Chain) -> Text:
    """The level that ended the sequence, where it is another one than the line's own."""
    if chain.refused is None or chain.smallest is None:
        return Text()
    budget = chain.refused.label.partition("@")[2]
    return Text(f"{f'@{budget}' if budget else chain.refused.label}: {chain.refused.num_lost}")


def _fit_table(found: Fits, group: FitGroup, width: int) -> Table:
    title = group.tasks[0] if len(group.tasks) == 1 else f"mean over {len(group.tasks)} tasks"
    table = _table(title, group, width)
    kinds = [it for it in found.kinds if any(fit.losses[it.name] for fit in group.fits)]
    heads = ["requests", "a request", "bytes", *(_LOSS_HEADS[it.name] for it in kinds)]
    heads += ["step", "tokens/s"] if group.is_measured_there else []
    for head in heads:
        add_folding_column(table, head, "right")
    is_roomy = width >= _ROOMY_COLUMNS
    fitting = [it for it in group.fits if it.is_fitting]
    for index, fit in enumerate(group.fits):
        table.add_row(
            _fit_name(fit, width),
            *_fit_memory(fit),
            *(_loss(fit.losses[it.name], it, has_ends=is_roomy or it is found.kinds[0]) for it in kinds),
            *(_step(fit) if group.is_measured_there else ()),
            end_section=index == len(fitting) - 1,
            style=None if fit.is_fitting else "dim",
        )
    return table


def _fit_name(fit: Fit, width: int) -> Text:
    name = Text(broken_name(shown_name(fit), width))
    if fit.num_unpaired:
        name.append(f" ({fit.num_pairs} of {fit.num_pairs + fit.num_unpaired} items)", style="yellow")
    return name


def _fit_memory(fit: Fit) -> tuple[Text, str, str]:
    if fit.num_fitting is None:
        return Text(UNKNOWN), UNKNOWN, UNKNOWN
    number = Text(f"{fit.num_fitting:,}")
    if not fit.is_fitting:
        number = Text("none" if fit.num_fitting == 0 else f"only {fit.num_fitting:,}", style="red")
    return number, human_bytes(fit.bytes_per_request), percent(fit.storage.held_share)


def _loss(loss: MeanLoss | None, kind: LossKind, *, has_ends: bool) -> Text:
    if loss is None:
        return Text(UNKNOWN)
    metric = kind.metric
    if loss.interval is None:
        shown = Shown(plain(metric.unit_factor * loss.mean, "{:+.3f}"))
    else:
        shown = shown_difference(metric, loss.interval)
    text = Text(shown.mean)
    if has_ends and TO in shown.ends:
        text.append(f"\n{shown.ends}", style="dim")
    return text


def _step(fit: Fit) -> tuple[str, str]:
    if fit.step is None:
        return UNKNOWN, UNKNOWN
    return f"{1000 * fit.step.step_s:.3g} ms", f"{fit.step.tokens_per_s:,.3g}"


def _note(text: str) -> Text:
    return Text(text)


def _dim(text: str) -> Text:
    return Text(text, style="dim")

"""The answers to *which policy, at which memory* as sentences, for the terminal, the page and MLflow alike."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.analysis.choosing.certificates import CertificateGroup, Certificates, Contract, Level
from jobs.analysis.choosing.fits import FitGroup, Fits
from jobs.analysis.choosing.losses import LOSES_MORE
from jobs.reporting.notation import counted, human_bytes, percent, shown_device, shown_label
from kvmerger.variants import FULL

_NO_PROMISE = (
    "A certificate is for contexts drawn as these were: this mixture of tasks (not each task alone: --by task), these "
    "lengths, this model, dtype and query mode. It promises nothing after a shift to other data, where contexts are not "
    "exchangeable (taken from one source one after another), or where loss, share or policies were picked, or a policy "
    "tuned, after a look at these rows."
)


def shown_contract(contract: Contract) -> str:
    """What is asked of every variant."""
    return (
        f"Which variants lose more than {contract.most_loss:g} on at most {_percent(contract.share)} of contexts, with "
        f"{_percent(contract.confidence)} confidence? Loss: {contract.kind.words}; of a context, that of its worst item."
    )


def how_tested(found: Certificates) -> str:
    """How the error is split, and in which order budgets are tested."""
    error = _percent(found.contract.error)
    return (
        "Exact binomial tests; a policy's budgets of one kind are a sequence, from mild to strict up to the first that is "
        f"not shown. The error of {error} is split evenly: {counted(found.num_chains, 'sequence')}, "
        f"{_percent(found.error_of_chain)} each. The chance that any certificate here is false is at most {error}."
    )


def certificate_answer(found: Certificates, group: CertificateGroup) -> str:
    """The answer in a sentence: the cheapest certified variant, to keep the full cache, or why there is no answer."""
    where = f"{group.task}: " if group.task else ""
    if group.num_contexts == 0:
        return f"{where}no answer: no context can take part ({_reasons(group)})"
    if group.is_blind:
        return (
            f"{where}no answer: no more is lost without any context, so these contexts do not test the cache"
        )
    if group.is_too_few:
        needed = f"{group.needed} are needed for {counted(found.num_chains, 'sequence')} of budgets"
        alone = f", and {found.needed_for_one} for one (--policy NAME, chosen before looking)"
        return (
            f"{where}no answer: {counted(group.num_contexts, 'context')} are too few. Even if none were lost, {needed}"
            f"{alone if found.num_chains > 1 else ''}"
        )
    cheapest = group.cheapest
    if cheapest is None:
        return f"{where}nothing is certified: keep the full cache"
    return f"{where}cheapest certified: {shown_label(cheapest)}, {_held(cheapest)}"


def certificate_sentence(found: Certificates, group: CertificateGroup) -> str:
    """The answer as a sentence of its own, with what is promised: how a report begins."""
    contract = found.contract
    bound = f"lose more than {contract.most_loss:g} of {contract.kind.name} on at most {_percent(contract.share)} of contexts"
    answer = certificate_answer(found, group)
    if group.is_too_few and group.num_contexts and not group.is_blind:
        few = f"{counted(group.num_contexts, 'context')} are too few, even if none were lost {group.needed} are needed"
        return f"No certificate: {few} to show which variants {bound}."
    if group.num_contexts == 0 or group.is_blind:
        return f"{answer[:1].upper()}{answer[1:]}."
    confidence = f"with {_percent(contract.confidence)} confidence"
    promise = (
        f"shown, {confidence}, to {bound} like these" if group.cheapest else f"no variant is shown to {bound}"
    )
    return f"{answer[:1].upper()}{answer[1:]}; {promise}."


def certificate_notes(group: CertificateGroup) -> Iterator[str]:
    """What a reader must know of the contexts behind the certificates."""
    tasks = ", ".join(f"{name} {number}" for name, number in group.contexts_by_task.items())
    allowed = "" if group.most_lost is None else f"; a variant may lose at most {group.most_lost} of them"
    yield f"contexts: {group.num_contexts}{f' ({tasks})' if tasks else ''}{allowed}"
    if group.num_safe:
        yield (
            f"on {group.num_safe} of them the full cache itself scores no more than the loss allowed, so nothing can be lost "
            "there"
        )
    if group.left_out:
        yield f"left out: {_reasons(group)}"
    if "a prompt was cut" in group.left_out:
        yield "contexts that were cut count with --keep-cut: the loss is then against a full cache that was cut alike"
    levels = [level for chain in group.chains for level in chain.levels]
    failed = [it for it in levels if set(it.lost_by) - {LOSES_MORE}]
    if failed:
        yield f"counted as lost, not as no loss: {'; '.join(f'{shown_label(it)}: {_unmeasured(it)}' for it in failed)}"
    idle = [it for it in levels if it.num_degenerate]
    if idle:
        told = ", ".join(f"{shown_label(it)} on {counted(it.num_degenerate, 'item')}" for it in idle)
        yield f"dropped nothing, at the full cache's bytes: {told}"
    last = [chain.name for chain in group.chains if chain.smallest and chain.refused is None]
    if last:
        yield f"no smaller budget was tried, and one may do: {', '.join(last)}"


def no_promise() -> str:
    """What no certificate says."""
    return _NO_PROMISE


def fit_answer(found: Fits, group: FitGroup) -> str:
    """The answer in a sentence: what fits and loses least, and how many requests it lets in."""
    demand = found.demand
    fitting = [it for it in group.fits if it.is_fitting]
    full = next((it for it in fitting if it.label == FULL), None)
    best = next((it for it in fitting if it is not full), None)
    asked = counted(demand.num_requests or 1, "request")
    there = f"{human_bytes(demand.cache_bytes)}, {asked} of {demand.num_tokens:,} tokens"
    if not fitting:
        return f"nothing fits {there}"
    whole = f"the full cache fits {there}: it lets in {full.num_fitting:,}" if full else ""
    if best is None:
        return f"{whole}; nothing else does"
    unpaired = f" ({counted(best.num_unpaired, 'row')} of it are not there)" if best.num_unpaired else ""
    loses_least = f"{shown_label(best)} loses least on average{unpaired} and lets in {best.num_fitting:,}"
    return f"{whole}. Of all others {loses_least}" if full else f"of what fits {there}, {loses_least}"


def fit_notes(found: Fits, group: FitGroup) -> Iterator[str]:
    """What is counted, what is not, and what was measured elsewhere."""
    demand = found.demand
    dtype = f" in {', '.join(it.rpartition('.')[2] for it in group.dtypes)}" if group.dtypes else ""
    weights = (
        "not counted: weights (results do not tell their bytes: give --weights)"
        if demand.weights_bytes is None
        else f"weights of {human_bytes(demand.weights_bytes)} are taken off; not counted:"
    )
    joined = ", " if demand.weights_bytes is None else " "
    yield (
        f"counted: bytes that a request's context was measured to hold{dtype}, scales and positions included, carried over "
        f"to {demand.num_tokens:,} tokens; {weights}{joined}question and answer, activations, what the allocator wastes, "
        "and the full cache that a prefill holds until it is compressed"
    )
    least, most = group.tokens
    if found.is_far(group):
        yield (
            f"losses were measured on contexts of {least:,} to {most:,} tokens; at {demand.num_tokens:,} none was measured"
        )
    yield "ranked by mean loss: a difference inside the 95 % intervals ranks nothing (`compare` tests two variants)"
    if any(it.num_unpaired for it in group.fits):
        yield "variants with rows that failed or are missing stand behind those with all of them: their means leave those out"
    if group.is_measured_there:
        devices = ", ".join(shown_device(*it) for it in group.devices)
        yield f"step and tokens/s: measured with {_batch(found)}, the variant alone on {devices or 'an unknown device'}"
    else:
        yield (
            f"step time and tokens/s with {_batch(found)} at this length: not measured (rows of `execution: isolated` "
            "tell them for batches as large as a context has questions)"
        )


def _batch(found: Fits) -> str:
    number = found.demand.num_requests
    return counted(number, "request") if number else "as many requests as fit"


def _percent(ratio: float) -> str:
    """As people write it: 5%, 0.556%."""
    return f"{100 * ratio:.3g}%"


def _held(level: Level) -> str:
    token = "" if level.bytes_per_token is None else f", {human_bytes(level.bytes_per_token)} a token"
    return f"{percent(level.storage.held_share)} of the full cache's bytes{token}"


def _reasons(group: CertificateGroup) -> str:
    return (
        ", ".join(
            f"{counted(number, 'context')} where {reason}"
            for reason, number in sorted(group.left_out.items())
        )
        or "there are no rows"
    )


def _unmeasured(level: Level) -> str:
    others = {reason: number for reason, number in level.lost_by.items() if reason != LOSES_MORE}
    return ", ".join(f"{counted(number, 'context')} {reason}" for reason, number in sorted(others.items()))

"""The answers to *which policy, at which memory* for scripts: plain values, all numbers in base units."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from jobs.analysis.choosing.certificates import CertificateGroup, Certificates, Level
from jobs.analysis.choosing.fits import Fit, FitGroup, Fits, MeanLoss
from jobs.reporting.choice_words import certificate_answer, fit_answer


def certificates_as_json(found: Certificates) -> dict[str, Any]:
    """Everything that is certified, refused and left out; `answer` is the sentence people read."""
    contract = found.contract
    return {
        "metric": contract.kind.name,
        "most_loss": contract.most_loss,
        "share": contract.share,
        "confidence": contract.confidence,
        "num_sequences": found.num_chains,
        "error_of_sequence": found.error_of_chain,
        "needed_contexts_for_one_sequence": found.needed_for_one,
        "groups": [_certificate_group(found, group) for group in found.groups],
    }


def fits_as_json(found: Fits) -> dict[str, Any]:
    """Every variant in the order of its rank; `answer` is the sentence people read."""
    return {
        "demand": asdict(found.demand),
        "ranked_by": found.kinds[0].name,
        "groups": [_fit_group(found, group) for group in found.groups],
    }


def _certificate_group(found: Certificates, group: CertificateGroup) -> dict[str, Any]:
    return {
        "setting": asdict(group.setting),
        "task": group.task,
        "num_contexts": group.num_contexts,
        "contexts_by_task": dict(group.contexts_by_task),
        "contexts_left_out": dict(group.left_out),
        "contexts_that_cannot_lose": group.num_safe,
        "needed_contexts": group.needed,
        "most_lost": group.most_lost,
        "is_too_few": group.is_too_few,
        "tests_the_cache": not group.is_blind,
        "cheapest": group.cheapest.label if group.cheapest else None,
        "answer": certificate_answer(found, group),
        "references": [_level(it, None) for it in group.references],
        "sequences": [
            {
                "policy": chain.name,
                "smallest_certified": chain.smallest.label if chain.smallest else None,
                "levels": [_level(it, index < chain.num_certified) for index, it in enumerate(chain.levels)],
            }
            for chain in group.chains
        ],
    }


def _level(level: Level, is_certified: bool | None) -> dict[str, Any]:
    return {
        "variant": level.label,
        "is_certified": is_certified,
        "num_lost": level.num_lost,
        "lost_by": dict(level.lost_by),
        "p_value": level.p_value,
        "held_share": level.storage.held_share,
        "held_bytes_per_token": level.bytes_per_token,
        "num_degenerate": level.num_degenerate,
    }


def _fit_group(found: Fits, group: FitGroup) -> dict[str, Any]:
    return {
        "setting": asdict(group.setting),
        "tasks": list(group.tasks),
        "measured_tokens": list(group.tokens),
        "dtypes": list(group.dtypes),
        "devices": [name or kind for kind, name in group.devices],
        "is_length_measured": not found.is_far(group),
        "answer": fit_answer(found, group),
        "variants": [_fit(it) for it in group.fits],
    }


def _fit(fit: Fit) -> dict[str, Any]:
    return {
        "variant": fit.label,
        "fits": fit.is_fitting,
        "num_requests": fit.num_fitting,
        "bytes_per_request": fit.bytes_per_request,
        "held_share": fit.storage.held_share,
        "losses": {name: _loss(loss) if loss else None for name, loss in fit.losses.items()},
        "num_items": fit.num_pairs,
        "num_items_not_there": fit.num_unpaired,
        "step_s": fit.step.step_s if fit.step else None,
        "tokens_per_s": fit.step.tokens_per_s if fit.step else None,
    }


def _loss(loss: MeanLoss) -> dict[str, float | None]:
    low, high = (loss.interval.ends if loss.interval else None) or (None, None)
    return {"mean": loss.mean, "low": low, "high": high}

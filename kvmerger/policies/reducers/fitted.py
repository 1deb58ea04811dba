"""Reducers that fit kept slots to what attention gives without eviction, on queries of a repetition of the context.

Everything is solved in fp32 by Cholesky factors with a ridge, which are deterministic, and in the space of queries: a fit's
cost does not grow with the square of the slots. Every fifth stretch of queries is left out, and tells how well it holds.

Shapes: N tokens, H KV heads, K queries of each, S kept slots of the longest head (others are filled up), F flat slots of all
heads, D head size, X anything.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from kvmerger.cache.head_counters import PerHead
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.device import upload
from kvmerger.kernels.reference.ranking import marked_places
from kvmerger.policies.parameters import require_count
from kvmerger.policies.reducers.base import Reducer
from kvmerger.policies.registry import name_of
from kvmerger.policies.selection import take_selected
from kvmerger.prefill.evidence import Evidence, Need
from kvmerger.prefill.repeat_evidence import repeat_queries

# Bounds the fp32 scores over all tokens alive at a time (64 MiB).
_MOST_SCORES = 2**24
# Neighbouring queries are much alike: whole stretches are left out of the fit, or it would have seen them all.
_STRETCH, _STRETCHES = 16, 5
_LEAST_SQUARE = 1e-20
_ERRORS = ("mean_fitted_error", "mean_evicted_error")


class Attended(NamedTuple):
    """What queries get of all tokens: outputs (H, K, D), the highest score (H, K), and the log-sum-exp of scores (H, K)."""

    out_HKD: Tensor
    highest_HK: Tensor
    lse_HK: Tensor

    def of_queries(self, index_K: Tensor) -> Attended:
        """Those of some queries."""
        return Attended(*(found[:, index_K] for found in self))


class Slots(NamedTuple):
    """Kept slots of a layer, heads filled up to the longest.

    score_HKS are scaled products with the queries, -inf where there is no slot; v_HSD and position_HS are 0 there. place_F
    says where in (H, S) each slot is. ``dtype`` is what values will be stored in.
    """

    position_HS: Tensor
    v_HSD: Tensor
    score_HKS: Tensor
    place_F: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, kept: LayerCache, part: range, q_HKD: Tensor, scaling: float) -> Slots:
        """The slots of the heads ``part`` of ``kept``."""
        num_slots_H = kept.num_slots_H[part.start : part.stop]
        start = kept.head_starts[part.start]
        flat = slice(start, start + sum(num_slots_H))
        column_S = torch.arange(max(1, *num_slots_H), device=kept.device)
        is_slot_HS = column_S[None, :] < upload(num_slots_H, kept.device)[:, None]
        place_F = marked_places(is_slot_HS.flatten(), sum(num_slots_H))

        def padded(flat_FX: Tensor) -> Tensor:
            padded_X = flat_FX.new_zeros(is_slot_HS.numel(), *flat_FX.shape[1:])
            return padded_X.index_copy_(0, place_F, flat_FX).unflatten(0, tuple(is_slot_HS.shape))

        k_HSD, v_HSD = (padded(x_SD[flat].float()) for x_SD in (kept.k_SD, kept.v_SD))
        score_HKS = (scaling * q_HKD @ k_HSD.mT).masked_fill_(~is_slot_HS[:, None], -torch.inf)
        return cls(padded(kept.position_S[flat]), v_HSD, score_HKS, place_F, kept.dtype)

    def of_queries(self, index_K: Tensor) -> Slots:
        """The same slots, scores of some queries."""
        return self._replace(score_HKS=self.score_HKS[:, index_K])

    def shares(self, bias_HS: Tensor | None = None) -> Tensor:
        """Softmax of scores and a bias over a head's slots: (H, K, S); zeros in a head without any."""
        score_HKS = self.score_HKS if bias_HS is None else self.score_HKS + bias_HS[:, None]
        return score_HKS.softmax(dim=2).nan_to_num(0.0)

    def flat(self, padded_HSX: Tensor) -> Tensor:
        """Of (H, S, …) what belongs to slots: (F, …)."""
        return padded_HSX.flatten(0, 1)[self.place_F]


class _Fit(NamedTuple):
    """Of some heads: values and log masses of their slots, and the errors of `_ERRORS`."""

    v_FD: Tensor
    log_mass_F: Tensor | None
    errors_2H: Tensor


@dataclass(frozen=True)
class FittedReducer(Reducer):
    """Base of reducers that fit slots to queries of a repetition. Subclasses give `fitted`.

    Attributes:
        num_queries: of each KV head, all heads of its group together; half as many as there are tokens at most.
    """

    num_queries: int = 1024

    def __post_init__(self) -> None:
        """Refuse a policy that does not say which tokens stay, and no queries."""
        super().__post_init__()
        require_count(name_of(self), "num_queries", self.num_queries)

    def needs(self) -> frozenset[Need]:
        """What the wrapped policy reads, and the queries."""
        return super().needs() | {repeat_queries(self.num_queries)}

    def merge(self, layer: LayerCache, evidence: Evidence, is_kept_HN: Tensor) -> LayerCache:
        """The kept tokens' slots, fitted; counted: how far outputs are off on queries left out, fitted and as evicted."""
        kept = take_selected(layer, is_kept_HN)
        num_heads = kept.num_heads // len(evidence.layers)
        # Layer by layer: queries times slots of one are as much as should be held at a time, and as long as its longest
        # head makes them, so that a stack has the bits that each layer has alone.
        fits = [
            self._fit(layer, kept, range(first, first + num_heads), evidence)
            for first in range(0, kept.num_heads, num_heads)
        ]
        log_masses = [fit.log_mass_F for fit in fits if fit.log_mass_F is not None]
        errors_2H = torch.cat([fit.errors_2H for fit in fits], dim=1)
        return replace(
            kept,
            v_SD=torch.cat([fit.v_FD for fit in fits]),
            log_mass_S=torch.cat(log_masses) if log_masses else None,
        ).counting({name: PerHead(error_H) for name, error_H in zip(_ERRORS, errors_2H, strict=True)})

    def _fit(self, layer: LayerCache, kept: LayerCache, heads: range, evidence: Evidence) -> _Fit:
        q_HKD = evidence.get(repeat_queries(self.num_queries))[heads.start : heads.stop].float()
        fit_K, held_out_K = _folds(q_HKD.shape[1], q_HKD.device)
        k_HND, v_HND = (x_HND[heads.start : heads.stop] for x_HND in (layer.k_HND, layer.v_HND))
        full = attended(k_HND, v_HND, q_HKD, evidence.scaling)
        slots = Slots.of(kept, heads, q_HKD, evidence.scaling)
        v_HSD, bias_HS = self.fitted(slots.of_queries(fit_K), full.of_queries(fit_K), evidence.num_tokens)
        left_out, expected = slots.of_queries(held_out_K), full.of_queries(held_out_K)
        # With values as they are stored: what is lost in the model's dtype is part of the error.
        stored_HSD = v_HSD.to(kept.dtype)
        outputs = (
            left_out.shares(bias_HS) @ stored_HSD.float(),
            left_out.shares() @ slots.v_HSD,
        )
        errors = [_relative_error(out_HKD, expected.out_HKD) for out_HKD in outputs]
        log_mass_F = None if bias_HS is None else slots.flat(bias_HS)
        return _Fit(slots.flat(stored_HSD), log_mass_F, torch.stack(errors))

    @abc.abstractmethod
    def fitted(self, slots: Slots, full: Attended, num_tokens: int) -> tuple[Tensor, Tensor | None]:
        """Values (H, S, D), fp32, and what is added to each slot's logit (H, S), or None, by the queries that are given."""


def attended(k_HND: Tensor, v_HND: Tensor, q_HKD: Tensor, scaling: float) -> Attended:
    """What fp32 queries get of all tokens, in blocks of queries."""
    k_HND, v_HND = k_HND.float(), v_HND.float()
    block = max(1, _MOST_SCORES // (k_HND.shape[0] * k_HND.shape[1]))
    parts = []
    for q_HBD in q_HKD.split(block, dim=1):
        score_HBN = scaling * q_HBD @ k_HND.mT
        parts.append((score_HBN.softmax(dim=2) @ v_HND, score_HBN.amax(dim=2), score_HBN.logsumexp(dim=2)))
    return Attended(*(torch.cat(found, dim=1) for found in zip(*parts, strict=True)))


def ridge_step(share_HKS: Tensor, residual_HKX: Tensor, ridge_H: Tensor) -> Tensor:
    """The X with the least ‖share·X − residual‖² + ridge·‖X‖², head by head: (H, S, X)."""
    # Aᵀ(AAᵀ + λ)⁻¹R is (AᵀA + λ)⁻¹AᵀR with a matrix as wide as there are queries, which are fewer than slots.
    gram_HKK = share_HKS @ share_HKS.mT
    gram_HKK.diagonal(dim1=1, dim2=2).add_(ridge_H[:, None])
    # Without a check, which would wait for the device: with a ridge it is positive definite.
    factor_HKK, _ = torch.linalg.cholesky_ex(gram_HKK)
    return share_HKS.mT @ torch.cholesky_solve(residual_HKX, factor_HKK)


def mean_square(share_HKS: Tensor) -> Tensor:
    """The mean over queries of their squared sums, what a ridge can be a share of: (H,), positive."""
    return share_HKS.square().sum(dim=2).mean(dim=1).clamp_min(_LEAST_SQUARE)


def _folds(num_queries: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which queries are fitted to, and which are left out; of few all are both."""
    is_out = [index // _STRETCH % _STRETCHES == _STRETCHES - 1 for index in range(num_queries)]
    fit, held_out = ([index for index in range(num_queries) if is_out[index] == out] for out in (False, True))
    return upload(fit, device), upload(held_out or fit, device)


def _relative_error(ours_HKD: Tensor, full_HKD: Tensor) -> Tensor:
    """Of outputs, as a share of their norm: (H,)."""
    norm_H = full_HKD.flatten(1).norm(dim=1).clamp_min(_LEAST_SQUARE)
    return (ours_HKD - full_HKD).flatten(1).norm(dim=1) / norm_H

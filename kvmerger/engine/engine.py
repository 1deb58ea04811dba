"""Run a prompt once and let every variant answer it: the place to start reading.

The full cache is always there: variants compress from it and are compared with it. Every variant and every reference row
comes back exactly once per question, as a `Generation` or a `VariantFailure`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from kvmerger.building import Variant
from kvmerger.decoding.step_graphs import Refusals, graphs_for
from kvmerger.engine.compress import references_first
from kvmerger.engine.fused import run_fused
from kvmerger.engine.fused_many import run_fused_many
from kvmerger.engine.isolated import run_isolated
from kvmerger.generation import Generation, Prompt, VariantFailure
from kvmerger.limits import Limits
from kvmerger.models.loading import LoadedModel
from kvmerger.names import VariantError
from kvmerger.variants import REFERENCE_LABELS

_EXECUTIONS = ("fused", "isolated")


class Engine:
    """One model, any number of prompts. From one to the next it keeps recorded decode steps, and no numbers."""

    def __init__(self, model: LoadedModel, limits: Limits | None = None) -> None:
        self._model = model
        # One for all recorders of this model: isolated runs make a new one for each row.
        self._refusals = Refusals()
        self._graphs = graphs_for(model, self._refusals)
        self._limits = limits or Limits()

    @torch.inference_mode()
    def run(
        self,
        prompt: Prompt,
        variants: Sequence[Variant],
        *,
        execution: Literal["fused", "isolated"] = "fused",
        seed: int = 0,
    ) -> list[Generation | VariantFailure]:
        """Answer ``prompt`` under every variant and under the reference rows.

        Args:
            prompt: one compressed part and its questions.
            variants: in any order; labels unique and none of `REFERENCE_LABELS`. `like` budgets name each other.
            execution: ``fused`` prefills once and decodes all rows together; ``isolated`` gives each variant a run of its
                own, with its own time and, on CUDA, its own memory peak.
            seed: what random policies draw depends on it and on the prompt's tokens.

        Raises:
            InvalidPromptError: the prompt cannot be run on this model.
            VariantError: labels clash, or `like` budgets go round in a circle.
            ValueError: an unknown execution.
        """
        if execution not in _EXECUTIONS:
            raise ValueError(f"execution must be one of {list(_EXECUTIONS)}, got {execution!r}")
        prompt.check(self._model.info.max_positions, self._model.info.vocab_size)
        _check(variants)
        with self._model.on_its_device():
            if execution == "isolated":
                return run_isolated(self._model, self._limits, prompt, variants, seed, self._refusals)
            return run_fused(self._model, self._limits, prompt, variants, seed, self._graphs)

    @torch.inference_mode()
    def run_many(
        self, prompts: Sequence[Prompt], variants: Sequence[Variant], *, seed: int = 0
    ) -> list[list[Generation | VariantFailure]]:
        """Answer every prompt as `run` does (fused), the rows of several in one batch: worth it where contexts are short.

        Each prompt is prefilled, compressed and compared by itself, so forced along the same tokens its rows have the bits
        that `run` gives them. Greedy tokens after the first come from a batch of another shape, as in another bucket:
        that depends on how many rows and questions the prompts before and beside it have, and not on what they hold.

        Returns:
            Each prompt's rows. What `run` would raise of one prompt becomes a failure of each of its rows.

        Raises:
            VariantError: labels clash, or `like` budgets go round in a circle.
        """
        _check(variants)
        with self._model.on_its_device():
            return run_fused_many(self._model, self._limits, prompts, variants, seed, self._graphs)


def _check(variants: Sequence[Variant]) -> None:
    labels = [variant.label for variant in variants]
    clashes = sorted({label for label in labels if labels.count(label) > 1 or label in REFERENCE_LABELS})
    if clashes:
        raise VariantError(f"labels must be unique and none of {REFERENCE_LABELS}; these are not: {clashes}")
    references_first(variants)  # refuses a circle before any work

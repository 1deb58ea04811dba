"""The `gate:` section: how much worse than the baseline a night may be, and how sure one must be to say so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from jobs.console.paths import local_path

Margin = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Alpha = Annotated[float, Field(gt=0, lt=0.5)]
Percent = Annotated[float, Field(ge=0, le=100)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MarginSettings(_Section):
    """The loss that is tolerated, per kind. docs/nightly.md says how many items it takes to see a loss of each size."""

    score_points: Margin = 1.0  # of 100
    nll_nats: Margin = 0.05  # per token of the gold answer
    memory_percent: Margin = 1.0  # measured bytes held, read at a step, and at the peak where rows have one
    speed_percent: Margin = 10.0  # seconds of a prompt, in isolated rows


class GateSettings(_Section):
    """What the nightly gate compares, and how its verdict comes about.

    `baseline` is a results folder; null: the run of the experiment that carries MLflow's tag, or without tracking the
    night that was promoted last. `policies` are the labels that are gated; null: all of the sweep and `full`.
    `alpha` bounds the chance that a night without a loss beyond a margin is called a regression, over the `family`: all
    comparisons of the `night`, or those of each `metric` on their own. `inconclusive` is what an undecided night ends
    with: exit code 4 (`exit_4`) or 0 (`pass`). `assumed_flip_percent`: items that are taken to differ by themselves
    as long as no baseline says how many do.
    """

    baseline: Path | None = None
    margins: MarginSettings = MarginSettings()
    alpha: Alpha = 0.05
    correction: Literal["holm", "none"] = "holm"
    family: Literal["night", "metric"] = "night"
    max_failed_percent: Percent = 2.0
    policies: tuple[str, ...] | None = Field(default=None, min_length=1)
    inconclusive: Literal["exit_4", "pass"] = "exit_4"
    assumed_flip_percent: Percent = 2.0

    @field_validator("baseline")
    @classmethod
    def _folder_is_absolute(cls, folder: Path | None) -> Path | None:
        return None if folder is None else local_path(folder).absolute()

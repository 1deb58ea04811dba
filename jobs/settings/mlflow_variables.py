"""MLflow's own variables, which stand in where the settings leave a tracking server or an experiment open."""

from __future__ import annotations

import os

URI, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"


def value_of(variable: str) -> str | None:
    """What the environment says; None for nothing, and for the empty text that an unset variable of a script leaves."""
    return os.environ.get(variable) or None


def stand_ins(uri: str | None, experiment: str | None) -> dict[str, str | None]:
    """What the settings say, and in place of nulls what the variables say: keys `uri` and `experiment`."""
    return {"uri": uri or value_of(URI), "experiment": experiment or value_of(EXPERIMENT)}


def origin_of(uri: str) -> str:
    """For messages: the variable that names this URI, so that nobody looks for it in the settings; "" where none does."""
    return f" (of {URI})" if value_of(URI) == uri else ""

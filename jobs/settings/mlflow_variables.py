"""MLflow's own variables, which stand in where the settings leave a tracking server or an experiment open."""

from __future__ import annotations

import os

from jobs.settings.errors import SettingsError

URI, EXPERIMENT, EXPERIMENT_ID = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"


def value_of(variable: str) -> str | None:
    """What the environment says; None for nothing, and for the empty text that an unset variable of a script leaves."""
    return os.environ.get(variable) or None


def stand_ins(uri: str | None, experiment: str | None, experiment_id: str | None) -> dict[str, str | None]:
    """What the settings say, and in place of nulls what the variables say; the keys are the parameters' names.

    At most one of `experiment` and `experiment_id` is not None: the settings go before the variables, a name before an id.

    Raises:
        SettingsError: the settings have both.
    """
    if experiment and experiment_id:
        raise SettingsError(
            f"tracking.experiment is {experiment!r} and tracking.experiment_id {experiment_id!r}; leave one of them at null"
        )
    # An experiment of the settings is meant whatever the variables say, by name or by id.
    if not (experiment or experiment_id):
        experiment = value_of(EXPERIMENT)
        experiment_id = None if experiment else value_of(EXPERIMENT_ID)
    return {"uri": uri or value_of(URI), "experiment": experiment, "experiment_id": experiment_id}


def origin_of(uri: str) -> str:
    """For messages: the variable that names this URI, so that nobody looks for it in the settings; "" where none does."""
    return f" (of {URI})" if value_of(URI) == uri else ""


def origin_of_id(experiment_id: str) -> str:
    """As `origin_of`, of an experiment's id."""
    return f" (of {EXPERIMENT_ID})" if value_of(EXPERIMENT_ID) == experiment_id else ""

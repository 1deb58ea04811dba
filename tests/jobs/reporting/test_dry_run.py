"""A forecast is printed with what it was made from."""

import pytest

from jobs.analysis.forecast import Forecast
from jobs.reporting.dry_run import shown_query_mode, shown_source, shown_tracking
from jobs.settings.schema import Settings


def test_a_forecast_names_its_source() -> None:
    named = shown_source(Forecast(60.0, 1, 10, ("NVIDIA H200", None)))
    assert "1 finished units" in named
    assert named.endswith("on NVIDIA H200, a device whose name is unknown")
    assert "2,000 M parameters" in shown_source(Forecast(60.0, 0, 2 * 10**9))


def settings_of(**values: object) -> Settings:
    return Settings.model_validate({"tasks": ["longbench/qasper"], "policies": ["full"], **values})


def test_the_query_mode_is_told_with_whether_anybody_chose_it() -> None:
    told = "query mode: query_agnostic (the default): compression does not see the question"
    assert shown_query_mode(settings_of()) == told
    assert shown_query_mode(settings_of(query_mode="query_agnostic")) == told.replace(" (the default)", "")
    aware = settings_of(query_mode="query_aware")
    assert shown_query_mode(aware) == "query mode: query_aware: compression sees the question"


def test_where_mlflow_will_have_it_is_told_with_the_variable_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = "http://user:secret@mlflow:5000"
    settings = settings_of(name="a", tracking={"uri": uri})
    assert shown_tracking(settings) == "MLflow: http://…@mlflow:5000, experiment a"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert shown_tracking(settings) == "MLflow: http://…@mlflow:5000 (of MLFLOW_TRACKING_URI), experiment a"
    assert shown_tracking(settings_of(tracking=False)) == "MLflow: off"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "17")
    by_id = settings_of(tracking={"uri": uri, "experiment_id": "17"})
    assert shown_tracking(by_id).endswith(", experiment with the id 17 (of MLFLOW_EXPERIMENT_ID)")

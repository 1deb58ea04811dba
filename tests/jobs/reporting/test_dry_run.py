"""A forecast is printed with what it was made from."""

import re

import pytest
from rich.console import Console

from jobs.analysis.forecast import Forecast
from jobs.reporting.dry_run import render_costs, render_plan, shown_query_mode, shown_source, shown_tracking
from jobs.settings.schema import Settings
from tests.fakes.plans import Model, item, plan_of
from tests.fakes.plans import settings_of as planned_settings


def test_a_forecast_names_its_source() -> None:
    named = shown_source(Forecast(60.0, 1, 10, ("NVIDIA H200", None)))
    assert "1 finished units" in named
    assert named.endswith("on NVIDIA H200, a device whose name is unknown")
    assert "2,000 M parameters" in shown_source(Forecast(60.0, 0, 2 * 10**9))


@pytest.mark.parametrize("width", [80, 100, 160])
def test_names_of_variants_are_broken_between_parts_and_never_within_a_budget(width: int) -> None:
    names = ["pyramidkv+criticalkv+adakv@0.25+kivi4", "snapkv@bytes:0.125+int4", "knorm@0.5"]
    plan = plan_of(planned_settings(["full", *names]), [item(0)])
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(render_plan(plan, 0))
    # Of each line of the table what stands in the first column; names have no blank.
    lines = [line.split(" ")[0] for line in captured.get().splitlines()]
    for name in names:
        pieces = [piece for piece in re.split(r"(?<=\+)|(?=@)", name) if piece]
        starts = {"".join(pieces[:count]) for count in range(1, len(pieces) + 1)} | {pieces[0].rstrip("+")}
        start = next(at for at, line in enumerate(lines) if line in starts)
        rest, at = name, start
        while rest:
            assert rest.startswith(lines[at]) and lines[at], (name, lines[start : at + 1])
            # Before a plus sign where not even that fits.
            assert rest == lines[at] or rest[len(lines[at]) - 1] == "+" or rest[len(lines[at])] in "@+"
            rest, at = rest[len(lines[at]) :], at + 1


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


@pytest.mark.parametrize("width", [80, 160])
def test_every_task_is_told_with_what_it_takes(width: int) -> None:
    items = [item(0), item(1, task="aime24", before_context="", context="", max_new_tokens=8192)]
    plan = plan_of(planned_settings(), items, model=Model(max_positions=20_000))
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(render_costs(plan, Forecast(7200.0, 0, 10**9)))
    lines = {line.split()[0]: line.split() for line in captured.get().splitlines()}
    # Four rows an item: three references, and one policy.
    assert lines["bench/task"][3:5] == ["≤", "16"] and lines["bench/aime24"][3:5] == ["≤", "32,768"]
    assert lines["bench/aime24"][5:7] == ["2.0", "h"], "the long answer takes nearly all of the two hours"
    assert lines["bench/task"][5:7] == [lines["bench/task"][5], "s"]


def test_without_any_context_no_size_is_told_that_nothing_will_have() -> None:
    plan = plan_of(planned_settings(), [item(0, before_context="", context="")])
    console = Console(width=160, color_system=None)
    with console.capture() as captured:
        console.print(render_plan(plan, 0))
    assert "no item has a context: every variant holds its whole prompt" in captured.get()
    assert "of the median context" not in captured.get()
    assert "degenerate: knorm@0.5 leaves the cache as it is on 1 of 1 items" in captured.get()


def test_nothing_owed_is_said() -> None:
    whole = plan_of(planned_settings(), [item(0)])
    done = plan_of(planned_settings(), [item(0)], done=[it.key.identity for it in whole.rows])
    assert str(render_costs(done, Forecast(0.0, 0, 1))) == "nothing is left to compute"

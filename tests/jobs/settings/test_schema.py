"""Settings: what a user can get wrong is told by key, value and nearest name; what is right survives storing."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from evaluators.prompting import QueryMode
from jobs.console.addresses import hidden_in
from jobs.settings.errors import SettingsError
from jobs.settings.file import SHIPPED_CONFIGS
from jobs.settings.schema import DEMO_CONFIG, Settings, load_settings
from kvmerger.budget import KeptRatio, LikeVariant
from kvmerger.building import build_variant, in_slots
from kvmerger.policies.base import CacheShape
from kvmerger.variants import FULL
from tests.fakes.settings import MINIMAL, refused, write


def test_a_list_of_budgets_gives_a_variant_each(tmp_path: Path) -> None:
    variants = load_settings(write(tmp_path)).variants
    assert [(it.label, it.budget) for it in variants] == [
        (FULL, None),
        ("knorm@0.5", KeptRatio(0.5)),
        ("knorm@0.35", KeptRatio(0.35)),
    ]


SHIPPED = sorted(DEMO_CONFIG.parent.glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads(path: Path, tmp_path: Path) -> None:
    tasks = yaml.safe_load(path.read_text())["tasks"]
    data = [f"tasks.{index}.data={tmp_path}" for index, task in enumerate(tasks) if task.get("data")]
    settings = load_settings(path, data)
    assert settings.name == path.stem and len(settings.variants) > 1
    assert settings.output_dir == Path.cwd() / "results" / path.stem


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_policy_can_be_built_and_met_on_the_demo_model(path: Path) -> None:
    shape = CacheShape(num_tokens=900, num_layers=30, num_kv_heads=3, head_dim=64, itemsize=4)
    for spec in load_settings(path).variants:
        if spec.policy != FULL:
            policy = build_variant(spec).policy
            policy.check(shape, in_slots(spec.budget or KeptRatio(1.0), policy, shape, lambda _: 2**24))


def test_shipped_configs_need_nothing_outside_the_repository() -> None:
    assert all(
        task.data is None and task.haystack is None for path in SHIPPED for task in load_settings(path).tasks
    )


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("quary_mode=query_aware", "unknown key 'quary_mode' (did you mean 'query_mode'?)"),
        ("tasks.0.limits=3", "unknown key 'tasks.0.limits' (did you mean 'limit'?)"),
        ("tracking.url=http://a", "unknown key 'tracking.url' (did you mean 'uri'?)"),
        ("model.dtype=bfloat", "'bfloat' is not one of"),
        ("query_mode=query_agnostc", "did you mean 'query_agnostic'?"),
        ("tasks.0.name=ruler/niah_singel_2", "(did you mean 'ruler/niah_single_2' or 'ruler/niah_single_"),
        (
            "tasks.0.name=qasper",
            "did you mean 'longbench-e/qasper' or 'longbench/qasper' or 'zeroscrolls/qasper'?",
        ),
        ("tasks.0.name=sweep.yaml", "for your own rows write {name: file/rows, data: sweep.yaml}"),
        ("tasks.0.name=good.jsonl", "for your own rows write {name: file/rows, data: good.jsonl}"),
        ("tasks.0={name: a/good.parquet}", "for your own rows write {name: file/rows, data: a/good.parquet}"),
        ("tasks.0.limit=0", "tasks.0.limit: should be greater than 0, got 0"),
        ("tasks.0.length=-5", "got -5"),
        ("tasks.0.limit=true", "got True"),
        ("tasks.0.limit=2.5", "got 2.5"),
        ("model.revision=1234567", "put it in quotes"),
        ("model.name=./no_such_model", "there is no model folder './no_such_model'"),
        ("tasks.0.haystack=prose.txt", "'prose.txt'"),
        ("policies=[{name: knorm, bugdet: 0.5}]", "unknown key 'bugdet' (did you mean 'budget'?)"),
        ("policies=[{name: knorm, compresion_ratio: 0.5}]", "(did you mean 'compression_ratio'?)"),
        ("policies=[{name: knorm, ratio: 0.5}]", "compression_ratio"),
        ("policies=[{name: knorm, budget: 1.5}]", "1.5"),
        ("policies=[{name: knorm, budget: 0}]", "budget 0"),
        ("policies=[{name: knorm, budget: {like: snapkv@0.5}}]", "'snapkv@0.5'"),
        ("policies=[{name: knorm, budget: 0.5}, {name: knorm, compression_ratio: 0.5}]", "knorm@0.5"),
        (
            "policies=[{name: random, budget: {like: kvmerger@0.5}}]",
            "no policy is labelled; add {name: kvmerger, budget: 0.5} to the policies",
        ),
        ("seed=-1", "got -1"),
        ("actors.cpus=2", "unknown key 'actors.cpus' (did you mean 'num_cpus'?)"),
        ("actors.count=0", "got 0"),
        ("actors.num_cpus=0", "got 0"),
        ("actors.num_cpus=.inf", "got inf"),
        ("actors.num_gpus=2", "should be less than or equal to 1, got 2"),
        ("executor=dask", "'dask' is not one of"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(
    tmp_path: Path, override: str, complaint: str
) -> None:
    assert complaint in refused(tmp_path, overrides=(override,))


@pytest.mark.parametrize("below", ["", "/results"])
def test_a_file_is_no_place_for_results(tmp_path: Path, below: str) -> None:
    (tmp_path / "afile").touch()
    message = f"{tmp_path}/afile is a file, not a folder; choose another output_dir"
    assert refused(tmp_path, overrides=(f"output_dir={tmp_path}/afile{below}",)) == f"--output_dir: {message}"
    file = tmp_path / "sweep.yaml"
    text = f"{MINIMAL}output_dir: {tmp_path}/afile{below}\n"
    assert refused(tmp_path, text) == f"{file}: output_dir: {message}"


def test_isolated_items_at_once_are_refused(tmp_path: Path) -> None:
    overrides = ("execution=isolated", "items_at_once=4")
    assert "items_at_once is 4, but isolated rows share nothing" in refused(tmp_path, overrides=overrides)
    for fine in (("execution=isolated",), ("execution=isolated", "items_at_once=1"), ("items_at_once=4",)):
        load_settings(write(tmp_path), fine)


@pytest.mark.parametrize(("device", "num_gpus"), [("cpu", "0.5"), ("cuda", "0")])
def test_gpus_that_contradict_the_device_are_refused(tmp_path: Path, device: str, num_gpus: str) -> None:
    message = refused(tmp_path, overrides=(f"model.device={device}", f"actors.num_gpus={num_gpus}"))
    assert f"actors.num_gpus is {num_gpus}" in message and repr(device) in message


def test_missing_data_is_answered_with_what_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder in (beside / "longbench", here):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    missing = refused(beside, overrides=("tasks.0.data=longbnch",))
    assert missing.endswith(f"'longbnch' (did you mean 'longbench'?); looked in {beside} and in {here}")
    assert "did you mean 'longbench/" in refused(beside, overrides=("tasks.0.name=longbench",))
    assert "'~no_such_user/x'; looked in" in refused(beside, overrides=("tasks.0.data=~no_such_user/x",))
    (tmp_path / "opt").mkdir()
    assert refused(beside, overrides=(f"tasks.0.data={tmp_path}/nope",)).endswith(
        f"folder: '{tmp_path}/nope'"
    )


@pytest.mark.parametrize(
    ("text", "is_enabled"),
    [
        ("off", False),
        ("on", True),
        ("{uri: null}", True),
        ("'off'", False),
        ("'false'", False),
        ("none", False),
        ("'ON'", True),
        ("{enabled: 'off'}", False),
    ],
)
def test_tracking_can_be_switched_with_a_word(tmp_path: Path, text: str, is_enabled: bool) -> None:
    settings = load_settings(
        write(tmp_path, f"{MINIMAL}\ntracking: {text}\noutput_dir: {tmp_path}/results/a")
    )
    assert settings.tracking.enabled is is_enabled
    assert settings.tracking_uri == f"sqlite:///{tmp_path}/results/mlflow.db"


@pytest.mark.parametrize(
    ("name", "folder"),
    [(None, "sweep"), ("mine", "mine"), ("a b/c", "a_b_c"), ("..", ""), ("2026.12", "2026.12")],
)
def test_without_an_output_dir_results_go_where_the_name_says(
    name: str | None, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(write(tmp_path), [] if name is None else [f"name='{name}'"])
    assert settings.output_dir == tmp_path / "results" / folder
    assert load_settings(write(tmp_path), ["name=mine", "output_dir=out"]).output_dir == tmp_path / "out"


def test_a_database_is_found_again_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for uri in ("sqlite:///x.db", f"sqlite:///{tmp_path}/x.db"):
        settings = load_settings(write(tmp_path), [f"tracking.uri={uri}"])
        assert settings.tracking_uri == f"sqlite:///{tmp_path}/x.db"


def test_mlflows_own_variables_stand_in_for_nulls_and_for_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team")
    path = write(tmp_path)
    tracking = load_settings(path).tracking
    assert (tracking.uri, tracking.experiment) == ("http://mlflow.example:5000", "team")
    assert load_settings(path).tracking_uri == "http://mlflow.example:5000"
    own = load_settings(path, ["tracking={uri: 'sqlite:////tmp/x.db', experiment: mine}"]).tracking
    assert (own.uri, own.experiment) == ("sqlite:////tmp/x.db", "mine")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert load_settings(path).tracking_uri.startswith("sqlite:///")


def test_an_experiments_id_stands_in_where_no_name_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "17")
    path = write(tmp_path)

    def found(*overrides: str) -> tuple[str | None, str | None]:
        tracking = load_settings(path, overrides).tracking
        return tracking.experiment, tracking.experiment_id

    assert found() == (None, "17")
    assert found("tracking={experiment_id: '4'}") == (None, "4")
    assert found("tracking={experiment: mine}") == ("mine", None)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team")
    assert found() == ("team", None)
    assert found("tracking={experiment_id: '4'}") == (None, "4")
    with pytest.raises(
        SettingsError, match=r"experiment is 'mine' and tracking.experiment_id '4'; leave one"
    ):
        found("tracking={experiment: mine, experiment_id: '4'}")


def test_the_default_query_mode_is_that_of_the_demo_and_of_the_nightly(tmp_path: Path) -> None:
    shipped = [load_settings(SHIPPED_CONFIGS / name).query_mode for name in ("demo.yaml", "nightly.yaml")]
    assert {load_settings(write(tmp_path)).query_mode, *shipped} == {QueryMode.AGNOSTIC}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "output_dir=s3://bucket/res",
            "'s3://bucket/res' is an address; name a file or folder of this machine",
        ),
        ("output_dir='file:///data/res'", "'file:///data/res' is an address"),
        ("output_dir=$NOT_SET/res", r"names the variable $NOT_SET, which is not set"),
        ("output_dir=${NOT_SET}/res", r"names the variable ${NOT_SET}, which is not set"),
        ("tasks.0.data=gs://bucket/x.jsonl", "gs:// is read from nowhere"),
        ("tasks=[{name: 's3://bucket/x'}]", "write {name: file/rows, data: s3://bucket/x}"),
        ("tasks.0.data=hf://datasets/x", "is no address of a data set; write hf://datasets/OWNER"),
        ("tasks.0.data=$NOT_SET", "which is not set"),
        ("gate={baseline: 's3://bucket/res'}", "is an address"),
    ],
)
def test_an_address_or_an_unset_variable_is_no_folder(tmp_path: Path, override: str, message: str) -> None:
    assert message in refused(tmp_path, overrides=(override,))


def test_variables_in_paths_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS", str(tmp_path / "there"))
    (tmp_path / "there").mkdir()
    overrides = ["output_dir=$RESULTS/a$", "tasks.0.data=${RESULTS}", "gate={baseline: $RESULTS/b}"]
    settings = load_settings(write(tmp_path), overrides)
    assert settings.output_dir == tmp_path / "there" / "a$"
    assert settings.tasks[0].data == str(tmp_path / "there")
    assert settings.gate is not None and settings.gate.baseline == tmp_path / "there" / "b"


def test_limit_reaches_every_task(tmp_path: Path) -> None:
    text = "tasks: [longbench/qasper, {name: longbench/trec, limit: 9}]\npolicies: [full]"
    assert [task.limit for task in load_settings(write(tmp_path, text), limit=2).tasks] == [2, 2]


def test_resolved_settings_load_again_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(
        write(tmp_path), ["policies.1={name: random, budget: {like: full}}", "query_mode=query_agnostic"]
    )
    assert settings.query_mode is QueryMode.AGNOSTIC and settings.variants[1].budget == LikeVariant(FULL)
    stored = write(tmp_path, yaml.safe_dump(settings.model_dump(mode="json")))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_settings(stored) == settings


def test_settings_do_not_change(tmp_path: Path) -> None:
    settings: Settings = load_settings(write(tmp_path))
    with pytest.raises(ValidationError):
        settings.seed = 1  # type: ignore[misc]


def test_a_bare_address_is_a_task_of_the_users_own_rows_and_stays_as_it_is_written(tmp_path: Path) -> None:
    addresses = (f"hf://datasets/me/rows@{'0123456789' * 4}/kv", "s3://bucket/rows.jsonl")
    for address in addresses:
        (tmp_path / "s.yaml").write_text(f"tasks: ['{address}']\npolicies: [full]\n")
        settings = load_settings(tmp_path / "s.yaml")
        assert hidden_in(settings.model_dump(mode="json"))["tasks"][0]["data"] == address
        assert settings.tasks[0].name == "file/rows" and settings.tasks[0].to_spec().data == address


def test_a_bare_file_name_is_a_task_of_the_users_own_rows(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").touch()
    (tmp_path / "s.yaml").write_text("tasks: [mine.jsonl, longbench/qasper]\npolicies: [full]\n")
    mine, qasper = load_settings(tmp_path / "s.yaml", limit=3).tasks
    assert (mine.name, mine.data, mine.limit) == ("file/rows", str(tmp_path / "mine.jsonl"), 3)
    assert (qasper.name, qasper.data, qasper.limit) == ("longbench/qasper", None, 3)

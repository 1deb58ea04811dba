"""Settings of a sweep: frozen, checked when read, and the same in every process.

Nothing here rewrites what another section says, and loading needs neither torch nor ray nor mlflow. Paths
are made absolute when read, because a Ray job runs in an unpacked copy of the folder it was started from.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from evaluators import registry
from evaluators.benchmark import TaskSpec
from evaluators.benchmarks.own_rows import ROWS_TASK, is_rows_file
from evaluators.benchmarks.sources.addresses import checked_address, is_address
from evaluators.prompting import QueryMode
from jobs.console.addresses import sqlite_uri
from jobs.console.paths import PathError, file_in_the_way, local_path
from jobs.settings.bits_tables import with_tables
from jobs.settings.errors import SettingsError, explain, nearest_file, unknown_task
from jobs.settings.file import SHIPPED_CONFIGS, apply_overrides, path_of, read_settings_file, settings_file
from jobs.settings.gate import GateSettings, MarginSettings
from jobs.settings.mlflow_variables import stand_ins
from jobs.settings.shorthands import written_out
from jobs.settings.tracking import TrackingSettings
from kvmerger.variants import VariantSpec, parse_policies

DEMO_CONFIG = SHIPPED_CONFIGS / "demo.yaml"
DEMO_MODEL = "demo"

PositiveCount = Annotated[int, Field(gt=0, strict=True)]
Seed = Annotated[int, Field(ge=0, strict=True)]


class _Section(BaseModel):
    """Base of every section: frozen, and a key nobody knows is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(_Section):
    """Which weights, and how they are loaded: a hub id, a local folder, or `demo` (packaged, no download)."""

    name: str = DEMO_MODEL
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    max_prompt_tokens: PositiveCount | None = None
    count_massive: bool = False  # rows count what became of massive tokens

    @field_validator("name")
    @classmethod
    def _local_folder_is_absolute(cls, name: str, info: ValidationInfo) -> str:
        # A hub id looks like a relative path: only what begins like a path must be a folder.
        folder = _existing(Path(name), info)
        if folder is None and name.startswith(("/", "./", "../", "~")):
            raise ValueError(
                f"there is no model folder {name!r}; name a hub id, an existing folder, or {DEMO_MODEL!r}"
            )
        # Even beside a folder of that name, `demo` is the packaged model.
        return name if folder is None or name == DEMO_MODEL else str(folder)


class TaskSettings(_Section):
    """One task, `benchmark/task`. `data` is a folder, a file, or an address of rows; nulls mean the task's own."""

    name: str
    data: str | None = None
    revision: str | None = None
    length: PositiveCount | None = None
    limit: PositiveCount | None = None
    max_new_tokens: PositiveCount | None = None
    haystack: Path | None = None
    split: str | None = None
    seed: Seed = 42

    @field_validator("name")
    @classmethod
    def _task_exists(cls, name: str, info: ValidationInfo) -> str:
        known = registry.list_tasks()
        if name in known:
            return name
        found = _existing(Path(name), info)
        if is_rows_file(name) or is_address(name) or (found is not None and found.is_file()):
            raise ValueError(
                f"{name!r} is a file, not a task; for your own rows write {{name: {ROWS_TASK}, data: {name}}}"
            )
        raise ValueError(unknown_task(name, known))

    @field_validator("data")
    @classmethod
    def _rows_exist(cls, data: str | None, info: ValidationInfo) -> str | None:
        if data is None or is_address(data):  # no path, of whose two slashes one would be left
            return data if data is None else checked_address(data, info.data.get("name", "data"))
        return str(cls._path_exists(Path(data), info))

    @field_validator("haystack")
    @classmethod
    def _path_exists(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is None:
            return None
        found = _existing(path, info)
        if found is None:
            wanted, folders = local_path(path), _folders(info)
            parents = [(folder / wanted).parent for folder in folders]
            near = nearest_file(path, (entry.name for parent in parents for entry in parent.glob("*")))
            looked = f"; looked in {' and in '.join(map(str, folders))}" if not wanted.is_absolute() else ""
            raise ValueError(f"no such file or folder: {str(path)!r}{near}{looked}")
        return found

    def to_spec(self) -> TaskSpec:
        """What the evaluators are asked for."""
        haystack = None if self.haystack is None else str(self.haystack)
        return TaskSpec(**self.model_dump(exclude={"haystack"}), haystack=haystack)


class ActorSettings(_Section):
    """Ray actors, each with a model of its own: how many, and how many cores and GPUs each takes.

    Null: as many as the cluster holds; one GPU each, or all cores of a node. Several share a GPU by fractions of it.
    """

    count: PositiveCount | None = None
    num_cpus: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    num_gpus: Annotated[float, Field(ge=0, le=1)] | None = None  # a model lives on one device


class Settings(_Section):
    """Everything a sweep depends on. Stored with its results as `settings.yaml`. Only `jobs/nightly.py` reads `gate`."""

    name: str = Field(default="sweep", min_length=1)
    model: ModelSettings = ModelSettings()
    tasks: tuple[TaskSettings, ...] = Field(min_length=1)
    policies: tuple[str | dict[str, Any], ...] = Field(min_length=1)
    check_policies: bool = True  # those named `module:Class` keep the contract, or nothing runs
    query_mode: QueryMode = QueryMode.AGNOSTIC  # as all that we ship but what repeats a paper
    execution: Literal["fused", "isolated"] = "fused"
    items_at_once: Literal["auto"] | PositiveCount = "auto"  # whose rows decode in one batch
    executor: Literal["ray", "inline"] = "ray"
    actors: ActorSettings = ActorSettings()
    output_dir: Path = Field(default=Path("results/sweep"), validate_default=True)  # of a file: results/NAME
    tracking: TrackingSettings = TrackingSettings()
    gate: GateSettings | None = None
    seed: Seed = 0

    @field_validator("tasks", mode="before")
    @classmethod
    def _a_bare_name_is_a_task(cls, tasks: Any) -> Any:
        return [_named(task) for task in tasks] if isinstance(tasks, list) else tasks

    @field_validator("policies", mode="before")
    @classmethod
    def _policies_can_be_read(cls, policies: Any, info: ValidationInfo) -> Any:
        if isinstance(policies, list | tuple):
            policies = with_tables(policies, _folders(info))
            parse_policies(policies)  # for its errors: what is stored is the policies as the file spells them
        return policies

    @field_validator("items_at_once", mode="before")
    @classmethod
    def _a_count_or_a_word(cls, count: Any) -> Any:
        # Before pydantic checks the types: it would report a mistake once for each type allowed. Not isinstance, since a
        # bool is an int.
        if count != "auto" and (type(count) is not int or count < 1):
            raise ValueError(f"'auto' or a whole number from 1 on, got {count!r}")
        return count

    @field_validator("tracking", mode="before")
    @classmethod
    def _off_is_a_word(cls, tracking: Any) -> Any:
        # YAML reads `tracking: off` as false.
        return {"enabled": tracking} if isinstance(tracking, bool) else tracking

    @field_validator("output_dir", mode="before")
    @classmethod
    def _output_is_a_path(cls, output_dir: Any) -> Any:
        # Before pydantic makes a path of it, whose text is no longer what was written.
        return local_path(output_dir) if isinstance(output_dir, str | Path) else output_dir

    @field_validator("output_dir")
    @classmethod
    def _output_is_absolute(cls, output_dir: Path) -> Path:
        folder = output_dir.absolute()
        if fault := file_in_the_way(folder):
            raise ValueError(fault)
        return folder

    @model_validator(mode="after")
    def _actors_fit_the_device(self) -> Self:
        num_gpus, device = self.actors.num_gpus, self.model.device
        if (num_gpus and device == "cpu") or (num_gpus == 0 and device.startswith("cuda")):
            raise ValueError(
                f"actors.num_gpus is {num_gpus:g}, but model.device is {device!r}; leave one of them at its default"
            )
        return self

    @model_validator(mode="after")
    def _isolated_items_share_nothing(self) -> Self:
        if self.execution == "isolated" and self.items_at_once not in ("auto", 1):
            raise ValueError(
                f"items_at_once is {self.items_at_once}, but isolated rows share nothing; leave it at its default, or "
                "set execution: fused"
            )
        return self

    @property
    def variants(self) -> tuple[VariantSpec, ...]:
        """The wanted variants in the order of the file, `full` included where it is listed."""
        return tuple(parse_policies(self.policies))

    @property
    def tracking_uri(self) -> str:
        """Where MLflow keeps its runs: the URI of the settings, or `mlflow.db` beside the results' folder."""
        return self.tracking.uri or sqlite_uri(self.output_dir.parent / "mlflow.db")


# Every section by its path, so that an unknown key is compared with the keys of its own section.
_SECTIONS: dict[tuple[str, ...], type[BaseModel]] = {
    (): Settings,
    ("actors",): ActorSettings,
    ("gate",): GateSettings,
    ("gate", "margins"): MarginSettings,
    ("model",): ModelSettings,
    ("tasks",): TaskSettings,
    ("tracking",): TrackingSettings,
}


def load_settings(
    path: Path | str = DEMO_CONFIG, overrides: Sequence[str] = (), limit: int | None = None
) -> Settings:
    """Read a YAML file, put in `key.key=value` overrides, and check the whole.

    `limit` sets every task's number of items. Relative paths to data are looked for beside the file first,
    then in the current folder. Shipped settings are found by their bare name.

    Raises:
        SettingsError: a file, key or value that is missing, unknown or unusable, with the nearest valid name.
    """
    path = settings_file(Path(path).expanduser())  # a shell expands no ~ behind an "="
    # Before the overrides too: `--set model.dtype=…` changes a `model: NAME` of the file.
    raw = written_out(apply_overrides(written_out(read_settings_file(path)), overrides))
    if "output_dir" not in raw and isinstance(name := raw.get("name"), str):
        # Of its own, so that two files without one do not share a folder. A name may hold what no folder's can.
        raw["output_dir"] = str(Path("results") / re.sub(r"[^\w.-]", "_", name).strip("."))
    if limit is not None and isinstance(raw.get("tasks"), list):
        raw["tasks"] = [_limited(task, limit) for task in raw["tasks"]]
    try:
        settings = Settings.model_validate(raw, context={"base_folder": path.absolute().parent})
    except ValidationError as error:
        raise SettingsError(
            explain(error, _SECTIONS, str(path), [path_of(it) for it in overrides])
        ) from error
    # Here, not where it is asked for: what is stored with the results must say where this run went.
    asked = settings.tracking
    tracking = asked.model_copy(update=stand_ins(asked.uri, asked.experiment, asked.experiment_id))
    return settings.model_copy(update={"tracking": tracking})


def _limited(task: Any, limit: int) -> Any:
    task = _named(task)
    return {**task, "limit": limit} if isinstance(task, dict) else task


def _named(task: Any) -> Any:
    """A bare word is a task's name, or a file of the user's own rows."""
    if not isinstance(task, str):
        return task
    is_own = is_rows_file(task) or is_address(task)
    return {"name": ROWS_TASK, "data": task} if is_own else {"name": task}


def _folders(info: ValidationInfo) -> list[Path]:
    """Where relative paths are looked for: beside the settings file first, then in the current folder."""
    beside = (info.context or {}).get("base_folder", Path.cwd())
    return list(dict.fromkeys((Path(beside), Path.cwd())))


def _existing(path: Path, info: ValidationInfo) -> Path | None:
    """The absolute path, or None if there is no such file or folder."""
    for folder in _folders(info):
        # OSError: a name too long for any file, or inside a folder that must not be read.
        with contextlib.suppress(OSError, PathError):
            candidate = folder / local_path(path)
            if candidate.exists():
                return candidate.resolve()
    return None

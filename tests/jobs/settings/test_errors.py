"""A mistake is one line: where it was written, its key, the value that came and what would be right."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from jobs.settings.errors import SettingsError
from jobs.settings.schema import _SECTIONS, Settings, load_settings
from tests.fakes.settings import MINIMAL, refused, write

AN_ITEM_COUNT = "items_at_once: 'auto' or a whole number from 1 on, got "


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("items_at_once=0", f"{AN_ITEM_COUNT}0"),
        ("items_at_once=many", f"{AN_ITEM_COUNT}'many'"),
        ("items_at_once=true", f"{AN_ITEM_COUNT}True"),
        ("policies=[]", "policies: at least one is needed, got []; `sweep.py ls policies` shows all"),
        ("tasks=[]", "tasks: at least one is needed, got []; `sweep.py ls tasks` shows all"),
        ("gate.policies=[]", "gate.policies: at least one is needed, got []"),
        ("policies=7", "policies: should be names, or a list, got 7"),
        ("policies=knorm", "policies: policy 'knorm' needs a budget, such as `knorm@0.5`"),
        ("tasks=ruler/vt", "tasks: should be a list, got 'ruler/vt'; write [ruler/vt]"),
        ("name=2026-11-30", "name: should be text, got 2026-11-30; put it in quotes"),
        ("tracking=somewhere", "tracking: should be `off`, an address, or keys and values, got 'somewhere'"),
        ("policies=[7]", "policies: a policy entry is a name or a mapping with `name`, got 7"),
        (
            "policies=[{name: knorm, 7: x}]",
            "policies: policy 'knorm': keys are words, got {'name': 'knorm', 7: 'x'}",
        ),
        ("model=7", "model: should be a name, or keys and values, got 7"),
        ("actors=true", "actors: should be a number of actors, or keys and values, got True"),
        ("actors.num_cpus=two", "actors.num_cpus: should be a number, got 'two'"),
        ("seed=2.5", "seed: should be a whole number, got 2.5"),
        ("seed=null", "seed: should be a whole number, got None; leave the key out for its default"),
        ("tasks=null", "tasks: should be a list, got None"),
        ("tracking.enabled=perhaps", "tracking.enabled: should be true or false, got 'perhaps'"),
        ("tasks.0.data=1", "tasks.0.data: should be text, got 1; put it in quotes"),
        ("name=''", "name: should be text of at least one letter, got ''"),
        (
            "tasks.0.name=nothing_like_it",
            "tasks.0.name: there is no task 'nothing_like_it'; `sweep.py ls tasks` shows all",
        ),
        (
            f"tasks.0.name={'x' * 300}",
            f"tasks.0.name: there is no task '{'x' * 300}'; `sweep.py ls tasks` shows all",
        ),
        ("tasks.0.data=/nope.txt", "tasks.0.data: no such file or folder: '/nope.txt'"),
    ],
)
def test_one_mistake_is_one_line_in_a_users_words(tmp_path: Path, override: str, told: str) -> None:
    assert refused(tmp_path, overrides=(override,)) == f"--set {told}"


WRONG_VALUES = ("0", "-1", "2.5", ".nan", "word", "[]", "[1]", "{a: 1}", "{1: 1}", "null", "true", "''")
PYTHONS_WORDS = (
    "valid",
    "Input",
    "instance",
    "tuple",
    "Tuple",
    "String",
    "constrained",
    "literal",
    "dict",
    "class",
)


@pytest.mark.parametrize("model", list(_SECTIONS.values()), ids=lambda model: model.__name__)
def test_no_field_is_refused_in_pythons_words(tmp_path: Path, model: type[BaseModel]) -> None:
    section = next(".".join(path) for path, it in _SECTIONS.items() if it is model).replace(
        "tasks", "tasks.0"
    )
    for field in model.model_fields:
        for value in WRONG_VALUES:
            override = f"{section}.{field}={value}"
            try:
                load_settings(write(tmp_path), (override,))
            except SettingsError as error:
                told = str(error).replace(str(tmp_path), "")
                assert not [word for word in PYTHONS_WORDS if word in told], (override, told)


def test_a_mistake_is_told_of_the_place_it_was_written_in(tmp_path: Path) -> None:
    file = str(tmp_path / "sweep.yaml")
    assert refused(tmp_path, MINIMAL + "seed: -1\n", ("sead=1", "tasks.0.limit=0")).splitlines() == [
        "--set tasks.0.limit: should be greater than 0, got 0",
        f"{file}: seed: should be greater than or equal to 0, got -1",
        "--set: unknown key 'sead' (did you mean 'seed'?); known here: "
        + ", ".join(sorted(Settings.model_fields)),
    ]
    part = refused(tmp_path, overrides=("policies.1.budget=0",))
    assert part.startswith(f"{file} with --set policies.1.budget: policies: budget 0 is none of")


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, overrides=("sead=1", "tasks.0.limit=0"))
    assert "sead" in message and "limit" in message

"""A calibration writes a table that its own model runs, other models refuse, and its own contexts are not judged by."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.calibrate import main, mean_errors
from jobs.planning.preparation import prepare
from jobs.settings.schema import load_settings
from kvmerger.bits_table import checked, read_table
from kvmerger.names import VariantError
from tests.fakes.model_folders import save_model_folder

CALIBRATING = 2


@pytest.fixture
def given(tmp_path: Path) -> Callable[..., list[str]]:
    save_model_folder(tmp_path / "model")
    rows = [
        {
            "context": f"the magic number is {421 + 42 * (index // 2)}.",
            "question": f"which {index}?",
            "answers": ["4"],
        }
        for index in range(6)
    ]
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def settings(policies: str) -> list[str]:
        tasks = f"[{{name: file/rows, data: {tmp_path / 'my.jsonl'}}}]"
        text = f"model: {tmp_path / 'model'}\ntasks: {tasks}\npolicies: {policies}\nexecutor: inline\n"
        path = tmp_path / "sweep.yaml"
        path.write_text(text, encoding="utf-8")
        return [str(path)]

    return settings


def test_what_it_writes_is_run_by_its_model_and_not_judged_on_its_own_contexts(
    tmp_path: Path, given: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tables" / "t.json"
    arguments = ["kvtuner", *given("[no_such_policy@0.5]"), "--mean-bits", "4.5", "--out", str(out)]
    assert main([*arguments, "--contexts", str(CALIBRATING)]) == 0
    told = capsys.readouterr().out
    table = checked(read_table(out))
    assert table.content_hash[:8] in told and f"{CALIBRATING} contexts" in told and "uniform" in told
    assert len(table.items) == CALIBRATING and table.mean_bits <= 4.5
    first = out.read_bytes()
    assert main([*arguments, "--contexts", str(CALIBRATING)]) == 0 and out.read_bytes() == first

    (config,) = given(f"[{{name: kvtuner, table: {out}}}, {{name: knorm@0.5+kvtuner, table: {out}}}, int4]")
    plan = prepare(load_settings(config), frozenset(), lambda: "cpu").plan
    refused = {(row.key.label, row.item.context) for row in plan.impossible}
    calibrated = {f"the magic number is {421 + 42 * index}." for index in range(CALIBRATING)}
    assert refused == {
        (label, context) for label in ("kvtuner", "knorm@0.5+kvtuner") for context in calibrated
    }
    assert len(plan.impossible) == 2 * 2 * CALIBRATING
    assert all("calibrated on this context" in str(row.impossible_reason) for row in plan.impossible)

    # Another model of the same depth.
    folder = tmp_path / "model" / "config.json"
    folder.write_text(folder.read_text() + "\n")
    with pytest.raises(VariantError, match=r"'kvtuner': the table is of .* and the model is at files-"):
        prepare(load_settings(config), frozenset(), lambda: "cpu")


def test_errors_are_means_over_contexts() -> None:
    one, other = [{(8, 8): 1.0, (4, 4): 2.0}], [{(8, 8): 3.0, (4, 4): 5.0}]
    assert mean_errors([one, other]) == [{(8, 8): 2.0, (4, 4): 3.5}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "t.json", "--set", "tasks=[no/such]"], "no/such"),
        (["--out", "t.json", "no_such_file.yaml"], "no_such_file.yaml"),
        (["--out", "t.json", "--mean-bits", "1.5"], "'1.5' is not a number from 2 to 8"),
        (["--out", "t.json", "--mean-bits", "four"], "'four' is not a number from 2 to 8"),
        (["--out", "t.json", "--contexts", "0"], "'0' is not a whole number"),
        ([], "--out"),
    ],
)
def test_what_it_cannot_do_is_a_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["kvtuner", *arguments])
    except SystemExit as error:  # argparse's
        code = error.code  # type: ignore[assignment]
    err = capsys.readouterr().err
    assert code == 2 and message in err and "Traceback" not in err

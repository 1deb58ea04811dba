"""What a driver finds out before any work: here, which device it plans for."""

from pathlib import Path

import pytest

from jobs.config import load_settings
from jobs.preparation import prepare
from jobs.results import ResultStore
from tests.jobs.sweep_fakes import save_data, save_settings, save_tiny_model


@pytest.mark.parametrize(
    ("overrides", "device", "dtype"),
    [
        (["actors.num_gpus=0.5"], "cuda", "bfloat16"),  # the actors have a GPU, whatever this machine has
        (["model.device=cpu"], "cpu", "float32"),
    ],
)
def test_actors_that_ask_for_a_gpu_decide_what_auto_means(
    tmp_path: Path, overrides: list[str], device: str, dtype: str
) -> None:
    model = save_tiny_model(tmp_path / "model")
    config = save_settings(tmp_path, model, save_data(tmp_path / "data", 2))
    settings = load_settings(config, ["executor=ray", *overrides])
    prepared = prepare(settings, ResultStore(settings.output_dir))
    assert (prepared.model.device, prepared.model.dtype) == (device, dtype)

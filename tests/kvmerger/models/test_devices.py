"""A device that does not exist is told before anything is loaded."""

from pathlib import Path

import pytest
import torch

from kvmerger.models.devices import chosen_device
from kvmerger.models.errors import ModelError


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.parametrize("is_run_here", [True, False])
@pytest.mark.parametrize(
    ("device", "meant"),
    [
        ("gpu", "cuda"), ("GPU", "cuda"), ("CUDA", "cuda"), ("0", "cuda:0"), ("1", "cuda:1"), ("Cuda:1 ", "cuda:1"),
        ("CPU", "cpu"), ("metal", "mps"), ("xpu", None),
         ("cuda:", None), ("cuda:-1", None), ("cuda:1.0", None), ("meta", None), ("", None),
        ("cpu:0", None), ("cuda0", None),
    ],
)  # fmt: skip
def test_a_name_that_torch_would_stumble_over_is_refused(
    device: str, meant: str | None, is_run_here: bool
) -> None:
    with pytest.raises(ModelError, match="is none of auto, cpu, cuda, cuda:N and mps") as raised:
        chosen_device(device, is_run_here=is_run_here)
    assert str(raised.value).endswith(f"did you mean {meant!r}?" if meant else "and mps")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device", "chosen"), [("auto", "cuda"), ("cuda", "cuda"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)  # fmt: skip
def test_devices_that_are_there_are_taken(device: str, chosen: str) -> None:
    assert chosen_device(device) == chosen


@pytest.mark.usefixtures("two_gpus")
def test_a_number_beyond_the_last_gpu_is_refused() -> None:
    with pytest.raises(
        ModelError, match="device 'cuda:2' was asked for, but the last that torch sees is 'cuda:1'"
    ):
        chosen_device("cuda:2")
    assert chosen_device("cuda:2", is_run_here=False) == "cuda:2"


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_where_there_is_none_is_refused_here_and_planned_for_elsewhere() -> None:
    assert chosen_device("auto") == "cpu"
    for device in ("cuda", "cuda:0"):
        with pytest.raises(ModelError, match="torch sees no CUDA device; use `device: auto` or `cpu`"):
            chosen_device(device)
        assert chosen_device(device, is_run_here=False) == device


def test_apples_gpu_is_taken_where_torch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert chosen_device("mps") == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ModelError, match="no Apple GPU"):
        chosen_device("mps")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("variable", "value"),
    [("TRITON_CACHE_DIR", "/proc/none"), ("TRITON_HOME", "/proc/none"), ("HOME", "/proc/none")],
)
@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_kernels_that_cannot_be_kept_are_told_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, device: str
) -> None:
    for name in ("TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ModelError, match=r"GPU kernels cannot be kept .*; set TRITON_CACHE_DIR"):
        chosen_device(device)
    assert chosen_device("cpu") == "cpu"
    assert chosen_device("cuda", is_run_here=False) == "cuda"

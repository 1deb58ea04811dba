"""A device has one name for its kind, on every machine that has such a one, and none where nobody says it."""

from pathlib import Path

import pytest
import torch

from kvmerger.device import _linux_processor, device_name

X86 = (
    "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\ncpu MHz\t\t: {mhz}\n"
    "\nprocessor\t: 1\nmodel name\t: AMD EPYC\n"
)
ARM = "processor\t: 0\nBogoMIPS\t: {mhz}\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (X86, "AMD EPYC, cpu family 26, model 2"),
        (ARM, "CPU implementer 0x41, CPU part 0xd40"),
        ("", None),
        ("processor\t: 0\n", None),
    ],
)
def test_a_processor_has_the_same_name_at_any_clock(tmp_path: Path, cpuinfo: str, name: str | None) -> None:
    file = tmp_path / "cpuinfo"
    for mhz in ("2596.120", "3100.000"):
        file.write_text(cpuinfo.format(mhz=mhz))
        assert _linux_processor(file) == name


def test_without_a_source_nobody_knows_the_name(tmp_path: Path) -> None:
    assert _linux_processor(tmp_path / "absent") is None


def test_a_gpu_is_called_as_torch_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA H200 of {device.index}")
    assert device_name(torch.device("cuda", 3)) == "NVIDIA H200 of 3"

"""What a folder holds beside its configuration that would have another model evaluated: known before weights are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvmerger.models.errors import ModelError, first_line
from kvmerger.models.weight_files import check_scales, check_weights


def check_files(name: str, config: Any, folder: Path, files: Sequence[Path]) -> None:
    """Raise `ModelError` unless ``files`` are whole and nothing in ``folder`` would change or lose a part of the model.

    Args:
        config: the transformers configuration.
        folder: the model's own; for a hub id there is none.
        files: the weight files that transformers reads; [] where they are not here yet.
    """
    if (folder / "adapter_config.json").is_file():
        # transformers puts the adapter on the weights where `peft` is installed, and silently does not where it is not.
        raise ModelError(
            f"model folder {folder} has an adapter (adapter_config.json), which is put on the weights on some machines and "
            f"not on others; merge it into the weights, or take its files away"
        )
    _check_generation_config(folder / "generation_config.json")
    if not files:
        return
    if is_quantised(config):
        check_scales(name, _method(config.quantization_config), files)
    else:
        check_weights(name, config, files)


def is_quantised(config: Any) -> bool:
    """Whether ``config`` says that the weights are codes, which a library of its own makes numbers of."""
    return getattr(config, "quantization_config", None) is not None


def check_quantisation(name: str, config: Any, *, is_run_here: bool) -> None:
    """Raise `ModelError` where a quantised model lacks what it is read with: a library, or a GPU on this machine."""
    if not is_quantised(config):
        return
    from transformers.quantizers import AutoHfQuantizer

    method = _method(config.quantization_config)
    try:
        quantiser = AutoHfQuantizer.from_config(config.quantization_config, pre_quantized=True)
        quantiser.validate_environment(device_map=None, weights_only=True)
    except (ImportError, ValueError) as error:
        raise ModelError(_not_read(name, method, error)) from error
    # Each method has its own way to ask for a GPU, which may be another machine's.
    except Exception as error:
        if is_run_here:
            raise ModelError(_not_read(name, method, error)) from error


def _not_read(name: str, method: str, error: Exception) -> str:
    return (
        f"model {name!r} is quantised ({method}), which cannot be read here; give the folder of the plain weights, or "
        f"install what it asks for ({first_line(error)})"
    )


def _method(quantisation: Any) -> str:
    named = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation.quant_method
    return str(getattr(named, "value", named))


def _check_generation_config(file: Path) -> None:
    """transformers goes on without a generation config that it cannot read, and with it go the tokens that end an answer."""
    if not file.is_file():
        return
    try:
        is_sound = isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except ValueError:
        is_sound = False
    if not is_sound:
        raise ModelError(
            f"{file} is broken, and with it the tokens that end an answer; get it again or take it away"
        )

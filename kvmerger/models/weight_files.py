"""The tensors of a model's weight files against those that its configuration asks for, known from the files' headers.

transformers fills what is missing with random numbers and leaves out what is too much: such a model runs, and every number of
it is wrong. So nothing may be missing, surplus or of another shape, neither in the headers nor when the weights are loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from kvmerger.models.errors import ModelError, readable_errors

# In the order in which transformers looks for them: it reads the first that it finds, and no other beside it.
FILE_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# As safetensors spells what a plain model's tensors are. Integers and 8-bit floats are codes that need scales to be numbers.
_PLAIN_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_NAMES = 3


def weight_files(folder: Path) -> list[Path]:
    """The files of ``folder`` that transformers reads weights from, by name; [] where there are none.

    Raises:
        ModelError: an index names files that are not there.
    """
    found = next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)
    if found is None:
        return []
    if found.suffix != ".json":
        return [found]
    try:
        names = sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{found} is not the index of a model's weight files; get it again") from error
    lacking = [name for name in names if not (folder / name).is_file()]
    if lacking:
        raise ModelError(
            f"model folder {folder} lacks {len(lacking)} of {len(names)} weight files: {_shown(lacking)}; get them again"
        )
    return [folder / name for name in names]


def check_weights(name: str, config: Any, files: Sequence[Path]) -> None:
    """Raise `ModelError` unless ``files`` hold each tensor that a model of ``config`` has, in its shape, and no other.

    Reads headers only, and takes no memory for weights. ``config`` is a transformers configuration without quantisation.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    tensors: dict[str, Tensor] = {}
    with readable_errors(name):
        for file in files:
            tensors.update(_headers(name, file))
        # transformers' own loading of tensors without storage: it knows which names an older file spells otherwise, which are
        # tied, and which are rightly absent.
        with without_progress_bar(), _without_report():
            _, found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                device_map="meta",
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    refuse_differences(name, found, len(tensors))


def refuse_differences(name: str, found: Mapping[str, Any], num_tensors: int | None = None) -> None:
    """Raise `ModelError` if transformers' loading info tells of any tensor that is missing, surplus or of another shape."""
    missing, surplus = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    shapes = [
        f"{key} is {list(theirs)}, not {list(ours)}" for key, theirs, ours in sorted(found["mismatched_keys"])
    ]
    other = [str(message) for message in found.get("error_msgs") or ()]
    problems = [
        f"{len(names)} {word}: {_shown(names)}"
        for word, names in (
            ("missing", missing), ("surplus", surplus), ("of another shape", shapes), ("unreadable", other),
        )
        if names
    ]  # fmt: skip
    if problems:
        of = f" of its files' {num_tensors} tensors" if num_tensors else " of its files' tensors"
        raise ModelError(
            f"model {name!r} is not what its config.json describes:{of} are {'; '.join(problems)}. Get its files again, or "
            f"the configuration that belongs to them"
        )


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Without transformers' bar, which breaks into our own and into logs."""
    from transformers.utils import logging

    had_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if had_bar:
            logging.enable_progress_bar()


@contextmanager
def _without_report() -> Iterator[None]:
    """Without transformers' table of tensors that differ, which we tell as an error."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _headers(name: str, file: Path) -> dict[str, Tensor]:
    """The file's tensors on the meta device, which holds shapes and no numbers."""
    if file.suffix == ".safetensors":
        shapes: dict[str, Tensor] = {}
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - `opened` is no mapping
                tensor = opened.get_slice(key)
                if tensor.get_dtype() not in _PLAIN_DTYPES:
                    raise _no_plain_number(name, file, key, tensor.get_dtype())
                shapes[key] = torch.empty(
                    tensor.get_shape(), dtype=_PLAIN_DTYPES[tensor.get_dtype()], device="meta"
                )
        return shapes
    tensors = torch.load(file, map_location="meta", weights_only=True)
    if not isinstance(tensors, Mapping) or not all(isinstance(it, Tensor) for it in tensors.values()):
        raise ModelError(f"model {name!r}: {file.name} holds no named tensors; get it again")
    for key, tensor in tensors.items():
        if tensor.dtype not in _PLAIN_DTYPES.values():
            raise _no_plain_number(name, file, key, tensor.dtype)
    return dict(tensors)


def _no_plain_number(name: str, file: Path, key: str, dtype: object) -> ModelError:
    return ModelError(
        f"model {name!r}: {key} in {file.name} is {dtype}, while config.json says nothing of quantisation; "
        f"give the folder of the plain weights"
    )


def _shown(names: Iterable[str]) -> str:
    several = list(names)
    more = f" and {len(several) - _MAX_NAMES} more" if len(several) > _MAX_NAMES else ""
    return ", ".join(several[:_MAX_NAMES]) + more

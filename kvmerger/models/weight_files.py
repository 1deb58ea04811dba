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
INDEX = FILE_NAMES[1]
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
    names = sorted(set(_weight_map(found).values()))
    lacking = [name for name in names if not (folder / name).is_file()]
    if lacking:
        raise ModelError(
            f"model folder {folder} lacks {len(lacking)} of {len(names)} weight files: {_shown(lacking)}; get them again"
        )
    return [folder / name for name in names]


def _weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(key): str(file) for key, file in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is not the index of a model's weight files; get it again") from error


def check_weights(name: str, config: Any, files: Sequence[Path]) -> None:
    """Raise `ModelError` unless ``files`` hold each tensor that a model of ``config`` has, in its shape, and no other.

    Reads headers only, and takes no memory for weights. ``config`` is a transformers configuration without quantisation.
    """
    tensors: dict[str, Tensor] = {}
    with readable_errors(name):
        for file in files:
            tensors.update(_headers(name, file))
        found = _loaded_without_numbers(config, tensors)
    refuse_differences(name, found, len(tensors))


def check_index(name: str, config: Any, index: Path) -> None:
    """Raise `ModelError` unless the index names each tensor that a model of ``config`` has, and no other.

    For files that are not here yet: it says nothing of shapes. ``config`` is as of `check_weights`.
    """
    with readable_errors(name):
        tensors = {key: torch.empty(0, device="meta") for key in _weight_map(index)}
        found = _loaded_without_numbers(config, tensors)
    refuse_differences(name, {**found, "mismatched_keys": (), "error_msgs": ()}, len(tensors))


def _loaded_without_numbers(config: Any, tensors: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """What transformers says of loading ``tensors``, which have no storage, into a model of ``config``."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    # Its own loading: it knows which names an older file spells otherwise, which are tied, and which are rightly absent.
    with without_progress_bar(), _without_report():
        _, found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            device_map="meta",
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return found


def check_scales(name: str, method: str, files: Sequence[Path]) -> None:
    """Raise `ModelError` where an 8-bit float weight has no scale beside it: its codes would be taken for numbers.

    Reads headers only. ``method`` is what config.json calls the quantisation.
    """
    with readable_errors(name):
        dtypes = {key: str(dtype) for file in files for key, _, dtype in _read_header(name, file)}
    # As safetensors spells them, and as torch does for a .bin file.
    codes = [key for key, dtype in dtypes.items() if dtype.startswith(("F8_", "torch.float8_"))]
    scales = {key.rpartition(".")[0] for key in dtypes if _is_scale_of_a_weight(key.rpartition(".")[2])}
    bare = sorted(key for key in codes if key.rpartition(".")[0] not in scales)
    if bare:
        raise ModelError(
            f"model {name!r} is quantised ({method}), and {len(bare)} of its {len(codes)} tensors of 8-bit floats have no "
            f"scale beside them: {_shown(bare)}; get its files again, or give the folder of the plain weights"
        )


def _is_scale_of_a_weight(leaf: str) -> bool:
    # weight_scale, weight_scale_inv, _weight_scale; not input_scale, k_scale or v_scale, which are of activations.
    return "weight" in leaf and "scale" in leaf


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
    tensors: dict[str, Tensor] = {}
    for key, shape, dtype in _read_header(name, file):
        plain = dtype if isinstance(dtype, torch.dtype) else _PLAIN_DTYPES.get(dtype)
        if plain not in _PLAIN_DTYPES.values():
            raise ModelError(
                f"model {name!r}: {key} in {file.name} is {dtype}, while config.json says nothing of quantisation; "
                f"give the folder of the plain weights"
            )
        tensors[key] = torch.empty(shape, dtype=plain, device="meta")
    return tensors


def _read_header(name: str, file: Path) -> Iterator[tuple[str, Sequence[int], str | torch.dtype]]:
    """Name, shape and dtype (safetensors' word for it, or torch's own) of each tensor in the file."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - `opened` is no mapping
                tensor = opened.get_slice(key)
                yield key, tensor.get_shape(), tensor.get_dtype()
        return
    tensors = torch.load(file, map_location="meta", weights_only=True)
    if not isinstance(tensors, Mapping) or not all(isinstance(it, Tensor) for it in tensors.values()):
        raise ModelError(f"model {name!r}: {file.name} holds no named tensors; get it again")
    for key, it in tensors.items():
        yield key, it.shape, it.dtype


def _shown(names: Iterable[str]) -> str:
    several = list(names)
    more = f" and {len(several) - _MAX_NAMES} more" if len(several) > _MAX_NAMES else ""
    return ", ".join(several[:_MAX_NAMES]) + more

"""Where a model comes from and whether its attention is one we reproduce exactly: known before any weights are read."""

from __future__ import annotations

import hashlib
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache

from kvmerger.models import demo
from kvmerger.models.devices import chosen_device
from kvmerger.models.errors import SUPPORTED_MODEL_TYPES, ModelError, ModelWarning, readable_errors
from kvmerger.models.folder import check_files, check_quantisation, is_quantised
from kvmerger.models.weight_files import FILE_NAMES, INDEX, check_index, weight_files

# "dynamic" and "longrope" recompute frequencies from the largest position, so keys of one prompt would not fit another.
SUPPORTED_ROPE_TYPES = ("default", "llama3", "linear", "yarn")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Blocks spread over a weight file tell two models apart without reading gigabytes.
_FINGERPRINT_BLOCKS, _FINGERPRINT_BLOCK_BYTES = 64, 2**14


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a plan and a result row need to know of a model. ``weight_bytes`` counts the files on disk, 0 if unknown."""

    name: str
    revision: str
    model_type: str
    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    dtype: str
    device: str
    weight_bytes: int

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values one token takes in the uncompressed cache, all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * DTYPES[self.dtype].itemsize

    @property
    def attention(self) -> str:
        """Who computes attention over compressed caches on this machine: "triton" or "torch"."""
        from kvmerger.kernels.dispatch import backend_name

        return backend_name(self.device, self.head_dim, DTYPES[self.dtype])


def load_info(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    is_run_here: bool = True,
) -> ModelInfo:
    """Read and check the configuration of ``name`` without its weights. Same arguments and errors as `load_model`.

    With ``is_run_here=False`` another machine has the device, so this one need not have it.
    """
    source = model_source(name, with_weights=False)
    config = read_config(name, revision=revision)
    check_config(name, config)
    if getattr(config, "auto_map", None):
        warnings.warn(
            f"model {name!r} comes with code of its own (auto_map), which is never run: it is evaluated as transformers' "
            f"{config.model_type}",
            ModelWarning,
            stacklevel=2,
        )
    device_name = chosen_device(device, is_run_here=is_run_here)
    check_quantisation(name, config, is_run_here=is_run_here)
    if dtype not in ("auto", *DTYPES):
        raise ModelError(f"dtype {dtype!r} is none of auto, {', '.join(DTYPES)}")
    dtype_name = ("bfloat16" if device_name.startswith("cuda") else "float32") if dtype == "auto" else dtype
    folder = Path(source)
    snapshot = None if folder.is_dir() else _snapshot(source, revision)
    files = weight_files(folder) if folder.is_dir() else _downloaded_files(name, revision, config, snapshot)
    check_files(name, config, folder, files)
    # Not always hidden size ÷ heads: Qwen3 names its own, and older configurations name none.
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelInfo(
        name=name,
        revision=_revision(name, revision, snapshot, folder),
        model_type=config.model_type,
        num_layers=config.num_hidden_layers,
        num_query_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        max_positions=min(
            config.max_position_embeddings, sliding_window(config) or config.max_position_embeddings
        ),
        dtype=dtype_name,
        device=device_name,
        weight_bytes=sum(file.stat().st_size for file in files),
    )


def read_config(name: str, *, revision: str | None = None) -> Any:
    """The transformers configuration of ``name``, of a family that we support. Code that comes with a model is never run.

    Raises:
        ModelError: it cannot be read, or is of another family.
    """
    from transformers import AutoConfig, PreTrainedConfig

    source = model_source(name, with_weights=False)
    with readable_errors(name):
        said, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
        model_type, has_code = said.get("model_type"), bool(said.get("auto_map"))
    # Before transformers looks at it: without a type it guesses one from the folder's name, and for an unknown one with code
    # it asks on the terminal whether to run that.
    _check_family(name, model_type, has_code)
    with readable_errors(name):
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)


def check_config(name: str, config: Any) -> None:
    """Raise `ModelError` unless ``config`` (a transformers config) is one whose attention we reproduce exactly."""
    _check_family(name, config.model_type)
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"} and not _is_uniform_sliding(config, layer_types):
        raise ModelError(
            f"model {name!r} mixes attention kinds {sorted(layer_types)}; only full attention is supported"
        )
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in SUPPORTED_ROPE_TYPES:
        raise ModelError(
            f"model {name!r} uses rope_type {rope_type!r}, whose frequencies depend on the prompt's length; supported are "
            f"{', '.join(SUPPORTED_ROPE_TYPES)}"
        )


def _check_family(name: str, model_type: str | None, has_code: bool = False) -> None:
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise ModelError(
            f"model {name!r} is {f'a {model_type!r}' if model_type else 'of no type (config.json has no model_type)'}"
            f"{' with code of its own (auto_map), which is never run' if has_code else ''}; supported are "
            f"{', '.join(SUPPORTED_MODEL_TYPES)}: families with plain full attention in every layer"
        )


def _is_uniform_sliding(config: Any, layer_types: set[str]) -> bool:
    """One window in every layer is full attention for prompts shorter than it; `max_positions` enforces that."""
    return layer_types == {"sliding_attention"} and sliding_window(config) is not None


def sliding_window(config: Any) -> int | None:
    """The window of ``config``, or None where none is in use."""
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None)


def model_source(name: str, *, with_weights: bool) -> str:
    """What to hand to ``from_pretrained``: a checked folder, or the hub id."""
    if name == demo.NAME:
        try:
            return str(demo.demo_folder(with_weights=with_weights))
        except demo.DemoModelError as error:
            raise ModelError(str(error)) from error
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model folder {folder} has no config.json")
        if not weight_files(folder):
            raise ModelError(f"model folder {folder} has no weights; one of {', '.join(FILE_NAMES)} is read")
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"model folder {name!r} does not exist")
    return name


def _snapshot(hub_id: str, revision: str | None) -> Path | None:
    """The folder in the hub's cache that the configuration of ``hub_id`` was just read from; its name is the commit."""
    cached = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None


def _downloaded_files(name: str, revision: str | None, config: Any, snapshot: Path | None) -> list[Path]:
    """The weight files of a hub id that are here already; [] before they are downloaded, or while some are missing.

    Raises:
        ModelError: they are not here, and their index says that they are not those of ``config``.
    """
    with suppress(ModelError):
        if snapshot is not None and (files := weight_files(snapshot)):
            return files
    # A small file beside the weights: with it, the wrong ones need not be downloaded to be known.
    if not is_quantised(config) and (index := _index(name, revision)) is not None:
        check_index(name, config, index)
    return []


def _index(hub_id: str, revision: str | None) -> Path | None:
    """The list of a hub id's safetensors, a small file that is downloaded for it; None where there is none, or no network."""
    from transformers.utils import cached_file

    path = cached_file(
        hub_id,
        INDEX,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


def _revision(name: str, revision: str | None, snapshot: Path | None, folder: Path) -> str:
    if name == demo.NAME:
        return f"gguf-{demo.GGUF_SHA256[:12]}"
    if not folder.is_dir():
        # Not from the configuration: some versions of transformers do not say there which commit it is of.
        return snapshot.name if snapshot is not None else revision or "unknown"
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.json")):  # configuration, end tokens, tokenizer
        digest.update(file.name.encode() + file.read_bytes())
    # Names and sizes, so that shards cannot be swapped, and blocks from the first byte to the last.
    for file in weight_files(folder):
        digest.update(f"{file.name}:{file.stat().st_size}:".encode())
        with file.open("rb") as stream:
            for block in range(_FINGERPRINT_BLOCKS):
                last_start = max(0, file.stat().st_size - _FINGERPRINT_BLOCK_BYTES)
                stream.seek(last_start * block // (_FINGERPRINT_BLOCKS - 1))
                digest.update(stream.read(_FINGERPRINT_BLOCK_BYTES))
    return f"files-{digest.hexdigest()[:12]}"

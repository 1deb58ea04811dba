"""The seam into transformers: every layer's attention call lands in a handler of ours, with q, k and v after RoPE.

The model is called with ``use_cache=False``, explicit ``position_ids`` and the handler as a forward keyword. Nothing in
transformers is patched or subclassed; without a handler the call fails instead of computing something else. A decoder that
`fast_decoder` computes calls the handler without transformers in between.

Shapes: B rows, T tokens, E hidden size, Q query heads, H KV heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

ATTENTION_NAME = "kvmerger"
HANDLER_KEYWORD = "kv_handler"


class SeamError(RuntimeError):
    """The model asked attention for something this project does not support; the numbers would be wrong."""


class AttentionHandler(Protocol):
    """Whoever answers the attention calls of one forward pass."""

    def attend(
        self, layer_index: int, q_BQTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scaling: float
    ) -> Tensor:
        """Attention output (B, T, Q, D) of one layer; k and v are those of the new tokens only."""


InputWatch = Callable[[Tensor, nn.Module, Tensor], None]
"""Gets what goes into a layer's attention (B, T, E), the attention module, and the residual stream that the layer starts from
(B, T, E), right before the handler is asked. The stream is changed in place afterwards."""


@contextmanager
def watching_inputs(layers: Sequence[nn.Module], watch: InputWatch) -> Iterator[None]:
    """Inside, ``watch`` is told by transformers' modules themselves; reads only, and leaves no hook behind."""
    residual: list[Tensor] = []

    def note_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        residual[:] = [_hidden_states(args, kwargs)]

    def note_attention(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        watch(_hidden_states(args, kwargs), module, residual.pop())

    # Pre-hooks, since `attend` is asked inside the module and must find what went in already noted.
    hooks = [
        module.register_forward_pre_hook(note, with_kwargs=True)  # type: ignore[union-attr]
        for layer in layers
        for module, note in ((layer, note_layer), (layer.self_attn, note_attention))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    found: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return found


def register_attention() -> None:
    """Make the seam selectable as ``attn_implementation="kvmerger"``. Calling it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, _attention_forward)


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    # `dropout` before `scaling`, as in transformers' sdpa and flash attention: kvpress, when it is imported, wraps every
    # registered attention function in one that hands on the first six arguments by position, and this one too.
    handler: AttentionHandler | None = kwargs.pop(HANDLER_KEYWORD, None)
    if handler is None:
        raise SeamError(
            f"attention was called without a handler; run this model through kvmerger.engine.engine.Engine ({module})"
        )
    # transformers hands custom attention names no mask, so a mask can only mean padding that would be ignored.
    if attention_mask is not None:
        raise SeamError("attention masks are not supported: rows are never padded here")
    for name in ("sliding_window", "softcap", "s_aux"):
        limit = kwargs.get(name)
        if limit is not None and not (name == "sliding_window" and _holds_all(limit, module, kwargs)):
            raise SeamError(
                f"attention argument {name}={limit!r} is not supported: the policies' numbers would be wrong"
            )
    if scaling is None:
        scaling = float(query.shape[-1] ** -0.5)
    return handler.attend(module.layer_idx, query, key, value, scaling), None  # type: ignore[arg-type]


def _holds_all(window: int, module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether a window is no restriction, since it holds every position so far."""
    position_ids = kwargs.get("position_ids")
    if position_ids is None:
        return False
    # `max` waits for the device: asked by the first layer only, since all have one window (`source.check_config`), and never
    # while a step is recorded, which was run eagerly at the same positions before.
    is_recorded = position_ids.is_cuda and torch.cuda.is_current_stream_capturing()
    return bool(module.layer_idx) or is_recorded or int(position_ids.max()) < window

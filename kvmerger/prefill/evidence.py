"""What a policy can learn about one layer (evidence): how it is registered, computed and kept.

Each piece is computed at most once and shared by every policy. What reads queries or hidden states must be declared before
prefill: it is computed inside the layer's attention call, after which those are gone. So must what reads a repetition of the
context (`repeat`), which is run only where somebody does. Everything else is computed when first asked for.

Shapes: N tokens of the compressed part, Q query heads, H KV heads, D head size.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from kvmerger.kernels import dispatch

Pieces = Literal["joined", "summed"]
"""How what is computed of each part of a repetition becomes one: along the second dimension, or added up."""
# Softmax underflows to 0 where nobody looks. A set of such tokens still needs weights, and ratios that fp32 can hold.
_LEAST_MASS = 1e-20
_LAYER_SEED_STRIDE = 1_000_003


class EvidenceError(RuntimeError):
    """A policy asked for evidence it did not declare in ``needs``, or that nobody registered."""


class Need(NamedTuple):
    """One piece of evidence, with the parameters it is computed with: ``Need("window_attention", (64,))``."""

    name: str
    params: tuple[int | float | str, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptStates:
    """What is the same in all layers of one prompt's prefill.

    ``model`` is the module whose layers they are, None where there is none. ``notes`` is what evidence about earlier layers
    leaves for that about later ones, by keys of its own; it goes when prefill ends.
    """

    model: nn.Module | None = None
    notes: dict[Hashable, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LayerStates:
    """What one layer's attention saw: q_QND and k_HND after RoPE, v_HND, all of one prompt.

    hidden_NE went into the attention module, residual_NE is the stream that the layer starts from, before any norm,
    ``attention`` the module itself (its ``q_proj`` gives queries before RoPE), ``prompt`` what the layers share; all four are
    None unless a policy needs evidence that reads hidden states. ``rotary`` is the model's rotary embedding, None without a
    model. lse_QN is the log-sum-exp of each query's scaled scores, fp32, where the attention kernel left it; without it
    evidence is the same and costs more. ``seed`` is of prompt and layer: all that random evidence may depend on.
    """

    q_QND: Tensor
    k_HND: Tensor
    v_HND: Tensor
    scaling: float
    hidden_NE: Tensor | None = None
    attention: nn.Module | None = None
    rotary: nn.Module | None = None
    lse_QN: Tensor | None = None
    seed: int = 0
    prompt: PromptStates | None = None
    residual_NE: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Registered:
    """What computes a piece of evidence, and what that reads."""

    compute: Callable[..., Tensor]
    reads_queries: bool
    reads_hidden_states: bool
    pieces: Pieces | None = None
    is_of_window: bool = False

    @property
    def is_prefill_only(self) -> bool:
        """Whether it reads what is gone after the layer's attention call."""
        return self.pieces is None and (self.reads_queries or self.reads_hidden_states)


_REGISTRY: dict[str, Registered] = {}


def register_evidence(
    name: str,
    *,
    reads_queries: bool,
    reads_hidden_states: bool = False,
    pieces: Pieces | None = None,
    is_of_window: bool = False,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register ``compute(states, *params) -> Tensor`` under ``name``; returns it unchanged.

    ``states`` is a `LayerStates`; its ``q_QND`` and ``lse_QN`` may be read only with ``reads_queries=True``, ``hidden_NE``,
    ``residual_NE``, ``attention`` and ``prompt`` only with ``reads_hidden_states=True``. The result is kept until the last
    policy has run, so it must be small: a few numbers per token, never one per pair of tokens.

    What ``is_of_window`` reads the last queries alone, as many as its first parameter says. With ``pieces`` it is of a
    repetition: ``states`` is then a `RepeatStates`, ``compute`` is called for each part of the context that is repeated, and
    what it gives is ``joined`` along the second dimension, or ``summed``.
    """

    def register(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        # A file that is loaded a second time registers the same again: told by name, since the function is another object.
        if name in _REGISTRY and _REGISTRY[name].compute.__qualname__ != compute.__qualname__:
            raise EvidenceError(
                f"evidence {name!r} is already registered by {_REGISTRY[name].compute.__module__}"
            )
        _REGISTRY[name] = Registered(compute, reads_queries, reads_hidden_states, pieces, is_of_window)
        return compute

    return register


class Evidence:
    """All evidence about one layer of one prompt."""

    def __init__(self, states: LayerStates, layer_index: int, num_layers: int, prompt_seed: int) -> None:
        self.layer_index = layer_index
        self.num_layers = num_layers
        self.num_heads, self.num_tokens = states.k_HND.shape[:2]
        self.device = states.k_HND.device
        self.prompt_seed = prompt_seed
        """From the prompt's tokens and the sweep's seed: randomness that is the same wherever the item runs."""
        self._states: LayerStates = replace(states, seed=self.draw_seed)
        self._is_in_prefill = True
        self._cache: dict[Need, Tensor] = {}
        self._errors: dict[Need, Exception] = {}

    @property
    def draw_seed(self) -> int:
        """Of prompt and layer. Layers are so far apart that small numbers added to it never meet on another layer."""
        return (self.prompt_seed << 16) + (self.layer_index + 1) * _LAYER_SEED_STRIDE

    @property
    def scaling(self) -> float:
        """What products of queries and keys are multiplied with."""
        return self._states.scaling

    @property
    def layers(self) -> tuple[Evidence, ...]:
        """Itself; of layers that are compressed as one, each layer's, with heads one layer after the other."""
        # Held by itself it would be garbage that counts no references, and a prompt's K/V with it.
        return (self,)

    def get(self, need: Need) -> Tensor:
        """The evidence ``need`` names; computed on first use. Treat it as read-only: others get the same tensor.

        Raises:
            EvidenceError: not registered, or it reads what only prefill has and was not declared.
            Exception: whatever computing it raised, in prefill or now.
        """
        if need in self._errors:
            raise self._errors[need]
        if need not in self._cache:
            found = registered(need)
            if found.pieces or (found.is_prefill_only and not self._is_in_prefill):
                raise EvidenceError(
                    f"{need} reads what only prefill has, so the policy must declare it in needs()"
                )
            self._cache[need] = found.compute(self._states, *need.params)
        return self._cache[need]

    def by_layer(self, heads_XN: Tensor) -> Tensor:
        """Rows of KV or query heads (X, …) with a dimension for the layers they are of: (L, X / L, …)."""
        return heads_XN.unflatten(0, (len(self.layers), -1))

    def for_heads(self, layers_LN: Tensor) -> Tensor:
        """What is the same in all heads of a layer (L, …), for every KV head: (H, …)."""
        heads_LHN = layers_LN[:, None].expand(-1, self.num_heads // len(self.layers), *layers_LN.shape[1:])
        return heads_LHN.flatten(0, 1)

    def capture(self, needs: Iterable[Need], *, is_last_try: bool = True) -> None:
        """Compute what ``needs`` asks of queries and hidden states, then let those go.

        Raises:
            torch.OutOfMemoryError: not all of it fits, and this is not the last try. In the last one that is an error of
                the policies that ask for it, like any other.
        """
        for need in sorted(needs, key=repr):  # parameters of different types have no order
            try:
                if registered(need).is_prefill_only:
                    self.get(need)
            except torch.OutOfMemoryError as error:
                if not is_last_try:
                    raise
                self._errors[need] = EvidenceError(f"{need} does not fit into the device's memory: {error}")
            # Evidence may be a user's: its error belongs to the policies that ask for it, not to the prompt.
            except Exception as error:  # noqa: BLE001
                # The text now: the frames go, since they hold queries and hidden states.
                error.add_note(f"raised in prefill:\n{traceback.format_exc()}")
                forget_frames(error)
                self._errors[need] = error
        # Layer by layer: all layers' queries would take more memory than the cache itself.
        self.point_at(self._states.k_HND, self._states.v_HND)
        self._is_in_prefill = False

    def put(self, need: Need, found: Tensor | Exception) -> None:
        """Give ``found`` to whoever asks for ``need``; an error is raised there, and keeps no frames."""
        if isinstance(found, Exception):
            forget_frames(found)
            self._errors[need] = found
        else:
            self._cache[need] = found

    def point_at(self, k_HND: Tensor, v_HND: Tensor) -> None:
        """Read keys and values from these equal tensors from now on, so that no second copy stays alive."""
        old, of_none = self._states, self._states.q_QND.new_empty(0)
        self._states = LayerStates(of_none, k_HND, v_HND, old.scaling, rotary=old.rotary, seed=old.seed)


def forget_frames(error: BaseException | None) -> None:
    """Whoever keeps ``error`` keeps nothing that was alive when it was raised, such as a prompt's queries or K/V."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def needs_hidden_states(needs: Iterable[Need]) -> bool:
    """Whether any of ``needs`` reads hidden states of the prompt, which the attention seam does not carry."""
    return any(reads_hidden_states(need) and pieces_of(need) is None for need in needs)


def repeat_needs(needs: Iterable[Need]) -> list[Need]:
    """Those of ``needs`` that read a repetition of the context, in an order of their own."""
    # Parameters of different types have no order.
    return sorted((need for need in needs if pieces_of(need)), key=repr)


def pieces_of(need: Need) -> Pieces | None:
    """How pieces of ``need`` become one; None where it is not of a repetition, or unknown."""
    return _REGISTRY[need.name].pieces if need.name in _REGISTRY else None


def reads_hidden_states(need: Need) -> bool:
    """Whether ``need`` reads hidden states, the prompt's or a repetition's."""
    return need.name in _REGISTRY and _REGISTRY[need.name].reads_hidden_states


def registered(need: Need) -> Registered:
    """Who computes ``need``; an `EvidenceError` where nobody does."""
    if need.name not in _REGISTRY:
        raise EvidenceError(f"no evidence is registered as {need.name!r}; there is {sorted(_REGISTRY)}")
    return _REGISTRY[need.name]


ATTENTION_MASS = Need("attention_mass")
KEY_NORMS = Need("key_norms")
NEIGHBOUR_COSINES = Need("neighbour_cosines")


def window_attention(window_tokens: int) -> Need:
    """Attention that the last ``window_tokens`` prompt tokens pay to every key: fp32 (Q, N), mean over the window."""
    return Need("window_attention", (window_tokens,))


@register_evidence("attention_mass", reads_queries=True)
def _attention_mass(states: LayerStates) -> Tensor:
    """Column sums of causal attention, averaged over the query heads of a group: fp32 (H, N)."""
    return dispatch.attention_mass(states.q_QND, states.k_HND, states.scaling, states.lse_QN)


@register_evidence("window_attention", reads_queries=True, is_of_window=True)
def _window_attention(states: LayerStates, window_tokens: int) -> Tensor:
    """Mean attention paid by the last ``window_tokens`` tokens, each causal within the window: fp32 (Q, N)."""
    return dispatch.window_attention(states.q_QND, states.k_HND, states.scaling, window_tokens, states.lse_QN)


@register_evidence("key_norms", reads_queries=False)
def _key_norms(states: LayerStates) -> Tensor:
    """L2 norm of every key: fp32 (H, N)."""
    return dispatch.row_norms(states.k_HND.flatten(0, 1)).view(states.k_HND.shape[:2])


@register_evidence("neighbour_cosines", reads_queries=False)
def _neighbour_cosines(states: LayerStates) -> Tensor:
    """Cosine of each key with the next one: fp32 (H, N-1)."""
    num_heads, num_tokens, _ = states.k_HND.shape
    index_HN = torch.arange(num_heads * num_tokens, device=states.k_HND.device).view(num_heads, num_tokens)
    # By head: the last token of one has no neighbour in the next.
    first_F, next_F = index_HN[:, :-1].flatten(), index_HN[:, 1:].flatten()
    return dispatch.pair_cosines(states.k_HND.flatten(0, 1), first_F, next_F).view(num_heads, num_tokens - 1)


def attention_mass(evidence: Evidence, need: Need) -> Tensor:
    """The evidence ``need`` averaged over the query heads of each group: fp32 (H, N), positive."""
    mass_XN = evidence.get(need)
    mass_HN = mass_XN.view(evidence.num_heads, -1, mass_XN.shape[-1]).mean(dim=1)
    return mass_HN.clamp_min(_LEAST_MASS)

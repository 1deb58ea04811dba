"""The model as a plan needs it: its configuration and tokenizer, and what is to be said of it before it runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluators.chat_template import check_chat_template, turn_end
from evaluators.item import BenchmarkItem
from evaluators.tokenizer import Tokenizer, decode
from jobs.settings.schema import Settings
from kvmerger.bits_table import table_of
from kvmerger.names import VariantError

if TYPE_CHECKING:
    from kvmerger.models.source import ModelInfo


@dataclass(frozen=True, slots=True)
class ReadModel:
    """`warnings` are sentences: where the model is not run as its folder says, or its answers may not end."""

    info: ModelInfo
    tokenizer: Tokenizer
    end_ids: Set[int]
    warnings: tuple[str, ...]

    def warnings_for(self, items: Iterable[BenchmarkItem]) -> tuple[str, ...]:
        """All that is to be said before these items are run.

        Raises:
            PromptError: the chat template that they need gives no steady text.
        """
        if not any(item.use_chat_template for item in items):
            return self.warnings
        check_chat_template(self.tokenizer)
        end = turn_end(self.tokenizer)
        if end is None or end in self.end_ids:
            return self.warnings
        return (*self.warnings, self._end_warning(end))

    def _end_warning(self, end: int) -> str:
        known = ", ".join(self._shown(token) for token in sorted(self.end_ids)) or "nothing"
        return (
            f"the chat template ends a turn with {self._shown(end)}, but answers end at {known}: they may run on to their "
            f"full length. For a chat model put {end} into eos_token_id of generation_config.json"
        )

    def _shown(self, token: int) -> str:
        return f"{decode([token], self.tokenizer, skip_special_tokens=False)!r} ({token})"


def read_model(settings: Settings, device: str) -> ReadModel:
    """Configuration, tokenizer and end tokens of the model of `settings`, for `device`; no weights are loaded.

    Raises:
        ModelError: the model cannot be used, or not there.
        VariantError: a policy has a table of another model.
    """
    # Here, as torch and transformers take seconds: a mistake in the policies is told without them.
    from kvmerger.models.loading import load_end_ids, load_tokenizer
    from kvmerger.models.source import load_info

    asked = settings.model
    _refuse_numbered_gpu(settings, device)
    is_local = settings.executor == "inline" or (asked.device != "auto" and not os.environ.get("RAY_ADDRESS"))
    said: list[str] = []
    with _collected(said):
        # On a cluster the driver's machine may lack the device. A Ray that is started here has what this machine has.
        info = load_info(
            asked.name, revision=asked.revision, dtype=asked.dtype, device=device, is_run_here=is_local
        )
        tokenizer = load_tokenizer(asked.name, revision=asked.revision)
        end_ids = load_end_ids(asked.name, revision=asked.revision)
    _refuse_tables(settings, info)
    return ReadModel(info, tokenizer, end_ids, tuple(said))


def _refuse_tables(settings: Settings, info: ModelInfo) -> None:
    """Raise `VariantError` for a table of bits that is another model's."""
    for spec in settings.variants:
        table = table_of(spec.policy, spec.params)
        if table is not None and (refusal := table.refusal(info.revision, info.num_layers)):
            raise VariantError(f"policy {spec.label!r}: {refusal}")


def _refuse_numbered_gpu(settings: Settings, device: str) -> None:
    from kvmerger.models.errors import ModelError

    kind, _, index = device.partition(":")
    if settings.executor == "ray" and kind == "cuda" and index.strip("0"):
        raise ModelError(
            f"device {device!r}: Ray gives each actor a GPU of its own, which is 'cuda:0' there; write `device: cuda`, and "
            f"choose GPUs by CUDA_VISIBLE_DEVICES, or run with `executor: inline`"
        )


@contextmanager
def _collected(said: list[str]) -> Iterator[None]:
    """Put what is said of the model into `said`, each sentence once; other warnings are given as ever."""
    from kvmerger.models.errors import ModelWarning

    with warnings.catch_warnings(record=True) as caught:
        # Otherwise a second model in one process would say nothing: Python shows a warning once for each line of code.
        warnings.simplefilter("always", ModelWarning)
        yield
    for it in caught:
        if not issubclass(it.category, ModelWarning):
            warnings.warn_explicit(it.message, it.category, it.filename, it.lineno)
        elif str(it.message) not in said:
            said.append(str(it.message))

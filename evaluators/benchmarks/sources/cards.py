"""Which files of a data set a configuration's split is: as its card says, else as `datasets` infers it from their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluators.benchmark import BenchmarkError
from evaluators.benchmarks.sources.tables import SUFFIXES, quiet_datasets
from evaluators.hints import nearest_name_hint

CARD = "README.md"
DATA_PATTERNS = tuple(f"*{suffix}" for suffix in SUFFIXES)
_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError)


@dataclass(frozen=True, slots=True)
class Choice:
    """The rows that `task` asks for: a configuration (None: the only one) and a split of the data set `source`."""

    task: str
    source: str
    config: str | None
    split: str


def patterns_of(card: str, choice: Choice) -> tuple[str, ...] | None:
    """The patterns of the files of `choice`, by the card's text; None where the card tells of no files.

    Raises:
        BenchmarkError: there is no such configuration or split, or the card cannot be read.
    """
    from yaml import YAMLError

    try:
        found = _configs(card)
    except (*_UNREADABLE, YAMLError) as error:
        raise BenchmarkError(
            f"{choice.task}: the card of {choice.source} cannot be read ({error!s:.300}); name one of its files."
        ) from error
    if not found:
        return None
    splits = found[_config(choice, found)]
    patterns = tuple(splits[_split(choice, splits)])
    if outside := [it for it in patterns if it.startswith("/") or "://" in it or ".." in it]:
        raise BenchmarkError(
            f"{choice.task}: the card of {choice.source} names {outside[0]!r}, which is none of its files; name one of them."
        )
    return patterns


def matching(folder: Path, patterns: Sequence[str], choice: Choice) -> list[Path]:
    """The files of a folder that fit the card's `patterns`, in order. Raises BenchmarkError when there is none."""
    found = [path for it in patterns for path in sorted(folder.glob(it)) if path.is_file()]
    if not found:
        raise BenchmarkError(
            f"{choice.task}: {choice.source} has no file {' nor '.join(patterns)}, of which its card tells; copy them too."
        )
    return found


def inferred(folder: Path, choice: Choice) -> list[Path]:
    """The files of `choice` in a folder whose card tells of none.

    Raises:
        BenchmarkError: there is no such configuration or split, or files of several kinds, of which a part would be left out.
    """
    kinds = {".parquet" if it.suffix == ".parquet" else "JSON" for it in _data_files(folder)}
    if len(kinds) != 1:
        told = f"{' and '.join(sorted(kinds))} files" if kinds else f"no {', '.join(SUFFIXES)} file"
        raise BenchmarkError(f"{choice.task}: {choice.source} has {told}; name the one that is meant.")
    if choice.config is not None:
        _config(choice, {"default": {}})
    try:
        found = quiet_datasets().load_dataset_builder(str(folder)).config.data_files
    except _UNREADABLE as error:
        raise BenchmarkError(
            f"{choice.task}: {choice.source} is no data set that can be read ({error!s:.300}); name one of its files."
        ) from error
    return [Path(it) for it in found[_split(choice, found)]]


def _data_files(folder: Path) -> list[Path]:
    return [it for pattern in DATA_PATTERNS for it in folder.glob(f"**/{pattern}") if it.is_file()]


def _configs(card: str) -> dict[str, dict[str, list[str]]]:
    """Patterns by split by configuration."""
    if not card.startswith("---"):  # of which the hub's client warns
        return {}
    from datasets.data_files import sanitize_patterns
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    configs = MetadataConfigs.from_dataset_card_data(DatasetCard(card).data)
    return {name: sanitize_patterns(it["data_files"]) for name, it in configs.items() if "data_files" in it}


def _config(choice: Choice, configs: Mapping[str, object]) -> str:
    if choice.config in configs:
        return str(choice.config)
    if choice.config is not None:
        raise BenchmarkError(
            f"{choice.task}: {choice.source} has no configuration {choice.config!r}. "
            f"{nearest_name_hint(choice.config, configs)}"
        )
    if len(configs) > 1:
        raise BenchmarkError(
            f"{choice.task}: {choice.source} has the configurations {', '.join(configs)}; name one behind a slash."
        )
    return next(iter(configs))


def _split(choice: Choice, splits: Mapping[str, object]) -> str:
    # One split is what is meant whatever it is called, as train in a set that was never split.
    wanted = str(next(iter(splits))) if len(splits) == 1 else choice.split
    if wanted not in splits:
        hint = nearest_name_hint(choice.split, map(str, splits))
        raise BenchmarkError(f"{choice.task}: {choice.source} has no split {choice.split!r}. {hint}")
    return wanted

"""`python jobs/sweep.py ls policies|tasks|metrics|models|settings`: what a settings file can name, and which are shipped."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evaluators.benchmark import TaskInfo
from jobs.console.command_line import EXIT_OK, Parser, told_to_users
from jobs.console.commands import program
from jobs.reporting.terminal import report_console
from kvmerger.names import nearest

if TYPE_CHECKING:
    from kvmerger.policies.registry import Description
    from kvmerger.serving import Serving


_WIDE = 120  # columns from which sizes have columns of their own


class ListingError(ValueError):
    """A word that none of the lists is called."""


class _Asked(NamedTuple):
    """Columns to print on, and the benchmark whose tasks are wanted; None: all."""

    width: int
    benchmark: str | None = None


class _List(NamedTuple):
    about: str
    table: Callable[[_Asked], RenderableType]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one of the lists."""
    parser = Parser(prog=program("ls"), description="List what a settings file can name.")
    parser.add_argument(
        "what", nargs="?", metavar="WHAT", help=f"{', '.join(_LISTS)} (default: what there is)"
    )
    parser.add_argument(
        "benchmark",
        nargs="?",
        metavar="BENCHMARK",
        help="behind `tasks`: one benchmark's only, as `ls tasks ruler`",
    )
    parser.add_argument("--width", type=int, help="columns to print on (default: the terminal's)")
    options = parser.parse_args(arguments)
    return told_to_users(lambda: _list(options))


def _list(options: argparse.Namespace) -> int:
    console = report_console(options.width)
    if options.what is None:
        console.print(_table(("ls", ""), ((name, it.about) for name, it in _LISTS.items())))
        return EXIT_OK
    if options.what not in _LISTS:
        raise ListingError(
            f"there is no list of {options.what!r}{nearest(options.what, _LISTS)}; ls shows {', '.join(_LISTS)}"
        )
    if options.benchmark is not None and options.what != "tasks":
        raise ListingError(f"ls {options.what} takes no name, got {options.benchmark!r}; leave it out")
    console.print(_LISTS[options.what].table(_Asked(console.width, options.benchmark)))
    return EXIT_OK


def _policies(_: _Asked) -> Group:
    from kvmerger import serving
    from kvmerger.policies import registry
    from kvmerger.policies.storage import forms

    policies = _table(
        ("policy", "what it keeps", "parameters", "a server needs"),
        (
            (f"+{it.name}" if it.is_wrapper else it.name, it.summary, _shown(it), _served(served))
            for it, served in zip(registry.describe(), serving.describe(), strict=True)
        ),
        caption="join parts with +, as in snapkv+adakv; your own: module:Class; kvpress's: kvpress:SnapKVPress. `full` is "
        "in every sweep. Where no engine is named, none runs it today; docs/policies.md says what the needs mean.",
    )
    stored = _table(
        ("form", "what slots are stored in", "of bf16", "parameters"),
        ((it.name, it.summary, _share(forms.share_of_bf16(it.name)), _shown(it)) for it in forms.describe()),
        caption=f"alone, or behind what chooses slots: snapkv@0.5+fp8; your own: snapkv@0.5+module:Class. "
        f"Bytes with heads of {forms.SHOWN_HEAD_DIM}.",
    )
    return Group(policies, Text(), stored)


def _share(of_bf16: float | None) -> str:
    return "its table's" if of_bf16 is None else f"{of_bf16:.0%}"


def _shown(description: Description) -> str:
    return ", ".join(
        name if default is MISSING else f"{name}={_yaml(default)}" for name, default in description.parameters
    )


def _served(serving: Serving) -> str:
    return f"{serving.needs_shown}{f'; {serving.runs_today}' if serving.runs_somewhere else ''}"


def _yaml(value: Any) -> str:
    """As a settings file spells it."""
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


def _tasks(asked: _Asked) -> Group:
    infos = _wanted(asked.benchmark)
    sizes = [
        (it.num_items, it.context, f"{it.answer_tokens:,}" if it.answer_tokens else "yours") for it in infos
    ]
    heads: tuple[str, ...] = ("task", "what is asked", "items", "context", "answer", "metric")
    rows: list[tuple[str, ...]] = [
        (it.name, it.about, *size, it.metric) for it, size in zip(infos, sizes, strict=True)
    ]
    is_wide = asked.width >= _WIDE
    if not is_wide:
        heads = ("task", "what is asked\nitems; context; answer; metric")
        rows = [(name, f"{about}\n{'; '.join(rest)}") for name, about, *rest in rows]
    tasks = _table(heads, rows)
    # What a benchmark's tasks have in common is said once.
    heads = ("benchmark", "where its rows come from", "licence", "what it tells apart")
    rows = [(name, *map(_each_once, told)) for name, told in _told_of_benchmarks(infos).items()]
    if not is_wide:
        heads = ("benchmark", "what it tells apart; licence; where its rows come from")
        rows = [(name, f"{tells}\n{licence}\n{source}") for name, source, licence, tells in rows]
    told = _table(
        heads,
        rows,
        caption="answer: tokens at most, `max_new_tokens` sets others. `ls tasks BENCHMARK` shows one's alone. `data` "
        "names a folder, a file, hf://datasets/OWNER/NAME@COMMIT or s3://BUCKET/KEY; docs/benchmarks.md says more.",
    )
    return Group(tasks, Text(), told)


def _wanted(benchmark: str | None) -> tuple[TaskInfo, ...]:
    from evaluators import registry

    infos = tuple(registry.describe_tasks())
    if benchmark is None:
        return infos
    # A task's own name says which benchmark is meant, too.
    name = benchmark.partition("/")[0]
    found = tuple(it for it in infos if it.name.partition("/")[0] == name)
    if not found:
        names = tuple(dict.fromkeys(it.name.partition("/")[0] for it in infos))
        raise ListingError(
            f"there is no benchmark {benchmark!r}{nearest(name, names)}; ls tasks shows {', '.join(names)}"
        )
    return found


def _told_of_benchmarks(infos: Iterable[TaskInfo]) -> dict[str, list[tuple[str, ...]]]:
    """Of every benchmark its tasks' sources, licences, and what they tell apart."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for it in infos:
        found.setdefault(it.name.partition("/")[0], []).append((it.source, it.licence, it.separates))
    return {name: list(zip(*of, strict=True)) for name, of in found.items()}


def _each_once(texts: Iterable[str]) -> str:
    return "\n".join(dict.fromkeys(texts))


def _metrics(_: _Asked) -> Table:
    from evaluators import scoring

    rows = (
        (it.name, it.about, "all_classes" if it.uses_classes else "") for it in scoring.describe_metrics()
    )
    return _table(
        ("metric", "what it gives", "a row needs"),
        rows,
        caption="`metric` of a row of your own (file/rows; default qa_f1). Scores are 0 to 1, the best of a row's answers.",
    )


def _settings(_: _Asked) -> Table:
    from jobs.settings.file import first_words, shipped_names

    return _table(
        ("settings", ""),
        ((name, first_words(name)) for name in shipped_names()),
        caption="by name: `sweep.py demo`, `sweep.py validate nightly.yaml`; a file of yours of that name goes first",
    )


def _models(_: _Asked) -> Table:
    from kvmerger.models.source import SUPPORTED_MODEL_TYPES, SUPPORTED_ROPE_TYPES

    families = ", ".join(SUPPORTED_MODEL_TYPES)
    rows = [
        ("demo", "packaged SmolLM2-135M-Instruct (4-bit weights, CPU or GPU), nothing to download"),
        (
            "a hub id",
            f"families {families} with full attention; `revision` pins a commit, HF_TOKEN opens gated ones",
        ),
        ("a folder", "config.json, tokenizer.json and safetensors of such a model"),
        *((name, "in this machine's hub cache") for name in _cached_models()),
    ]
    return _table(("model", ""), rows, caption=f"RoPE types: {', '.join(SUPPORTED_ROPE_TYPES)}")


def _cached_models() -> list[str]:
    import huggingface_hub as hub

    try:
        return sorted(repo.repo_id for repo in hub.scan_cache_dir().repos if repo.repo_type == "model")
    except hub.CacheNotFound:
        return []


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str | None = None) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, caption=caption, caption_justify="left"
    )
    for index, head in enumerate(heads):
        table.add_column(head, overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


_LISTS = {
    "policies": _List("what compresses the cache, and the forms it is stored in", _policies),
    "tasks": _List("what is asked, by benchmark", _tasks),
    "metrics": _List("how answers are scored: what rows of your own can name", _metrics),
    "models": _List("whose cache: families, and what is in this machine's hub cache", _models),
    "settings": _List("shipped settings, by their names", _settings),
}

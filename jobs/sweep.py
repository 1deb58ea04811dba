"""Run a sweep: `python jobs/sweep.py [CONFIG.yaml]`. The same command again computes only what is missing.

Nothing but argparse is imported before the arguments are understood, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.console.command_line import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_SOME_FAILED,
    Parser,
    add_settings_arguments,
    config_of,
    find_policies_beside,
    overrides_of,
    told_to_users,
)
from jobs.console.commands import (
    Command,
    listed,
    main_of,
    program,
    refuse_misplaced,
    refuse_no_command,
    understood,
)
from jobs.console.policy_check import check_policy

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from jobs.planning.preparation import Prepared
    from jobs.results.store import ResultStore
    from jobs.runs.sweep_run import RunResult
    from jobs.settings.schema import Settings


_DEFAULT_CONFIG = Path(__file__).parent / "configs" / "demo.yaml"
_EPILOG = """\
exit codes: 0 all rows are there, 2 bad input, 3 some rows failed or are missing, 70 an error nobody foresaw, 130 interrupted
commands (each has --help; without one, the sweep of the settings is run):
{commands}
examples:
{examples}
"""
_EXAMPLES = {
    "": "the packaged demo model, 2 minutes on 2 idle cores",
    "--set tasks.0.limit=2 --executor inline": "a quick look, without Ray",
    "my.yaml --dry-run": "what it would do, without loading weights",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code. Errors a user can cause are printed without a trace."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    # A word that is no command is a settings file: `sweep.py my.yaml` runs it.
    command, rest = understood(given, COMMANDS, "run")
    return told_to_users(lambda: COMMANDS[command].run(rest))


def _run(arguments: Sequence[str], command: str = "") -> int:
    parser = build_parser(command)
    options, unknown = parser.parse_known_args(arguments)
    options.config = _found(config_of(options, _DEFAULT_CONFIG), unknown)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    find_policies_beside(options.config)
    return check_policy(options.check_policy) if options.check_policy is not None else _sweep(options)


def _found(config: Path, others: Sequence[str]) -> Path:
    """The settings file that is meant. A command that is misspelt, or stands in a place of its own, is told as one."""
    from jobs.settings.file import settings_file, shipped_names

    found = settings_file(config)
    if not found.exists():
        refuse_misplaced([str(config)], COMMANDS)
        refuse_no_command(str(config), COMMANDS, shipped_names())
    refuse_misplaced(others, COMMANDS)
    return found


def _validate(arguments: Sequence[str]) -> int:
    return _run([*arguments, "--dry-run"], "validate")


def _version(arguments: Sequence[str]) -> int:
    from jobs.results.provenance import git_commit, library_versions

    versions = library_versions()
    ours = versions.pop("kvmerger", "not installed")
    commit = git_commit()
    print(f"kvmerger {ours}{f' at {commit}' if commit else ''}")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    return EXIT_OK


COMMANDS: dict[str, Command] = {
    "run": Command("[CONFIG]", "", _run),
    "--version": Command("", "", _version),
    "validate": Command(
        "[CONFIG]", "prompts, plan, bytes and hours, and what cannot work; loads no weights", _validate
    ),
    "ls": Command(
        "[WHAT]",
        "what settings can name: policies, tasks, metrics, models, settings",
        main_of("jobs.listing"),
    ),
    "report": Command(
        "RESULTS_DIR", "the table again, and the page with figures (--html)", main_of("jobs.report")
    ),
    "compare": Command(
        "A [B]", "two results folders, or two policies of one, item by item", main_of("jobs.compare")
    ),
    "choose": Command(
        "RESULTS_DIR",
        "the smallest budgets certified to lose little, or what fits a memory",
        main_of("jobs.choose"),
    ),
    "mirror": Command(
        "RESULTS_DIR",
        "show finished results in MLflow (after an outage, or scored again)",
        main_of("jobs.mirror"),
    ),
    "new-policy": Command(
        "FILE", "write a policy in ten lines, to start your own from", main_of("jobs.new_policy")
    ),
    "nightly": Command("[CONFIG]", "run a sweep and hold it against a baseline", main_of("jobs.nightly")),
}
"""Every command, in the order of `--help`."""


def build_parser(command: str = "") -> argparse.ArgumentParser:
    """What `command` takes, as what is run without one does."""
    examples = "\n".join(f"  {f'{program()} {words}':<50} {about}" for words, about in _EXAMPLES.items())
    parser = Parser(
        prog=program(command),
        description="Evaluate KV-cache compression policies on long-context benchmarks: one prefill, every policy.",
        epilog=_EPILOG.format(commands=listed(COMMANDS), examples=examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings_arguments(parser, "the demo")
    parser.add_argument(
        "--dry-run", action="store_true", help="show the plan; loads no weights, writes nothing"
    )
    parser.add_argument(
        "--check-policy", metavar="module:Class", help="run the contract tests on your own policy"
    )
    parser.add_argument(
        "--version", action="store_true", help="versions of this and of what results depend on"
    )
    return parser


def _settings_of(options: argparse.Namespace) -> Settings:
    from jobs.settings.schema import load_settings

    return load_settings(options.config, overrides_of(options), options.limit)


def _sweep(options: argparse.Namespace) -> int:
    # Imports below come one stage at a time: a mistake in the settings is told before pyarrow and torch are loaded.
    settings = _settings_of(options)
    from jobs.execution.on_ray.resources import refuse_absent_gpus
    from jobs.execution.thread_waiting import choose_thread_waiting
    from jobs.results.store import ResultStore

    choose_thread_waiting()
    refuse_absent_gpus(settings)
    store = ResultStore(settings.output_dir)
    # From before it is read what is done: a driver that ends meanwhile would have its rows computed again.
    with nullcontext() if options.dry_run else store.held():
        return _planned_sweep(options, settings, store)


def _planned_sweep(options: argparse.Namespace, settings: Settings, store: ResultStore) -> int:
    from rich.text import Text

    from jobs.execution.on_ray.resources import device_of_the_actors
    from jobs.planning.preparation import prepare
    from jobs.reporting.terminal import report_console

    console = report_console()
    with console.status("reading the model's configuration, tokenizer and items …") as status:
        prepared = prepare(
            settings,
            store.identities(),
            lambda: device_of_the_actors(settings),
            lambda said: status.update(Text(said)),
        )
    if options.dry_run:
        console.print(_dry_run(settings, prepared, store))
        return EXIT_OK
    from jobs.console.interrupts import told_interrupts
    from jobs.planning.prompt_check import check_prompts
    from jobs.reporting.dry_run import shown_query_mode
    from jobs.runs.sweep_run import SweepRun

    plan = prepared.plan
    console.print(shown_query_mode(settings))
    console.print(
        f"items x variants: {plan.num_items} x {len(plan.variants)} = {plan.num_rows} rows, "
        f"{plan.num_done} of them done; model {prepared.model.name} on {prepared.model.device}"
    )
    for said in prepared.warnings:
        console.print(f"warning: {said}", style="yellow")
    for check in check_prompts(plan, prepared.tokenizer):
        for text in check.warnings:
            console.print(f"warning: {check.task}: {text}", style="yellow")
    with told_interrupts():
        result = SweepRun(settings, prepared, store).run()
    from jobs.reporting.headline import headline_of
    from jobs.reporting.terminal import View, render

    # Verdicts take seconds, and who pressed Ctrl-C waits for the prompt; the page has computed them already.
    sentences = [] if result.is_interrupted else headline_of(result.findings)
    console.print(render(result.summary, console.width, View(is_brief=None), sentences))
    _print_where_to_go(console, settings, _shown_page(store, result), result)
    if result.is_interrupted:
        console.print("interrupted: the rows so far are kept, and the same command goes on", style="yellow")
        return EXIT_INTERRUPTED
    if missing := result.summary.num_missing:
        console.print(f"{missing} rows are missing, taken away meanwhile; the same command computes them")
    return EXIT_SOME_FAILED if result.summary.num_failed or missing else EXIT_OK


def _dry_run(settings: Settings, prepared: Prepared, store: ResultStore) -> RenderableType:
    from jobs.analysis.forecast import forecast
    from jobs.execution.on_ray.resources import name_of_the_device
    from jobs.planning.prompt_check import check_prompts
    from jobs.reporting.dry_run import render_dry_run
    from kvmerger.models.loading import load_end_ids, num_parameters

    asked, model = settings.model, prepared.model
    name = name_of_the_device(settings, model.device)
    # Earlier rows say how fast this model is on such a device, whatever they were run for. One without a name may be it.
    rows = [
        row
        for row in store.read_table().to_pylist()
        if (row["model"], row["dtype"], row["device"]) == (model.name, model.dtype, model.device)
        and (name is None or row["device_name"] in (name, None))
    ]
    return render_dry_run(
        prepared,
        check_prompts(prepared.plan, prepared.tokenizer),
        load_end_ids(asked.name, revision=asked.revision),
        forecast(prepared.plan, num_parameters(asked.name, revision=asked.revision), model.device, rows),
        settings,
        name,
    )


def _shown_page(store: ResultStore, result: RunResult) -> str:
    """Where the page with figures is, or why there is none."""
    from jobs.console.paths import shown
    from jobs.reporting.page import DEFAULT_NAME, render_page, write_page
    from jobs.results.schema import ResultError

    try:
        page = result.page or write_page(render_page(result.findings).html, store.root / DEFAULT_NAME)
    except ResultError as error:  # told, not raised: the rows are stored, and `report` writes the page again
        page = error
    return f"{shown(page)} (open it in a browser)" if isinstance(page, Path) else f"not written: {page}"


def _print_where_to_go(console: Console, settings: Settings, page: str, result: RunResult) -> None:
    def line(head: str, text: str) -> None:
        console.print(Text.assemble((f"{head:<12}", "bold"), text), soft_wrap=True)

    from rich.text import Text

    from jobs.console.paths import command_line, shown
    from jobs.settings.schema import DEMO_MODEL

    folder = shown(settings.output_dir)
    line("report", page)
    line("results", f"{folder} (table again: {command_line('report', folder)})")
    for head, text in zip(("MLflow", ""), result.how_to_open.split("\n"), strict=False):
        line(head, text)
    if not result.is_mirrored:
        line("", f"not everything got there; this sends what is missing: {command_line('mirror', folder)}")
    if settings.model.name == DEMO_MODEL:  # whoever has a model of their own knows how to name it
        line(
            "your own",
            f"{command_line()} --set model.name=HUB_ID_OR_FOLDER "
            "--set 'tasks=[{name: longbench/qasper, data: FOLDER, limit: 20}]' --output_dir results/mine",
        )


if __name__ == "__main__":
    sys.exit(main())

"""Whatever a user, a model or a path says goes through every sink and comes back as it was, and no password with it."""

from __future__ import annotations

import csv
import io
import json
import random
import shlex
import sqlite3
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from mlflow import MlflowClient
from rich.table import Table

from jobs.analysis.folder.findings import Findings
from jobs.console.addresses import sqlite_uri
from jobs.console.paths import command_line
from jobs.console.printing import text_of
from jobs.console.spreadsheet import cell, text_of_cell
from jobs.mirror import main as mirror
from jobs.new_policy import main as new_policy
from jobs.reporting.exports import as_csv, as_json
from jobs.reporting.markdown import escaped, escaped_line, fenced
from jobs.reporting.page import render_page
from jobs.results.grouping import grouped
from jobs.results.schema import Row
from jobs.results.store import ResultStore
from tests.fakes.rows import make_sweep_rows

SECRET = "Kn0ck"
ADDRESS = f"http://joe:{SECRET}1@host:5000/x?token={SECRET}2#{SECRET}3"
ON_ONE_LINE = (
    "[v2] [/dim] [bold]x[/bold] [x](y) :heart:",
    "50% %41 %s {0} {run_id} $HOME ~",
    "it's \"quoted\" `code` ``` \\ \\n",
    "  blanks  before and behind  ",
    "=1+1",
    "+1",
    "-1",
    "@x",
    "'=1",
    "\uff1d1+1",
    "=HYPERLINK(\"http://a.b\";\"c\")",
    "<script>alert(1)</script><img src=x onerror=y>&amp;",
    "a|b *c* _d_ ~~e~~ # f",
    "# heading",
    "- item",
    "1. item",
    "> said",
    "[a]: b",
    "n" * 300,
    "café naïve łódź",
    "Привет, мир",
    "类别\uff1a体育",
    "مرحبا بالعالم",
)  # fmt: skip
TEXTS = (*ON_ONE_LINE, "two\nlines\r\nand more", "\ttab", "\r")


@pytest.fixture(scope="module")
def rows(seed: int) -> list[Row]:
    """A sweep whose labels, items, answers and predictions are all of these texts."""
    policies = {f"{text}@0.5": 0.5 for text in ON_ONE_LINE[:12]}
    made = make_sweep_rows(random.Random(seed), policies, ["rows/[x] <b>% 50|類"], len(TEXTS), metric="qa_f1")
    for number, row in enumerate(made):
        text = TEXTS[number % len(TEXTS)]
        row |= {
            "prediction": text,
            "answers": [text],
            "item_id": f"{row['item_id']} {TEXTS[number // len(policies) % len(TEXTS)]}",
        }
    by_item: dict[str, str] = {}
    for row in made:
        row["item_id"] = by_item.setdefault(row["cluster_id"], row["item_id"])
    return made


@pytest.mark.parametrize("text", TEXTS)
def test_a_spreadsheet_reads_text(text: str) -> None:
    file = io.StringIO()
    csv.writer(file).writerow([cell(text), cell(-1.5), cell(None)])
    file.seek(0)
    shown, number, nothing = next(csv.reader(file))
    assert text_of_cell(shown) == text and (number, nothing) == ("-1.5", "")
    assert not shown.lstrip().startswith(("=", "+", "-", "@", "\uff1d"))


@pytest.mark.parametrize("text", ON_ONE_LINE)
def test_a_console_prints_text(text: str) -> None:
    table = Table(text, title=text)
    table.add_row(text)
    printed = "".join(text_of(table, 1000).split())
    assert printed.count("".join(text.split())) == 3
    assert text_of(text, 1000).rstrip("\n") == text


@pytest.mark.parametrize("text", TEXTS)
def test_markdown_reads_text(text: str) -> None:
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    plain = " ".join(text.split())
    table = f"|a|\n|---|\n|{escaped(text)}|\n"
    for source in (f"**Begun** {escaped(text)}", escaped_line(text), table):
        read = reader.parse(source)
        inline = [it for it in read if it.type == "inline"]
        kinds = {it.type for it in read} | {child.type for it in inline for child in it.children or ()}
        assert not kinds & {
            "html_block",
            "html_inline",
            "link_open",
            "image",
            "heading_open",
            "em_open",
            "s_open",
        }, source
        assert not kinds & {
            "bullet_list_open",
            "ordered_list_open",
            "blockquote_open",
            "code_inline",
            "hr",
        }, source
        said = "".join(child.content for child in (inline[-1].children if inline else None) or ())
        assert " ".join(said.split()).removeprefix("Begun ").endswith(plain), source
    (fence,) = reader.parse(fenced(text))
    assert fence.type == "fence" and fence.content.strip() == "\n".join(text.splitlines()).strip()


@pytest.mark.parametrize("text", ON_ONE_LINE)
def test_a_shell_reads_the_words_that_are_printed(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shlex.split(command_line("report", text))[-1] == text
    folder = tmp_path / text.replace("/", "%")[:200]
    folder.mkdir()
    if "$" in text:  # a variable
        return
    assert new_policy([str(folder / "mine_of_a_test.py")]) == 0
    check = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("check"))
    words = shlex.split(check.removeprefix("check"))
    assert words[:4] == ["cd", "--", str(folder), "&&"]


def test_numbers_for_scripts_hold_every_label(rows: list[Row], tmp_path: Path) -> None:
    summary = Findings.read(_stored(tmp_path / "r", rows)).summary
    labels = {row["variant"] for row in rows}
    read = list(csv.DictReader(io.StringIO(as_csv(summary, "nll"))))
    assert {text_of_cell(it["variant"]) for it in read} == labels
    assert {it["variant"] for it in json.loads(as_json(summary, "nll", TEXTS))["variants"]} == labels
    assert json.loads(as_json(summary, "nll", TEXTS))["headline"] == list(TEXTS)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.events: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.events += [
            name for name, value in attrs if name.startswith("on") or (value or "").startswith("javascript:")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_text(rows: list[Row], tmp_path: Path) -> None:
    page = _Page()
    page.feed(render_page(Findings.read(_stored(tmp_path / "r", rows))).html)
    assert page.tags.get("script") == 1 and "img" not in page.tags and not page.events
    assert SECRET not in page.text and "http://…@host:5000/x" in page.text
    shown = "".join(page.text.split())
    for text in ON_ONE_LINE[:12]:
        assert "".join(f"{text}@0.5".split()) in shown


def test_mlflow_has_text_and_no_passwords(
    rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "c%41 [v2] it's #&?類 ж" / "night"
    database = folder.parent / "mlflow.db"
    store = _stored(folder, rows)
    assert mirror([str(folder), "--uri", sqlite_uri(database)]) == 0
    out, err = capsys.readouterr()
    command = out.splitlines()[0].removeprefix("MLflow")
    assert shlex.split(command)[-1] == sqlite_uri(database)
    with closing(sqlite3.connect(database)) as connection:
        told = "".join(connection.iterdump())
    assert SECRET not in told + out + err
    client = MlflowClient(tracking_uri=sqlite_uri(database))
    (experiment,) = [it for it in client.search_experiments() if it.name != "Default"]
    assert experiment.name == ON_ONE_LINE[0]
    found = {
        run.data.tags.get("kvmerger.variant"): run for run in client.search_runs([experiment.experiment_id])
    }
    assert found.keys() == {None, *(row["variant"] for row in rows)}
    artifacts = {path.name: path for path in folder.parent.rglob("artifacts/**/*") if path.is_file()}
    for path in artifacts.values():
        assert SECRET.encode() not in path.read_bytes(), path
    (predictions,) = (path for path in artifacts.values() if path.suffix == ".csv")
    with predictions.open(encoding="utf-8", newline="") as file:
        said = [text_of_cell(it["prediction"]) for it in csv.DictReader(file)]
    assert sorted(said) == sorted(row["prediction"] for row in rows)
    assert yaml.safe_load(artifacts["settings.yaml"].read_text())["name"] == ON_ONE_LINE[0]
    assert Findings.read(store).settings["notes"] == list(TEXTS)


def _stored(folder: Path, rows: list[Row]) -> ResultStore:
    store = ResultStore(folder)
    for number, of_unit in enumerate(grouped(rows, lambda row: row["unit_id"]).values()):
        store.write_unit(f"u{number}", [row | {"unit_id": f"u{number}"} for row in of_unit])
    settings: dict[str, Any] = {"name": ON_ONE_LINE[0], "tracking": {"uri": ADDRESS}, "notes": list(TEXTS)}
    store.write_settings(settings)
    store.write_run_meta(
        {
            "sweep_id": "a-1",
            "started_at_s": 1.0,
            "args": ["sweep.py", "--set", f"tracking.uri={ADDRESS}", *TEXTS],
        }
    )
    return store

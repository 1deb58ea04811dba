"""Pictures of a sweep's pages in MLflow: `python bench/service/mlflow_pages.py URI RUN_ID FOLDER`.

Needs `playwright` (in an environment of its own), `pillow` and Debian's chromium; see docs/mlflow.md, which shows them.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
WIDTH, HEIGHT = 1600, 1000
NUM_COLORS = 256
SETTLE_MS = 2500
COMPARED = ("full", "kvmerger@0.5", "snapkv@0.5", "streaming_llm@0.5")


def main(arguments: Sequence[str] | None = None) -> None:
    """Open the pages of one parent run and save each as a small PNG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("uri", help="a running tracking server")
    parser.add_argument("run_id", help="the sweep's own run")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--compare", nargs="+", default=COMPARED, help="variants, full first")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    parent = fetch(options.uri, f"runs/get?run_id={options.run_id}")["run"]
    experiment = parent["info"]["experiment_id"]
    children = child_ids(options.uri, experiment, options.run_id)
    ids = [children[label] for label in options.compare]
    home = f"{options.uri}/#/experiments/{experiment}/runs"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        show(page, f"{home}/{options.run_id}", "Description")
        click(page, "Show more")
        save(page, options.folder / "parent.png")
        show(page, f"{home}/{options.run_id}/artifacts/report.html", "report.html")
        save(page, options.folder / "artifacts.png")
        show(page, experiment_url(home), parent["info"]["run_name"])
        expand_children(page)
        save(page, options.folder / "experiment.png")
        compared = f"runs={quote(json.dumps(ids))}&experiments={quote(json.dumps([experiment]))}"
        show(page, f"{options.uri}/#/compare-runs?{compared}", options.compare[1])
        show_metrics_of_comparison(page)
        save(page, options.folder / "compare.png")
        key = next(it for it in metric_keys(options.uri, ids[0]) if it.startswith("trace_bytes/"))
        chosen = f"metric={quote(json.dumps(key))}&plot_metric_keys={quote(json.dumps([key]))}&x_axis=step"
        show(page, f"{options.uri}/#/metric?{compared}&{chosen}", "Points")
        save(page, options.folder / "trace.png")
        browser.close()


def fetch(uri: str, path: str, body: Any = None) -> Any:
    """One call of MLflow's REST interface."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{uri}/api/2.0/mlflow/{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


def child_ids(uri: str, experiment: str, parent_id: str) -> dict[str, str]:
    """Variant → run id."""
    query = {"experiment_ids": [experiment], "filter": f"tags.`mlflow.parentRunId` = '{parent_id}'"}
    runs = fetch(uri, "runs/search", query)["runs"]
    return {run["info"]["run_name"]: run["info"]["run_id"] for run in runs}


def metric_keys(uri: str, run_id: str) -> list[str]:
    """The run's metrics."""
    return [it["key"] for it in fetch(uri, f"runs/get?run_id={run_id}")["run"]["data"]["metrics"]]


def experiment_url(home: str) -> str:
    """The list of runs with the columns that the sweep asked for."""
    return f"{home}?viewStateShareKey=kvmerger"


def show(page: Page, url: str, text: str) -> None:
    """Open a page and wait for a text on it: the network of this application never falls idle."""
    page.goto("about:blank")
    page.goto(url)
    page.get_by_text(text).first.wait_for(timeout=30_000)
    page.wait_for_timeout(SETTLE_MS)
    close_assistant(page)


def close_assistant(page: Page) -> None:
    """The assistant's panel opens by itself on a first visit."""
    button = page.get_by_role("button", name="Close")
    if button.count():
        button.first.click()
        page.wait_for_timeout(SETTLE_MS // 2)


def click(page: Page, text: str) -> None:
    """Click what carries the text, if it is there."""
    try:
        page.get_by_text(text, exact=True).first.click(timeout=2000)
    except PlaywrightTimeout:
        return
    page.wait_for_timeout(SETTLE_MS // 2)


def expand_children(page: Page) -> None:
    """Unfold the parent's variants."""
    page.locator("[data-testid*=expander], .ag-body-viewport button").first.click(timeout=3000)
    page.wait_for_timeout(SETTLE_MS)


def show_metrics_of_comparison(page: Page) -> None:
    """Fold what is not compared, so that the metrics come under the runs' names."""
    for title in ("Visualizations", "Parameters", "Tags"):
        click(page, title)


def save(page: Page, path: Path) -> None:
    """A palette keeps such pictures far below 200 kB."""
    page.screenshot(path=path)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(NUM_COLORS, Image.Quantize.FASTOCTREE).save(path, optimize=True)
    print(path, path.stat().st_size // 1000, "kB")


if __name__ == "__main__":
    main()

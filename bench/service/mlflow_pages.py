"""Pictures of a sweep's pages in MLflow: `python -m bench.service.mlflow_pages URI RUN_ID FOLDER`.

Needs Debian's chromium, and pillow for small files; see docs/mlflow.md, which shows them. The first pages are as a first
visit has them, with MLflow's assistant, which opens by itself; for the others it is closed, as anybody would.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from bench.service.browser import Page, opened
from jobs.tracking.mlflow_runs import ROLE_TAG, SWEEP_TAG, VARIANT_TAG, view_key
from jobs.tracking.tracker import WORKSPACE

WIDTH, HEIGHT = 1400, 900
NUM_COLORS = 256
SETTLE_S = 3.0
FIRST_VISIT = ("first", "list")
COMPARED = ("full", "int4", "keydiff+int8@bytes:like:int4", "streaming_llm@0.5")


def main(arguments: Sequence[str] | None = None) -> None:
    """Open the pages of one parent run and save each as a small PNG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("uri", help="a running tracking server")
    parser.add_argument("run_id", help="the sweep's own run")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--compare", nargs="+", default=COMPARED, help="variants, full first; the second is shown"
    )
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    parent = fetch(options.uri, f"runs/get?run_id={options.run_id}")["run"]
    experiment, sweep_id = parent["info"]["experiment_id"], tag(parent, SWEEP_TAG)
    children = child_ids(options.uri, experiment, sweep_id)
    ids = [children[label] for label in options.compare]
    runs = f"{options.uri}/#/experiments/{experiment}/runs"
    compared = f"runs={quote(json.dumps(ids))}&experiments={quote(json.dumps([experiment]))}"
    key = next(it for it in metric_keys(options.uri, ids[0]) if it.startswith("trace_bytes/"))
    chosen = f"metric={quote(json.dumps(key))}&plot_metric_keys={quote(json.dumps([key]))}&x_axis=step"
    pages = {
        "first": (f"{runs}/{options.run_id}?{WORKSPACE}", "Description", ()),
        "list": (f"{runs}?viewStateShareKey={view_key(sweep_id)}&{WORKSPACE}", "matching runs", ()),
        "parent": (f"{runs}/{options.run_id}?{WORKSPACE}", "Description", ("Show more",)),
        "variant": (f"{runs}/{ids[1]}?{WORKSPACE}", "Description", ()),
        "worst": (f"{runs}/{options.run_id}/artifacts/worst_items.json?{WORKSPACE}", "View as table", ()),
        "compare": (
            f"{options.uri}/#/compare-runs?{compared}&{WORKSPACE}",
            "Metrics",
            (
                "Visualizations",
                "Parameters",
                "Tags",
            ),  # folded, so that the metrics come under the runs' names
        ),
        "trace": (f"{options.uri}/#/metric?{compared}&{chosen}&{WORKSPACE}", "Points", ()),
    }
    with opened(WIDTH, HEIGHT) as page:
        for name, (url, text, clicks) in pages.items():
            show(page, url, text)
            if name not in FIRST_VISIT:
                page.evaluate("document.querySelector('button[aria-label=\"Close\"]')?.click()")
            for words in clicks:
                click(page, words)
            save(page, options.folder / f"{name}.png")


def fetch(uri: str, path: str, body: Any = None) -> Any:
    """One call of MLflow's REST interface."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{uri}/api/2.0/mlflow/{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


def tag(run: Any, key: str) -> str:
    """The value of a run's tag."""
    return str(next(it["value"] for it in run["data"]["tags"] if it["key"] == key))


def child_ids(uri: str, experiment: str, sweep_id: str) -> dict[str, str]:
    """Label → run id."""
    condition = f"tags.`{SWEEP_TAG}` = '{sweep_id}' and tags.`{ROLE_TAG}` = 'variant'"
    runs = fetch(uri, "runs/search", {"experiment_ids": [experiment], "filter": condition})["runs"]
    return {tag(run, VARIANT_TAG): run["info"]["run_id"] for run in runs}


def metric_keys(uri: str, run_id: str) -> list[str]:
    """The run's metrics."""
    return [it["key"] for it in fetch(uri, f"runs/get?run_id={run_id}")["run"]["data"]["metrics"]]


def show(page: Page, url: str, text: str) -> None:
    """Open a page and wait for a text on it: the network of this application never falls idle."""
    page.go(url)
    if not page.wait_for(f"document.body?.innerText.includes({json.dumps(text)})"):
        raise RuntimeError(f"{url} does not show {text!r}")
    time.sleep(SETTLE_S)


def click(page: Page, text: str) -> None:
    """Click the innermost element that carries the text and nothing else, if there is one."""
    having = f"[...document.querySelectorAll('*')].filter(it => it.innerText?.trim() === {json.dumps(text)})"
    page.evaluate(f"{having}.at(-1)?.click()")
    time.sleep(SETTLE_S / 2)


def save(page: Page, path: Path) -> None:
    """A palette keeps such pictures far below 200 kB."""
    with Image.open(io.BytesIO(page.png())) as picture:
        picture.convert("RGB").quantize(NUM_COLORS, Image.Quantize.FASTOCTREE).save(path, optimize=True)
    print(path, path.stat().st_size // 1000, "kB")


if __name__ == "__main__":
    main()

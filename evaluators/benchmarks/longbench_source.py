"""A task's official jsonl lines in file order, from the user's folder or from the hub's pinned archive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from evaluators.benchmark import TaskSpec
from evaluators.benchmarks.hub_file import hub_file
from evaluators.benchmarks.row_file import find_in_folder, open_lines

HUB_REPOSITORY = "zai-org/LongBench"  # THUDM/LongBench redirects here
HUB_REVISION = "5e628be450b7e67fb7ae6e201bd6d8f7056f7672"
_HUB_ARCHIVE = "data.zip"


@contextmanager
def open_task_file(spec: TaskSpec, stem: str) -> Iterator[tuple[Iterable[bytes], str]]:
    """Yield the lines of `stem`.jsonl as bytes, and the name of their source for messages.

    Raises BenchmarkError when the folder, file or hub cannot be read, also while the lines are read.
    """
    if spec.data is None:
        revision = spec.revision or HUB_REVISION
        path = hub_file(spec, HUB_REPOSITORY, _HUB_ARCHIVE, revision, f"{stem}.jsonl or .jsonl.gz")
        source = f"{HUB_REPOSITORY}/data/{stem}.jsonl"
    else:
        spec.refuse_options(("revision",), "the data come from a local folder; remove `revision` or `data`.")
        path = find_in_folder(spec, (f"{stem}.jsonl", f"{stem}.jsonl.gz"))
        source = str(path)
    with open_lines(path, source, zip_member=f"data/{stem}.jsonl") as lines:
        yield lines, source

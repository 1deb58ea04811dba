"""A task's official jsonl lines, from the user's folder or from the authors' zip on the hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.hub_file import hub_file
from evaluators.benchmarks.row_file import find_in_folder, open_lines
from evaluators.hints import nearest_name_hint

HUB_REPOSITORY = "tau/zero_scrolls"
HUB_REVISION = "main"  # no commit could be checked when this was written; `revision` in the settings pins one
SPLITS = ("validation", "test")


@contextmanager
def open_task_file(spec: TaskSpec) -> Iterator[tuple[Iterable[bytes], str]]:
    """Yield the lines of the task's split as bytes, and the name of their source for messages.

    Without `spec.split` it is the validation set, since the test set's answers are hidden; a folder's <task>.jsonl is
    taken as it is. Raises BenchmarkError when folder, file, split or hub cannot be read, also while lines are read.
    """
    if spec.split not in (None, *SPLITS):
        raise BenchmarkError(
            f"{spec.name}: there is no split {spec.split!r}. {nearest_name_hint(spec.split, SPLITS)}"
        )
    member = f"{spec.task}/{spec.split or SPLITS[0]}.jsonl"
    if spec.data is None:
        local_names = f"{spec.task}.jsonl or .jsonl.gz, or the authors' {spec.task}.zip"
        path = hub_file(spec, HUB_REPOSITORY, f"{spec.task}.zip", spec.revision or HUB_REVISION, local_names)
        source = f"{HUB_REPOSITORY}/{member}"
    else:
        spec.refuse_options(("revision",), "the data come from a local folder; remove `revision` or `data`.")
        path = find_in_folder(spec, _local_names(spec, member))
        source = f"{path}/{member}" if path.suffix == ".zip" else str(path)
    with open_lines(Path(path), source, zip_member=member) as lines:
        yield lines, source


def _local_names(spec: TaskSpec, member: str) -> list[str]:
    whole = [] if spec.split else [f"{spec.task}.jsonl", f"{spec.task}.jsonl.gz"]
    return [*whole, member, f"{member}.gz", f"{spec.task}.zip"]

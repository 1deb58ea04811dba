"""The ten tasks of ZeroSCROLLS as their authors define them (tau-nlp/zero_scrolls@27aa342e, MIT; arXiv:2305.14196).

The wording of a prompt is in the rows themselves; here is what the rows leave open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.sources.rows import HubRows
from evaluators.hints import nearest_name_hint
from evaluators.metrics.concordance_index import listed_ids
from evaluators.metrics.exp_similarity import first_percentage
from evaluators.metrics.multiple_choice import chosen_letter

_READ_GOLD: dict[str, Callable[[str], object]] = {
    "multiple_choice": chosen_letter,
    "exp_similarity": first_percentage,
    "concordance_index": listed_ids,
}
HUB_REPOSITORY = "tau/zero_scrolls"
HUB_REVISION = "main"  # no commit could be checked when this was written; `revision` in the settings pins one
SPLITS = ("validation", "test")


@dataclass(frozen=True, slots=True)
class ZeroScrollsTask:
    """A task's definition; `max_new_tokens` is what experiments/api/api.py leaves for the answer."""

    about: str
    metric: str
    max_new_tokens: int

    @property
    def is_summary(self) -> bool:
        """Summaries get no "Do not provide any explanation." from chat models."""
        return self.metric == "rouge_geometric_mean"

    def can_be_gold(self, answer: str) -> bool:
        """Whether a prediction can be right against `answer`: one without letter, percentage or ids scores nothing."""
        read = _READ_GOLD.get(self.metric)
        return read is None or read(answer) not in (None, [])


ZEROSCROLLS_TASKS = {
    "gov_report": ZeroScrollsTask("summary of a government report", "rouge_geometric_mean", 1024),
    "summ_screen_fd": ZeroScrollsTask("summary of a TV episode's script", "rouge_geometric_mean", 512),
    "qmsum": ZeroScrollsTask("summary of a meeting, by query", "rouge_geometric_mean", 512),
    "squality": ZeroScrollsTask("summary of a story, by question", "rouge_geometric_mean", 512),
    "qasper": ZeroScrollsTask("questions on a scientific paper", "qa_f1", 128),
    "narrative_qa": ZeroScrollsTask("questions on a novel or film script", "qa_f1", 64),
    "quality": ZeroScrollsTask("multiple-choice questions on a story", "multiple_choice", 10),
    "musique": ZeroScrollsTask("questions over twenty paragraphs", "qa_f1", 32),
    "space_digest": ZeroScrollsTask("share of positive hotel reviews", "exp_similarity", 36),
    "book_sum_sort": ZeroScrollsTask("order of a novel's chapters", "concordance_index", 256),
}


def published_rows(spec: TaskSpec) -> HubRows:
    """Where the rows of the task's split lie.

    Without `spec.split` it is the validation set, since the test set's answers are hidden; a folder's <task>.jsonl is
    taken as it is. Raises BenchmarkError for a split that there is not.
    """
    if spec.split not in (None, *SPLITS):
        raise BenchmarkError(
            f"{spec.name}: there is no split {spec.split!r}. {nearest_name_hint(spec.split, SPLITS)}"
        )
    member = f"{spec.task}/{spec.split or SPLITS[0]}.jsonl"
    whole = () if spec.split else (f"{spec.task}.jsonl", f"{spec.task}.jsonl.gz")
    names = (*whole, member, f"{member}.gz", f"{spec.task}.zip")
    return HubRows(HUB_REPOSITORY, HUB_REVISION, f"{spec.task}.zip", zip_member=member, local_names=names)

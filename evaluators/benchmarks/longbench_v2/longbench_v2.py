"""LongBench v2 (Bai et al. 2024, arXiv:2412.15204): 503 multiple-choice questions, asked once without a chain of thought.

The authors sample at temperature 0.1; ours is greedy. Chance is 25 %, and the commonest letter 29.4 %.
"""

from __future__ import annotations

from evaluators.benchmark import BenchmarkError, TaskInfo, TaskSpec
from evaluators.benchmarks.sources.json_rows import JsonRow, check_size, text_field
from evaluators.benchmarks.sources.rows import HubRows, read_rows
from evaluators.item import BenchmarkItem, text_digest
from evaluators.registry import register_benchmark
from evaluators.tokenizer import Tokenizer

ROWS = HubRows(
    "zai-org/LongBench-v2",
    "2b48e494f2c7a2f0af81aae178e05c7e1dde0fe9",
    "data.json",
    local_names=("data.json", "longbench_v2.jsonl", "longbench_v2.jsonl.gz"),
)
MAX_NEW_TOKENS = 128
# prompts/0shot.txt of THUDM/LongBench@2e00731f.
_BEFORE = "Please read the following text and answer the question below.\n\n<text>\n"
_AFTER = """
</text>

What is the correct answer to this question: {question}
Choices:
(A) {choice_A}
(B) {choice_B}
(C) {choice_C}
(D) {choice_D}

Format your response as follows: "The correct answer is (insert answer here)\"."""
_ASKED = ("question", "choice_A", "choice_B", "choice_C", "choice_D")
TASKS = {
    "all": ("", "", "the 503 of all"),
    "short": ("length", "short", "the 180 on less than 32,000 words"),
    "medium": ("length", "medium", "the 215 on 32,000 to 128,000 words"),
    "long": ("length", "long", "the 108 on more than 128,000 words"),
    "easy": ("difficulty", "easy", "the 192 that experts or models found easy"),
    "hard": ("difficulty", "hard", "the 311 that neither found easy"),
}
"""Each group of the authors' table: the column and value that its rows have."""


@register_benchmark("longbench_v2")
class LongBenchV2:
    """Multiple-choice questions that need understanding: accuracy, without any measure of words."""

    def tasks(self) -> tuple[str, ...]:
        """The groups of the authors' table."""
        return tuple(TASKS)

    def describe(self, task: str) -> TaskInfo:
        """What the task asks, its metric, and where its rows lie."""
        source = f"{ROWS.place}, or `data`: a folder with {ROWS.names[0]} or {ROWS.names[1]}"
        about = f"multiple choice on long texts; {TASKS[task][2]}"
        return TaskInfo(
            name=f"longbench_v2/{task}",
            about=about,
            metric="stated_choice",
            source=source,
            num_items=TASKS[task][2].split()[1],
            context="8k to 2M words",
            answer_tokens=MAX_NEW_TOKENS,
            licence="Apache-2.0",
            separates="little at half of the bytes: it shows what is not lost",
        )

    def load_items(self, spec: TaskSpec, tokenizer: Tokenizer) -> list[BenchmarkItem]:
        """The first `spec.limit` rows of the group.

        Raises BenchmarkError for a source that cannot be read and, with its place, for an unusable row.
        """
        spec.refuse_options(("length", "haystack", "split"), "the texts are given; remove it.")
        column, value, _ = TASKS[spec.task]
        items: list[BenchmarkItem] = []
        for where, row in read_rows(spec, ROWS, "context, question, choices and answer", split="train"):
            if spec.limit is not None and len(items) == spec.limit:
                break
            if not column or row.get(column) == value:
                items.append(_item(spec, row, where))
        if not items:
            raise BenchmarkError(f"{spec.name}: {spec.data or ROWS.repository} has no such rows.")
        return items


def _item(spec: TaskSpec, row: JsonRow, where: str) -> BenchmarkItem:
    asked = {name: text_field(row, name, where).strip() for name in _ASKED}
    for name, text in asked.items():
        check_size(text, f"{where}: {name}")
    context = text_field(row, "context", where, is_required=True).strip()
    letter = text_field(row, "answer", where)
    if letter not in tuple("ABCD"):
        raise BenchmarkError(f"{where}: answer is {letter!r:.20}; it must be A, B, C or D.")
    told = {name: str(row[name]) for name in ("domain", "difficulty", "length") if row.get(name)}
    return BenchmarkItem(
        item_id=f"{spec.name}/{row.get('_id') or text_digest(context + asked['question'])}",
        benchmark=spec.benchmark,
        task=spec.task,
        cluster_id=text_digest(context),
        before_context=_BEFORE,
        context=context,
        after_context=_AFTER.format(**asked),
        answer_prefix="",
        answers=(f"The correct answer is ({letter})",),
        max_new_tokens=spec.max_new_tokens or MAX_NEW_TOKENS,
        use_chat_template=True,
        metric="stated_choice",
        metadata=told,
    )

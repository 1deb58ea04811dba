"""What is asked of a model and how answers are scored: text and numbers only, no torch, ray or mlflow.

The names in `__all__` are what the author of a benchmark or a metric needs: ``from evaluators import register_metric``
stays valid wherever the modules behind it move. Importing the package loads none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluators.benchmark import Benchmark, BenchmarkError, TaskInfo, TaskSpec, UnknownNameError
    from evaluators.item import BenchmarkItem, text_digest
    from evaluators.metrics.best_answer import best_over_answers
    from evaluators.prompting import QueryMode, TokenizedPrompt, tokenize_item
    from evaluators.registry import describe_tasks, list_tasks, load_items, register_benchmark
    from evaluators.scoring import (
        Combine,
        ItemScore,
        Metric,
        MetricError,
        PartsMetric,
        corpus_score,
        list_metrics,
        register_metric,
        register_metric_of_parts,
        score,
        score_item,
    )
    from evaluators.tokenizer import PromptError, Tokenizer

__all__ = [
    "Benchmark", "BenchmarkError", "BenchmarkItem", "Combine", "ItemScore", "Metric", "MetricError",
    "PartsMetric", "PromptError", "QueryMode", "TaskInfo", "TaskSpec", "TokenizedPrompt", "Tokenizer",
    "UnknownNameError", "best_over_answers", "corpus_score", "describe_tasks", "list_metrics", "list_tasks",
    "load_items", "register_benchmark", "register_metric", "register_metric_of_parts", "score", "score_item",
    "text_digest", "tokenize_item",
]  # fmt: skip

_NAMES_OF_MODULE = {
    "benchmark": "Benchmark BenchmarkError TaskInfo TaskSpec UnknownNameError",
    "item": "BenchmarkItem text_digest",
    "metrics.best_answer": "best_over_answers",
    "prompting": "QueryMode TokenizedPrompt tokenize_item",
    "registry": "describe_tasks list_tasks load_items register_benchmark",
    "scoring": (
        "Combine ItemScore Metric MetricError PartsMetric corpus_score list_metrics register_metric "
        "register_metric_of_parts score score_item"
    ),
    "tokenizer": "PromptError Tokenizer",
}
_MODULE_OF_NAME = {name: module for module, names in _NAMES_OF_MODULE.items() for name in names.split()}

# Seen by mypy, a module's __getattr__ would make every misspelt import valid.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """The name's own object, imported when it is first asked for.

        Raises:
            AttributeError: there is no such name, with the nearest one.
        """
        # `from evaluators import scoring` comes by here too, before Python imports the submodule: it must get this error.
        if name not in _MODULE_OF_NAME:
            from evaluators.hints import nearest_name_hint

            hint = nearest_name_hint(name, __all__)
            # Told the name, Python's traceback does not add a second "did you mean" to ours.
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}. {hint}", name=name)
        found = getattr(import_module(f"{__name__}.{_MODULE_OF_NAME[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    """What is loaded, and what can be asked for."""
    return sorted({*globals(), *__all__})

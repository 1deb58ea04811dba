"""Each RULER task asks what its authors ask, fills its length, and gives the answers its text holds."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.ruler.draft import NOISE, largest_that_fits
from evaluators.item import BenchmarkItem
from evaluators.prompting import num_prompt_tokens
from evaluators.registry import list_tasks, load_items
from tests.evaluators.conftest import CASES, SHARED_DATA, LoadTask, MakeTokenizer

GENERATED = [name for name in list_tasks() if name.startswith("ruler/") and "qa_" not in name]
NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for (\S+) is: ([0-9a-f-]+)\.")
OFFICIAL_NEW_TOKENS = {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}  # niah: 128
SQUAD, HOTPOTQA = CASES / "ruler" / "squad.json", CASES / "ruler" / "hotpotqa.json"


@pytest.fixture
def load(make_tokenizer: MakeTokenizer) -> LoadTask:
    def load_task(task: str, **options: object) -> list[BenchmarkItem]:
        spec = TaskSpec(f"ruler/{task}", **({"length": 3000, "limit": 2} | options))  # type: ignore[arg-type]
        return load_items(spec, make_tokenizer())

    return load_task


@pytest.mark.parametrize("name", GENERATED)
def test_length_is_filled_and_answers_have_the_official_room(
    load: LoadTask, make_tokenizer: MakeTokenizer, name: str
) -> None:
    task = name.partition("/")[2]
    for item in load(task):
        assert item.max_new_tokens == OFFICIAL_NEW_TOKENS.get(task, 128)
        used = num_prompt_tokens(item, make_tokenizer()) + item.max_new_tokens
        # One unit more would be too much: a sentence, a line, a word with its repeats (cwe: 1, below 4,096 tokens).
        assert 3000 - 150 < used <= 3000


@pytest.mark.parametrize("name", GENERATED)
def test_items_do_not_depend_on_the_limit_and_differ_by_seed(load: LoadTask, name: str) -> None:
    task = name.partition("/")[2]
    two = load(task)
    assert load(task, limit=1) == two[:1]
    assert two[0].answers != two[1].answers
    assert load(task, limit=1, seed=7)[0].answers != two[0].answers


@pytest.mark.parametrize(
    ("task", "num_needles", "num_keys", "num_answers"),
    [
        ("niah_single_1", 1, 1, 1),
        ("niah_single_3", 1, 1, 1),
        ("niah_multikey_1", 4, 4, 1),
        ("niah_multivalue", 4, 1, 4),
        ("niah_multiquery", 4, 4, 4),
    ],
)
def test_needles_are_as_many_as_promised_and_the_answers_are_those_asked_for(
    load: LoadTask, task: str, num_needles: int, num_keys: int, num_answers: int
) -> None:
    for item in load(task):
        needles = NEEDLE.findall(item.context)
        assert (len(needles), len({key for _, key, _ in needles})) == (num_needles, num_keys)
        asked = {value for _, key, value in needles if key in item.after_context}
        assert asked == set(item.answers)
        assert len(item.answers) == num_answers
        assert ("depth_percent" in item.metadata) == (num_answers == 1)


@pytest.mark.parametrize("task", ["niah_multikey_2", "niah_multikey_3"])
def test_a_needle_hides_among_needles(load: LoadTask, task: str) -> None:
    for item in load(task):
        lines = item.context.split("\n")
        assert all(NEEDLE.fullmatch(line) for line in lines)
        place = int(item.metadata["num_sentences"]) * int(item.metadata["depth_percent"]) // 100
        found = NEEDLE.fullmatch(lines[place])
        assert found is not None
        assert found[2] in item.after_context and (found[3],) == item.answers


def test_noise_is_the_authors_line_by_line(load: LoadTask) -> None:
    lines = load("niah_single_1", limit=1)[0].context.split("\n")
    assert set(lines) - {line for line in lines if NEEDLE.fullmatch(line)} == {NOISE}


def test_depths_of_a_lone_needle_cover_the_haystack(load: LoadTask) -> None:
    for task in ("niah_single_1", "niah_single_3", "niah_multikey_2"):
        depths = {item.metadata["depth_percent"] for item in load(task, limit=40, length=900)}
        assert len(depths) == 40 and {0, 100} <= depths


def test_many_values_are_asked_for_in_the_plural(load: LoadTask) -> None:
    item = load("niah_multiquery", limit=1)[0]
    keys = r"(\S+, \S+, \S+, and \S+)"
    assert item.before_context.startswith("Some special magic numbers are hidden within")
    found = re.fullmatch(
        rf"\nWhat are all the special magic numbers for {keys} mentioned in the provided text\?",
        item.after_context,
    )
    assert found is not None
    assert item.answer_prefix == (
        f" The special magic numbers for {found[1]} mentioned in the provided text are"
    )


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"official items are not at {SHARED_DATA}")
def test_wording_is_that_of_an_item_the_authors_generated(load: LoadTask) -> None:
    with gzip.open(SHARED_DATA / "ruler" / "niah_multikey_3.4096.jsonl.gz", "rt") as lines:
        official = json.loads(next(lines))["input"]
    item = load("niah_multikey_3", limit=1)[0]
    without_values = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
    # Their lines and ours, but for the uuids; the number of lines is the tokenizer's.
    shapes = [
        Counter(without_values.sub("UUID", text).split("\n"))
        for text in (official, item.prompt_text + item.answer_prefix)
    ]
    assert set(shapes[0]) == set(shapes[1])


def test_every_name_of_a_chain_leads_to_the_value(load: LoadTask) -> None:
    for item in load("vt"):
        (value,) = re.findall(r"assigned the value (\d{5}) in", item.after_context)
        first = re.findall(rf"VAR ([A-Z]{{5}}) = {value}", item.context)
        hops = dict(reversed(hop) for hop in re.findall(r"VAR ([A-Z]{5}) = VAR ([A-Z]{5}) ", item.context))
        names = first
        while names[-1] in hops:
            names.append(hops[names[-1]])
        assert tuple(names) == item.answers and len(names) == 5
        assert item.answer_prefix.endswith(f"5 variables are assgined the value {value}, they are: ")


def test_the_solved_chain_comes_first_with_other_names_in_each_item(load: LoadTask) -> None:
    examples = [item.before_context for item in load("vt")]
    solved = [re.findall(r"they are:  ((?:[A-Z]{3} ?){5})\n\n\n\n", example) for example in examples]
    assert all(len(found) == 1 for found in solved) and solved[0] != solved[1]
    # All else is the same.
    assert (
        len(
            {re.sub(r"\b[A-Z]{3}\b(?! [A-Z]{3} =)", "N", example).replace("VAR", "N") for example in examples}
        )
        == 1
    )


@pytest.mark.parametrize(("length", "most", "rest"), [(3000, 6, 1), (6000, 30, 3)])
def test_common_words_are_the_ten_that_stand_most_often(
    load: LoadTask, length: int, most: int, rest: int
) -> None:
    for item in load("cwe", length=length):
        counts = Counter(re.findall(r"\d+\. ([^\d]+?)(?= \d|$)", item.context))
        assert {word for word, count in counts.items() if count == most} == set(item.answers)
        assert set(counts.values()) == {most, rest}
        assert re.search(r"list are: 1\. .*10\. [^\n]+\nBelow is a numbered", item.before_context)


def test_filler_that_runs_out_leaves_the_item_short(load: LoadTask) -> None:
    item = load("qa_2", data=str(HOTPOTQA), length=50_000, limit=1)[0]
    assert item.metadata["num_documents"] == 43  # all there are


def test_frequent_words_are_the_three_most_frequent_but_dots(load: LoadTask) -> None:
    for item in load("fwe"):
        counts = Counter(item.context.split(" "))
        (dots, num_dots), *ranked = counts.most_common(5)
        assert dots == "..." and num_dots > ranked[0][1]
        assert tuple(word for word, _ in ranked[:3]) == item.answers
        assert ranked[2][1] > ranked[3][1]


@pytest.mark.parametrize(("task", "data"), [("qa_1", SQUAD), ("qa_2", HOTPOTQA)])
def test_questions_stand_over_their_documents_and_others(load: LoadTask, task: str, data: Path) -> None:
    items = load(task, data=str(data), length=1200, limit=None)
    assert [item.item_id.split("/")[-1] for item in items] == [str(index) for index in range(len(items))]
    for item in items:
        numbers = re.findall(r"^Document (\d+):$", item.context, re.MULTILINE)
        assert numbers == [str(number + 1) for number in range(len(numbers))] and len(numbers) > 2
        assert item.metric == "string_match_part" and item.answer_prefix == " Answer:"
        assert item.after_context.startswith("\n\nAnswer the question based on the given documents.")
    assert items[0].answers == (("Ada Brennan", "Brennan") if task == "qa_1" else ("yes",))


def test_unanswerable_questions_are_left_out(load: LoadTask) -> None:
    items = load("qa_1", data=str(SQUAD), length=1200, limit=None)
    assert len(items) == 3
    assert not any("sank" in item.after_context for item in items)


def test_documents_of_the_same_article_come_before_others(load: LoadTask) -> None:
    item = load("qa_1", data=str(SQUAD), length=420, limit=1)[0]
    assert "Gull Point lies two miles" in item.context


def test_questions_without_their_file_are_unavailable(load: LoadTask) -> None:
    with pytest.raises(BenchmarkError, match=r"ruler/qa_1 is unavailable.*squad\.json.*`data`"):
        load("qa_1")


@pytest.mark.parametrize(
    ("content", "message"),
    [("[", "does not have the form"), ("{}", "does not have the form"), ('{"data": []}', "has no question")],
)
def test_a_file_of_another_form_is_refused(
    load: LoadTask, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "squad.json").write_text(content)
    with pytest.raises(BenchmarkError, match=message):
        load("qa_1", data=str(tmp_path))


@pytest.mark.parametrize("name", GENERATED)
def test_a_length_without_room_says_so(load: LoadTask, name: str) -> None:
    with pytest.raises(BenchmarkError, match="length 60 has no room for haystack"):
        load(name.partition("/")[2], length=60)


@pytest.mark.parametrize("largest", [0, 1, 7, 40, 1000])
@pytest.mark.parametrize("guess", [0, 1, 6, 39, 40, 41, 5000])
def test_search_finds_the_largest_from_any_guess(largest: int, guess: int) -> None:
    assert largest_that_fits(lambda size: size <= largest, guess) == largest

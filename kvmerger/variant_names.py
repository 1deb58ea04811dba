"""Names of variants as people write them: parts joined by ``+``, with the budget at any part, become one spelling.

``keydiff@0.6+keepkv+kivi4`` and ``keydiff+keepkv+kivi4@0.6`` are the parts ``keydiff+keepkv``, the form ``kivi4`` and the
budget 0.6, and are labelled ``keydiff+keepkv@0.6+kivi4``. A form alone keeps every slot: ``fp8``, also ``full+fp8``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvmerger.budget import AskedBudget, BudgetError, label_referred_to
from kvmerger.budget_text import budget_of_text
from kvmerger.form_names import Split, split_parts, understood
from kvmerger.merging.protected import threshold_label
from kvmerger.names import VariantError

FULL = "full"
ALIASES = {
    "no_press": FULL,
    "full_cache": FULL,
    "baseline": FULL,
    "none": FULL,
    # kvpress's key for heads that are scored without the authors' tables.
    "duo_attention_on_the_fly": "duo_attention",
    # What acts during decoding follows what compresses the prompt; by its own name it follows its own method.
    "cam": "streaming_llm+cam",
    "h2o_decode": "h2o+h2o_decode",
    "streaming_llm_decode": "streaming_llm+streaming_llm_decode",
    "tova_decode": "tova+tova_decode",
    # So does what fits slots that another policy chose.
    "attention_matching": "highest_attention+attention_matching",
    "grkv": "snapkv+adakv+criticalkv+grkv",
    # The paper's first title.
    "dbudgetkv": "refreekv",
    # And what shares slots out among layers or heads, whose tokens another policy ranks.
    "dynamickv": "snapkv+dynamickv",
    "meda": "h2o+meda",
    "xkv": "snapkv+xkv",
    "uncomp": "snapkv+uncomp",
}
OUTCOMES = ("fastgen", "refreekv", "simlayerkv", "zipvl")
"""Policies that take no budget: what they keep is an outcome of the prompt. A test holds this list to their classes."""
PROTECT_MASSIVE = "protect_massive"
_KVPRESS_ADAKV = "adakv_"
"""kvpress writes ``adakv_snapkv`` where parts are joined here: ``snapkv+adakv``."""
# What follows is a label, with an @ and plus signs of its own, and so goes to the end of the name.
_LIKE_MARKS = ("@like:", "@bytes:like:")


@dataclass(frozen=True, slots=True)
class WrittenName:
    """A name in its parts.

    Attributes:
        shown: how the parts that choose slots are called in labels: an alias stays one.
        split: all parts, aliases spelt out.
        budget: None where the name has none.
    """

    shown: str
    split: Split
    budget: AskedBudget | None

    @property
    def policy(self) -> str:
        """What is built: all parts joined, without a budget."""
        before, form, after = self.split
        # A user's form behind nothing would look like a user's policy.
        is_marked = form is not None and ":" in form and not before
        return "+".join([*([FULL] if is_marked else before), *([form] if form else []), *after])

    @property
    def is_bare(self) -> bool:
        """Whether every slot is kept, and a form says how."""
        return self.split.form is not None and not self.split.before

    @property
    def is_outcome(self) -> bool:
        """Whether the policy that chooses slots takes no budget."""
        return self.split.before[:1] != () and self.split.before[0] in OUTCOMES

    def label(self, params: Mapping[str, Any], budget: AskedBudget | None) -> str:
        """What a variant of this name is called at ``budget``."""
        form, after = self.split.form, self.split.after
        stored = [_last(part) for part in (*([form] if form else []), *after)]
        if budget is None:
            return "+".join([*([self.shown] if self.shown else []), *stored])
        tail = self.budget_shown(params, budget)
        # A label that is referred to would swallow what stands behind it.
        if label_referred_to(budget) is not None:
            return "+".join([self.shown, *stored]) + tail
        return "+".join([self.shown + tail, *stored])

    def budget_shown(self, params: Mapping[str, Any], budget: AskedBudget) -> str:
        """What a label says of the budget: ``@0.5``, or the protected fractions where no budget decides what is kept."""
        return threshold_label("+".join(self.split.before), params, budget) or f"@{budget}"


def read_name(text: str) -> WrittenName:
    """Take ``text`` apart.

    Raises:
        VariantError: an empty part, two budgets, two forms, or a form that we do not have.
        BudgetError: a budget that cannot be read.
    """
    rest, budget_text = _without_like(text)
    budgets = [] if budget_text is None else [budget_text]
    parts = []
    for written in rest.split("+"):
        part, has_budget, own = written.partition("@")
        parts.append(understood(part))
        budgets += [own] if has_budget else []
    if not all(parts):
        raise VariantError(f"{text!r} has an empty part; join parts by single plus signs, as in snapkv+adakv")
    if len(budgets) > 1:
        raise VariantError(f"{text!r} has {len(budgets)} budgets, {' and '.join(budgets)}; keep one")
    return _written(parts, _budget_of(text, budgets))


def protecting_massive(written: WrittenName, params: Mapping[str, Any]) -> tuple[WrittenName, dict[str, Any]]:
    """A name and its parameters where ``protect_massive: true``, a key, has become the part of that name behind the ranking.

    Raises:
        VariantError: the key is neither true nor false, or false beside the part.
    """
    if PROTECT_MASSIVE not in params:
        return written, dict(params)
    asked = params[PROTECT_MASSIVE]
    others = {key: value for key, value in params.items() if key != PROTECT_MASSIVE}
    has_part = PROTECT_MASSIVE in written.split.before
    if not isinstance(asked, bool):
        raise VariantError(f"{written.policy!r}: {PROTECT_MASSIVE} is true or false, got {asked!r}")
    if has_part and not asked:
        raise VariantError(
            f"{written.policy!r} has the part {PROTECT_MASSIVE!r}, and `{PROTECT_MASSIVE}: false`; leave one of them out"
        )
    if has_part or not asked:
        return written, others
    # First of all that follows the ranking: what shares slots out, or merges, then goes by the scores with it.
    ranking, *rest = written.split.before
    before = (ranking, PROTECT_MASSIVE, *rest)
    return WrittenName(
        "+".join(map(_last, before)), written.split._replace(before=before), written.budget
    ), others


def spelling(text: str) -> str:
    """One text for all spellings of a name with its budget in it; ``text`` itself where it is no such name."""
    try:
        written = read_name(text)
    except (VariantError, BudgetError):
        return text
    if label := label_referred_to(written.budget):
        # A label in a label has spellings of its own.
        written = read_name(text.removesuffix(label) + spelling(label))
    # Whoever calls `cam` by the parts that it stands for means the same.
    spelt_out = replace(written, shown="+".join(map(_last, written.split.before)))
    return spelt_out.label({}, written.budget)


def _without_like(text: str) -> tuple[str, str | None]:
    """What stands before a budget that is like another variant, and that budget; None where there is none."""
    places = [(text.index(mark), mark) for mark in _LIKE_MARKS if mark in text]
    if not places:
        return text, None
    place, _ = min(places)
    return text[:place], text[place + 1 :]


def _budget_of(text: str, budgets: Sequence[str]) -> AskedBudget | None:
    if not budgets:
        return None
    try:
        return budget_of_text(budgets[0])
    except BudgetError as error:
        raise BudgetError(f"{text!r}: {error}") from error


def _written(parts: Sequence[str], budget: AskedBudget | None) -> WrittenName:
    split = split_parts(parts)
    before = _spelt_out(split.before)
    as_written = "+".join(split.before)
    shown = as_written if as_written in ALIASES else "+".join(map(_last, before))
    if split.form is not None and before == (FULL,):
        before, shown = (), ""
    return WrittenName(shown, split._replace(before=before), budget)


def _spelt_out(parts: tuple[str, ...]) -> tuple[str, ...]:
    """One spelling for what has several, so that the same computation has one identity."""
    if parts and parts[0].startswith(_KVPRESS_ADAKV):
        return (parts[0].removeprefix(_KVPRESS_ADAKV), "adakv", *parts[1:])
    # Of the whole: what acts while answering stands last, so that `cam+adakv` is no name.
    return tuple(ALIASES["+".join(parts)].split("+")) if "+".join(parts) in ALIASES else parts


def _last(part: str) -> str:
    """A part as labels have it: of ``module:Class`` the class."""
    return part.rpartition(":")[2]

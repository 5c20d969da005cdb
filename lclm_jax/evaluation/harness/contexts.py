"""Rules that find the passage in a harness task's prompt, which is what views compress."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

from lclm_jax.config import ConfigError
from lclm_jax.errors import TextError
from lclm_jax.evaluation.questions import Passage

Parts = list[str | Passage]


class ContextRule(Protocol):
    """A way to find the passage of a prompt."""

    def split(self, prompt: str, row: Mapping[str, Any]) -> Parts:
        """Return the parts of a prompt. Raises TextError for one without the passage."""
        ...


@dataclass(frozen=True)
class Whole:
    """The whole prompt is a passage, as for GSM8K in the paper."""

    def split(self, prompt: str, row: Mapping[str, Any]) -> Parts:
        """Return the prompt as a passage."""
        return [Passage(prompt)]


@dataclass(frozen=True)
class Nothing:
    """The prompt has no passage, and every view reads the same."""

    def split(self, prompt: str, row: Mapping[str, Any]) -> Parts:
        """Return the prompt as text."""
        return [prompt]


@dataclass(frozen=True)
class Field:
    """The passage is a field of the task's row, as `context` is in LongBench."""

    name: str

    def split(self, prompt: str, row: Mapping[str, Any]) -> Parts:
        """Split around the field's last occurrence; white space around it may be missing."""
        text = str(row.get(self.name, "")).strip()
        before, passage, after = prompt.rpartition(text) if text else ("", "", "")
        if not passage:
            raise TextError(f"expected the field {self.name!r} of the row in its prompt")
        return [before, Passage(passage), after]


@dataclass(frozen=True)
class Pattern:
    """The passage is what stands between an instruction and the last question of a prompt."""

    instruction: str  # regular expression of the start of a prompt
    question: str  # regular expression of the start of the question

    def split(self, prompt: str, row: Mapping[str, Any]) -> Parts:
        """Split after the instruction and before the last match of the question."""
        instruction = re.match(self.instruction, prompt, re.DOTALL)
        questions = list(re.finditer(self.question, prompt))
        if not instruction or not questions or questions[-1].start() < instruction.end():
            raise TextError(f"expected a prompt that matches {self.instruction!r}")
        start, stop = instruction.end(), questions[-1].start()
        return [prompt[:start], Passage(prompt[start:stop]), prompt[stop:]]


NEEDLES = Pattern(
    r"(?:Some|A) special magic .*? afterwards\.\n",
    r"\n?What (?:is|are all) the special magic ",
)
# Rules by a glob of the task's name; the first that matches counts.
RULES: dict[str, ContextRule] = {
    "niah_*": NEEDLES,
    "ruler_vt": Pattern(r"Memorize and track .*?\n\n", r"\n?Question: Find all variables "),
    "ruler_cwe": Pattern(r"Below is a numbered list .*?\n", r"\n?Question: What are the 10 most "),
    "ruler_fwe": Pattern(r"Read the following .*? coded words\. ", r"\n?Question: Do not provide "),
    "ruler_qa_*": Pattern(
        r"Answer the question .*?given documents\.\n\n", r"\n\nAnswer the question based on "
    ),
    "longbench_*": Field("context"),
    "longbench2_*": Field("context"),
    "infinitebench_*": Field("context"),
    "babilong_*": Field("input"),
    "gsm8k*": Whole(),
    "gsm_plus*": Whole(),
}


def find_rule(task: str, rules: Mapping[str, ContextRule] = RULES) -> ContextRule:
    """Return the rule of a task; a task without one has no passage."""
    return next((rule for glob, rule in rules.items() if fnmatchcase(task, glob)), Nothing())


def parse_rule(text: str) -> dict[str, ContextRule]:
    """Return the rule that `TASK=whole`, `TASK=nothing` or `TASK=field:NAME` asks for.

    TASK is a name of a task, or a glob of several, as `niah_*`. Raises ConfigError for another
    text.
    """
    task, _, rule = text.partition("=")
    if task and rule in ("whole", "nothing"):
        return {task: Whole() if rule == "whole" else Nothing()}
    kind, _, name = rule.partition(":")
    if not task or kind != "field" or not name:
        raise ConfigError(f"expected TASK=whole, TASK=nothing or TASK=field:NAME, got {text!r}")
    return {task: Field(name)}


def add_defaults(rules: Mapping[str, ContextRule]) -> dict[str, ContextRule]:
    """Return rules with those of RULES after them, of which none replaces a rule given."""
    defaults = {glob: rule for glob, rule in RULES.items() if glob not in rules}
    return {**rules, **defaults}


def check_rules(rules: Mapping[str, ContextRule], tasks: Collection[str]):
    """Raise ConfigError for a rule that is of none of the tasks."""
    for glob in rules:
        if not any(fnmatchcase(task, glob) for task in tasks):
            raise ConfigError(
                f"expected a task or a glob of tasks in --context, got {glob!r}, which matches "
                f"none of {', '.join(tasks)}"
            )

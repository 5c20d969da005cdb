"""Answers of an evaluation, each with its scores: the rows of every table and picture."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """The answer to one question in one view.

    Attributes:
        task: name of the task; its rows are averaged.
        number: of the row in its task.
        view: label of the view, such as "latents 16x".
        answer: what the model wrote, or for choices their log-likelihoods in JSON.
        references: right answers.
        scores: value of each metric, the first of which is the task's own.
        positions: length of the prompt that the decoder read: tokens and latents; for choices, of
            the longest.
        tags: values by which tables group samples: `family`, which tasks that are averaged have in
            common; `length`, the tokens of the passage that were asked for; and `cluster`, which
            questions that depend on each other have in common, such as those about one document.
        prompt: hash of the question before its passages are viewed; equal in all views.
        wording: the end of the prompt without its passages, for people.
    """

    task: str
    number: int
    view: str
    answer: str
    references: Sequence[str]
    scores: Mapping[str, float]
    positions: int
    tags: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = ""
    wording: str = ""

    @property
    def length(self) -> int | None:
        """The tag `length`: tokens of the passage that were asked for; None where there is none."""
        return self.tags.get("length")

    @property
    def family(self) -> str:
        """The tag `family`, which tasks that are averaged have in common; else the task."""
        return self.tags.get("family", self.task)

    @property
    def question(self) -> tuple[str, int | None, int, str]:
        """The key of the question, which its samples share: task, length, number and prompt."""
        return self.task, self.length, self.number, self.prompt

    @property
    def score(self) -> float:
        """The value of the task's own metric."""
        return next(iter(self.scores.values()))

    def to_dict(self) -> dict[str, Any]:
        """Return the sample in JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Sample":
        """Return the sample of `to_dict`."""
        return cls(**values)

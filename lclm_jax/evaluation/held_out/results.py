"""Results of an evaluation; `to_dict` gives the JSON of `evaluation.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lclm_jax.evaluation.statistics import Proportion
from lclm_jax.scoring import Score

Sample = dict[str, str]


@dataclass(frozen=True)
class PassageScore:
    """Scores of passages that are reproduced, token by token."""

    accuracy: Proportion  # of tokens that were the best guess, given all tokens before them
    loss: float  # nats per token

    @classmethod
    def of(cls, score: Score) -> "PassageScore":
        """Return the accuracy, with its interval, and the loss of a score."""
        return cls(Proportion.of(score.correct, int(score.tokens)), score.loss)

    def to_dict(self) -> dict[str, Any]:
        """Return accuracy and loss."""
        return {"accuracy": self.accuracy.to_dict(), "loss": self.loss}


@dataclass(frozen=True)
class Reconstruction:
    """Held-out passages of one source and length, to be repeated."""

    source: str
    lengths: tuple[int, int]  # least and most tokens of a passage
    passages: int
    views: Mapping[str, PassageScore]
    # From latents of each of the model's ratios; empty for a model of one ratio.
    ratios: Mapping[int, PassageScore] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the result, each view under its name."""
        views = {name: score.to_dict() for name, score in self.views.items()}
        ratios = {str(ratio): score.to_dict() for ratio, score in self.ratios.items()}
        return {
            "source": self.source,
            "lengths": list(self.lengths),
            "passages": self.passages,
            **views,
            **({"ratios": ratios} if ratios else {}),
        }


@dataclass(frozen=True)
class Continuation:
    """Held-out documents of one source whose plain half is predicted."""

    source: str
    documents: int
    losses: Mapping[str, float]  # nats per token, by the view of the other half

    def to_dict(self) -> dict[str, Any]:
        """Return the result, each view's loss under the view's name."""
        return {"source": self.source, "documents": self.documents, **self.losses}


@dataclass(frozen=True)
class Questions:
    """Held-out questions answered by greedy generation."""

    count: int
    accuracies: Mapping[str, Proportion]  # of exact answers, by view
    answers: Sequence[Sample]  # each question, its true answer, and the model's in every view

    def to_dict(self) -> dict[str, Any]:
        """Return the result, each view's accuracy under the view's name."""
        accuracies = {view: share.to_dict() for view, share in self.accuracies.items()}
        return {"questions": self.count, **accuracies}


@dataclass(frozen=True)
class Samples:
    """Some of what the model wrote."""

    reconstruction: Sequence[Sample]
    continuation: Sequence[Sample]
    questions: Sequence[Sample]

    def to_dict(self) -> dict[str, list[Sample]]:
        """Return the samples by kind."""
        return {
            "reconstruction": list(self.reconstruction),
            "continuation": list(self.continuation),
            "questions": list(self.questions),
        }


@dataclass(frozen=True)
class Evaluation:
    """Everything measured of one model."""

    parameters: Mapping[str, int]  # number of parameters, by component
    ratio: int  # tokens per latent
    window: int  # tokens per encoder window
    reconstruction: Sequence[Reconstruction]
    continuation: Sequence[Continuation]
    questions: Questions | None
    samples: Samples

    def to_dict(self) -> dict[str, Any]:
        """Return the results as in evaluation.json, which has cost, step and seconds, too."""
        return {
            "parameters": dict(self.parameters),
            "ratio": self.ratio,
            "window": self.window,
            "reconstruction": [result.to_dict() for result in self.reconstruction],
            "continuation": [result.to_dict() for result in self.continuation],
            "questions": self.questions and self.questions.to_dict(),
            "samples": self.samples.to_dict(),
        }

"""Outcomes of settings: accuracy, differences from controls, positions, FLOPs and seconds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from lclm_jax.config import ModelConfig
from lclm_jax.costs.work import compressed_cost, layer_flops
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.evaluation.efficiency import Figures
from lclm_jax.evaluation.questions import Question
from lclm_jax.evaluation.samples import Sample
from lclm_jax.evaluation.statistics import Difference, Mean, paired_difference
from lclm_jax.evaluation.tuning.grid import CANDIDATES
from lclm_jax.evaluation.views import View


@dataclass(frozen=True)
class Outcome:
    """The scores of a setting, and its costs.

    Attributes:
        view: the setting.
        score: mean over the questions whose prompts fit the decoder.
        positions: mean length of the decoder's prompt.
        unanswered: number of questions whose prompts do not fit.
        reading_flops: of the decoder for a question: its prompt and its answer.
        encoding_flops: of the encoder and the adapter for a question. Each document is encoded
            once, as a store does, and its FLOPs are shared by all questions about it.
        differences: score less that of another setting, by the label of its view.
        figures: seconds and memory measured on one of the questions.
    """

    view: View
    score: Mean
    positions: float
    unanswered: int = 0
    reading_flops: float = 0.0
    encoding_flops: float = 0.0
    differences: Mapping[str, Difference] = field(default_factory=dict)
    figures: Figures = Figures()

    @property
    def label(self) -> str:
        """Label of the view."""
        return self.view.label

    @property
    def flops(self) -> float:
        """FLOPs of a question."""
        return self.reading_flops + self.encoding_flops

    @property
    def is_candidate(self) -> bool:
        """True where the setting compresses; the others are the baseline and controls."""
        return self.view.name in CANDIDATES


def list_outcomes(
    questions: Sequence[Question],
    samples: Mapping[View, Sequence[Sample]],
    figures: Mapping[View, Figures],
    config: ModelConfig,
    tokenizer: Tokenizer,
) -> list[Outcome]:
    """Return the outcome of each view, whose samples answer the questions in their order."""
    texts = {passage.text for question in questions for passage in question.passages}
    tokens = [len(tokenizer.encode(text)) for text in sorted(texts)]
    controls = [view for view in samples if view.name not in CANDIDATES]

    def summarize(view: View) -> Outcome:
        others = [control for control in controls if control != view]
        return Outcome(
            view,
            Mean.of_samples(samples[view]),
            fmean(sample.positions for sample in samples[view]),
            sum(not math.isfinite(sample.score) for sample in samples[view]),
            fmean(_count_reading(sample, config, tokenizer) for sample in samples[view]),
            _count_encoding(tokens, view, config) / len(questions),
            {other.label: paired_difference(samples[view], samples[other]) for other in others},
            figures.get(view, Figures()),
        )

    return [summarize(view) for view in samples]


def _count_reading(sample: Sample, config: ModelConfig, tokenizer: Tokenizer) -> float:
    """Return the FLOPs of the decoder for a prompt and its answer."""
    written = len(tokenizer.encode(sample.answer)) if sample.answer else 0
    return layer_flops(config.decoder, sample.positions + written).total


def _count_encoding(tokens: Sequence[int], view: View, config: ModelConfig) -> float:
    """Return the FLOPs that turn documents of so many tokens into latents, once each."""
    if view.name not in CANDIDATES:
        return 0.0
    costs = [compressed_cost(count, config, view.ratio) for count in tokens]
    return sum(cost.encoder_flops + cost.adapter_flops for cost in costs)

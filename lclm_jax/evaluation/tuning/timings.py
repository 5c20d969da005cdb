"""Seconds to the first token and peak memory of every setting, on a question of one's own."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lclm_jax.evaluation.answering import answer_key, ask_agent
from lclm_jax.evaluation.answers_file import AnswersFile
from lclm_jax.evaluation.efficiency import (
    Figures,
    describe_devices,
    figures_or_failure,
    measure_rounds,
)
from lclm_jax.evaluation.first_token import prefill_record
from lclm_jax.evaluation.questions import Question
from lclm_jax.evaluation.rendering import render_question
from lclm_jax.evaluation.timing import timed
from lclm_jax.evaluation.tuning.grid import BASELINE, CANDIDATES
from lclm_jax.evaluation.views import View
from lclm_jax.inference.answers import PositionsError, check_length
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents
from lclm_jax.progress import Progress
from lclm_jax.version import code_version

WARM_UPS, REPEATS = 1, 3


def choose_question(questions: Sequence[Question], model: LanguageModel) -> Question:
    """Return the question with the longest documents that fit uncompressed, else the longest."""
    ordered = sorted(questions, key=_count_characters, reverse=True)
    return next((question for question in ordered if _fits(question, model)), ordered[0])


def _count_characters(question: Question) -> int:
    return sum(len(passage.text) for passage in question.passages)


def _fits(question: Question, model: LanguageModel) -> bool:
    try:
        _check_positions(model, question, BASELINE, {})
    except PositionsError:
        return False
    return True


def _check_positions(
    model: LanguageModel, question: Question, view: View, latents: Mapping[str, Latents]
):
    """Raise PositionsError where a prompt and its answer do not fit the decoder."""
    record = render_question(question, view, model, latents.__getitem__)
    length = int(model.read([record]).lengths[0])
    check_length(length, question.max_tokens, model.config)


def measure_views(
    model: LanguageModel,
    question: Question,
    views: Sequence[View],
    known: AnswersFile,
    progress: Progress,
) -> dict[View, dict[str, Any]]:
    """Return the row of figures of each view, as those of `measure_efficiency`.

    Rows are added to `known`, and taken from there where it has them. The peak of a device cannot
    be reset: views should come in the order of the memory that they take.
    """
    length = sum(len(model.tokenizer.encode(passage.text)) for passage in question.passages)
    rows = {}
    for view in progress(views, "first tokens", len(views)):
        columns = {
            "view": view.label,
            "family": question.tags.get("family", question.task),
            "length": length,
            "warm_ups": WARM_UPS,
            "repeats": REPEATS,
            "device": describe_devices(model),
            "source": "measured",
        }
        described = json.dumps([answer_key(question, view), columns], sort_keys=True)
        key = hashlib.sha256(described.encode()).hexdigest()[:16]
        if key not in known:
            figures = figures_or_failure(lambda view=view: _measure(model, question, view))
            known.add({key: {**columns, **asdict(figures), "version": code_version()}})
        rows[view] = known[key]
    return rows


def _measure(model: LanguageModel, question: Question, view: View) -> Figures:
    """Measure rounds that compress the documents, then read them with the question.

    Tokenizing and ranking chunks count as well. The agent's round ends with its answer, because it
    writes requests before.
    """

    def compress_all() -> dict[str, Latents]:
        texts = {passage.text for passage in question.passages if passage.text}
        compressed = {text: model.compress(text, view.ratio) for text in texts}
        return {text: latents.block_until_ready() for text, latents in compressed.items()}

    if view.name != "expand":
        _check_positions(model, question, view, compress_all() if view.name in CANDIDATES else {})

    def read() -> tuple[float, float]:
        model.prefixes.clear()
        latents, compressing = timed(compress_all) if view.name in CANDIDATES else ({}, 0.0)
        _, prefilling = timed(lambda: _answer(model, question, view, latents))
        return compressing, prefilling

    return measure_rounds(read, model, WARM_UPS, REPEATS)


def _answer(
    model: LanguageModel, question: Question, view: View, latents: Mapping[str, Latents]
) -> Any:
    if view.name == "expand":
        return ask_agent(model, question, view, latents.__getitem__).text
    record = render_question(question, view, model, latents.__getitem__)
    return prefill_record(model, record)


def as_figures(row: Mapping[str, Any]) -> Figures:
    """Return the figures in a row."""
    return Figures(**{name: row[name] for name in asdict(Figures())})

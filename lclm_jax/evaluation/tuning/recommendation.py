"""Recommendation of a setting, or of no compression, from the outcomes of a sweep.

A setting is as good as the baseline if its accuracy is shown not to be worse by more than a margin:
if the 95 % interval of the paired difference lies above -margin (non-inferiority). Of those, the
one with the fewest FLOPs is recommended, unless something simpler does as well.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lclm_jax.evaluation.statistics import Z_95, Difference
from lclm_jax.evaluation.tuning.grid import BASELINE, NOTHING, truncation_of
from lclm_jax.evaluation.tuning.outcomes import Outcome

DEFAULT_MARGIN = 0.02
MIN_QUESTIONS = 2  # for an interval

Verdict = Literal["compress", "do not compress", "cannot tell"]
Judgement = Literal["as good", "worse", "undecided"]


@dataclass(frozen=True)
class Recommendation:
    """Advice on whether to compress, with its reasons.

    Attributes:
        verdict: whether to compress.
        view: label of the recommended setting, or of the most promising one where too few
            questions were asked; None where no setting is either.
        sentences: reasons.
        questions_needed: about how many questions would decide; None where they do already, or
            where more would not help.
    """

    verdict: Verdict
    view: str | None
    sentences: tuple[str, ...]
    questions_needed: int | None = None

    @property
    def heading(self) -> str:
        """The verdict, and the recommended setting."""
        setting = f", {self.view}" if self.verdict == "compress" else ""
        return f"Recommendation: {self.verdict}{setting}"


def recommend(
    outcomes: Sequence[Outcome], margin: float = DEFAULT_MARGIN, questions_per_document: float = 1
) -> Recommendation:
    """Return what to do, given the outcomes of the baseline, the controls and the candidates."""
    by_label = {outcome.label: outcome for outcome in outcomes}
    baseline, nothing = by_label[BASELINE.label], by_label[NOTHING.label]
    candidates = [
        outcome
        for outcome in outcomes
        if outcome.is_candidate and outcome.score.count >= MIN_QUESTIONS
    ]
    if not candidates:
        sentence = "The documents do not fit the decoder in any setting that compresses them."
        return Recommendation("do not compress", None, (sentence,))
    if baseline.score.count < MIN_QUESTIONS:
        return _recommend_without_baseline(candidates, baseline, by_label)
    if not any(_beats(outcome, nothing) for outcome in (baseline, *candidates)):
        return _explain_questions(baseline, nothing, margin)
    saving = [
        outcome
        for outcome in candidates
        if outcome.flops < baseline.flops and outcome.positions < baseline.positions
    ]
    if not saving:
        return _explain_costs(candidates, baseline, questions_per_document)

    notes = _describe_baseline(baseline, nothing)
    passing = [
        outcome
        for outcome in saving
        if judge(outcome.differences[baseline.label], margin) == "as good"
        and _beats(outcome, nothing)
        and outcome.unanswered <= baseline.unanswered
    ]
    if not passing:
        return _explain_differences(saving, baseline, margin, notes)
    chosen = min(passing, key=lambda outcome: outcome.flops)
    if rival := _find_rival(outcomes, chosen, margin):
        sentence = (
            f"{_describe_rival(rival)} answers as well as {chosen.label} at less cost "
            f"({_percent(rival.score.value)} and {_percent(chosen.score.value)} right): "
            "latents add nothing here."
        )
        return Recommendation("do not compress", None, (sentence, *notes))
    sentences = _describe_choice(chosen, baseline, by_label)
    return Recommendation("compress", chosen.label, (*sentences, *notes))


# --- Differences ---


def lower_bound(difference: Difference) -> float | None:
    """Return the lower end of the 95 % interval; None where there is none.

    It lies at least as far below the difference as if one more of the questions had been answered
    wrongly: a few questions that were all answered alike show little.
    """
    if difference.low is None:
        return None
    return min(difference.low, difference.value - Z_95 / difference.count)


def judge(difference: Difference, margin: float) -> Judgement:
    """Return what a difference from the baseline says, given the loss that is acceptable.

    >>> cases = (0.0, -0.005, 0.005), (-0.1, -0.15, -0.05), (-0.01, -0.05, 0.03)
    >>> [judge(Difference(*case, count=1000), margin=0.02) for case in cases]
    ['as good', 'worse', 'undecided']
    """
    low = lower_bound(difference)
    if low is None or difference.high is None:
        return "undecided"
    if low >= -margin:
        return "as good"
    return "worse" if difference.high < 0 and difference.value < -margin else "undecided"


def count_needed(difference: Difference, margin: float) -> int | None:
    """Return about how many questions would show a difference of this size to exceed -margin.

    An interval of n questions is as wide as 1/sqrt(n), or 1/n where nearly all were answered alike.
    None where the difference itself does not exceed -margin.

    >>> count_needed(Difference(-0.01, -0.04, 0.02, 100), margin=0.02)
    900
    """
    room = difference.value + margin
    if not room > 0:
        return None
    by_resolution = Z_95 / room
    if difference.low is None:
        return math.ceil(by_resolution)
    half_width = difference.value - difference.low
    by_interval = difference.count * (half_width / room) ** 2
    return math.ceil(round(max(by_interval, by_resolution), 6))


def _beats(outcome: Outcome, other: Outcome) -> bool:
    """Return whether an outcome is clearly better than another."""
    difference = outcome.differences.get(other.label)
    return difference is not None and difference.is_clear and difference.value > 0


def _find_rival(outcomes: Sequence[Outcome], chosen: Outcome, margin: float) -> Outcome | None:
    """Return the cheapest setting without latents that does as well for less, if there is one."""
    rivals = [
        outcome
        for outcome in outcomes
        if not outcome.is_candidate
        and outcome.view not in (BASELINE, NOTHING)
        and outcome.flops <= chosen.flops
        and outcome.unanswered <= chosen.unanswered
        and judge(outcome.differences[BASELINE.label], margin) == "as good"
        and not _beats(chosen, outcome)
    ]
    return min(rivals, key=lambda outcome: outcome.flops, default=None)


# --- Reasons ---


def _explain_questions(baseline: Outcome, nothing: Outcome, margin: float) -> Recommendation:
    """Return the advice where no setting is better than leaving the documents out."""
    scores = f"{_percent(nothing.score.value)} right without them, {_percent(baseline.score.value)}"
    if judge(nothing.differences[baseline.label], margin) == "as good":
        sentence = (
            f"The questions are answered as well without any context: {scores} with their text. "
            "They do not show what latents keep; ask what only the documents say, or leave the "
            "documents out."
        )
        return Recommendation("do not compress", None, (sentence,))
    needed = count_needed(baseline.differences[nothing.label], 0.0)
    sentence = (
        f"It is not shown that the documents help at all: {scores} with their text, of "
        f"{baseline.score.count} questions."
    )
    advice = (
        f"About {needed:,} questions like these would show it."
        if needed
        else "Check a few answers: the model may not be able to read these documents."
    )
    return Recommendation("cannot tell", None, (sentence, advice), needed)


def _explain_costs(
    candidates: Sequence[Outcome], baseline: Outcome, questions_per_document: float
) -> Recommendation:
    """Return the advice where no setting reads fewer positions with fewer FLOPs."""
    fewest = min(candidates, key=lambda outcome: outcome.positions)
    positions = f"{fewest.positions:,.0f} positions in place of {baseline.positions:,.0f}"
    if fewest.positions >= baseline.positions:
        sentence = (
            f"The documents are so short that nothing is saved: {fewest.label} reads {positions}."
        )
        return Recommendation("do not compress", None, (sentence,))
    cheapest = min(candidates, key=lambda outcome: outcome.flops)
    sentence = (
        f"Compressing costs more computation than it saves: {cheapest.label} takes "
        f"{_share(cheapest.flops / baseline.flops)} of the FLOPs, at {questions_per_document:.3g} "
        f"question(s) about each document. {fewest.label} reads {positions}."
    )
    saved = baseline.reading_flops - cheapest.reading_flops
    if saved <= 0:
        return Recommendation("do not compress", None, (sentence,))
    enough = math.ceil(questions_per_document * cheapest.encoding_flops / saved)
    advice = f"It would pay from about {enough:,} questions about each document on."
    return Recommendation("do not compress", None, (sentence, advice))


def _explain_differences(
    saving: Sequence[Outcome], baseline: Outcome, margin: float, notes: Sequence[str]
) -> Recommendation:
    """Return the advice where no setting is shown to be as good as the baseline."""
    undecided = [
        (count, outcome)
        for outcome in saving
        if judge(outcome.differences[baseline.label], margin) == "undecided"
        and (count := count_needed(outcome.differences[baseline.label], margin))
    ]
    best = max(saving, key=lambda outcome: outcome.differences[baseline.label].value)
    if not undecided:
        sentence = (
            f"All settings are worse than the uncompressed decoder; the best, {best.label}, by "
            f"{_points(best.differences[baseline.label])}."
        )
        return Recommendation("do not compress", None, (sentence, *notes))
    needed, promising = min(undecided, key=lambda pair: (pair[0], pair[1].flops))
    difference = promising.differences[baseline.label]
    sentence = (
        f"{difference.count:,} questions are too few to show that a setting loses at most "
        f"{100 * margin:g} points. The most promising is {promising.label}: "
        f"{_points(difference)}."
    )
    advice = f"About {needed:,} questions would be needed, or a larger margin."
    sentences = (sentence, advice, *notes)
    return Recommendation("cannot tell", promising.label, sentences, needed)


def _recommend_without_baseline(
    candidates: Sequence[Outcome], baseline: Outcome, by_label: Mapping[str, Outcome]
) -> Recommendation:
    """Return the advice where the decoder cannot read the documents uncompressed."""
    total = baseline.score.count + baseline.unanswered
    note = (
        f"{baseline.unanswered:,} of {total:,} questions have documents that do not fit the "
        "decoder uncompressed, so accuracy is compared with the controls only."
    )
    least = min(outcome.unanswered for outcome in candidates)
    useful = [
        outcome
        for outcome in candidates
        if outcome.unanswered == least
        and _beats(outcome, by_label[NOTHING.label])
        and _beats(outcome, by_label[truncation_of(outcome.view).label])
    ]
    if not useful:
        sentence = "No setting is shown to beat both no context and the first tokens."
        return Recommendation("cannot tell", None, (sentence, note))
    chosen = max(useful, key=lambda outcome: (outcome.score.value, -outcome.flops))
    sentence = (
        f"{chosen.label} answers most questions: {_percent(chosen.score.value)} right, and clearly "
        "more than the first tokens at the same number of positions."
    )
    return Recommendation("compress", chosen.label, (sentence, note))


# --- Sentences ---


def _describe_choice(
    chosen: Outcome, baseline: Outcome, by_label: Mapping[str, Outcome]
) -> list[str]:
    """Return what the recommended setting keeps and saves, and whether it beats truncation."""
    sentences = [
        f"{chosen.label} is the cheapest setting that is as good as the uncompressed decoder: "
        f"{_percent(chosen.score.value)} and {_percent(baseline.score.value)} right, a difference "
        f"of {_points(chosen.differences[baseline.label])}.",
        f"It reads {chosen.positions:,.0f} positions in place of {baseline.positions:,.0f}, with "
        f"{_share(chosen.flops / baseline.flops)} of the FLOPs.",
    ]
    truncation = by_label.get(truncation_of(chosen.view).label)
    if truncation and _beats(chosen, truncation):
        difference = chosen.differences[truncation.label]
        sentences.append(
            f"It beats the first tokens at the same number of positions by {_points(difference)}."
        )
    elif truncation:
        sentences.append(
            "It is NOT shown to beat the first tokens at the same number of positions "
            f"({_percent(truncation.score.value)} right); ask more questions."
        )
    return sentences


def _describe_baseline(baseline: Outcome, nothing: Outcome) -> list[str]:
    """Return notes about a baseline that cannot read all or any of the documents."""
    notes = []
    if baseline.unanswered:
        total = baseline.score.count + baseline.unanswered
        notes.append(
            f"{baseline.unanswered:,} of {total:,} questions have documents that do not fit the "
            "decoder uncompressed; differences are those of the others."
        )
    if not _beats(baseline, nothing):
        notes.append(
            f"The uncompressed decoder is not shown to read these documents "
            f"({_percent(baseline.score.value)} right with them, {_percent(nothing.score.value)} "
            "without): being as good as it says little."
        )
    return notes


def _describe_rival(rival: Outcome) -> str:
    if rival.view.name == "first":
        return f"Truncation ({rival.label})"
    return f"Retrieval alone ({rival.label})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _points(difference: Difference) -> str:
    """Return a difference in points with its interval."""
    text = f"{100 * difference.value:+.1f} points"
    if difference.low is None or difference.high is None:
        return text
    return f"{text} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"

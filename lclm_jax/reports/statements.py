"""Sentences computed from an evaluation, with the bad news included."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lclm_jax.reports.formats import UNKNOWN, length_range, percent, upper_first
from lclm_jax.reports.records import (
    VIEWS,
    Continuation,
    Evaluation,
    Questions,
    ReadingCost,
    Reconstruction,
    Share,
    finite,
)

VIEW_NAMES = {"latents": "from latents", "text": "from full text", "nothing": "from nothing"}


@dataclass(frozen=True)
class Comparison:
    """The result of one test in the three views."""

    name: str
    latents: Share
    text: Share
    nothing: Share

    @property
    def clearly_better(self) -> bool:
        """The interval of the latents lies wholly above that of nothing."""
        return self.latents.low > self.nothing.high

    @property
    def text_helps(self) -> bool:
        """The full text helps the decoder; otherwise there is no gap to close."""
        return self.text.value > self.nothing.value


def compare(evaluation: Evaluation) -> list[Comparison]:
    """Return every test of an evaluation: passages by source and length, then the questions."""
    passages = [
        Comparison(
            name_passages(entry),
            entry.latents.accuracy,
            entry.text.accuracy,
            entry.nothing.accuracy,
        )
        for entry in evaluation.reconstruction
    ]
    return passages + compare_questions(evaluation.questions)


def compare_questions(questions: Questions | None) -> list[Comparison]:
    if questions is None:
        return []
    views = (questions.latents, questions.text, questions.nothing)
    return [Comparison("questions answered exactly", *views)]


def name_passages(entry: Reconstruction) -> str:
    return f"{entry.source} passages of {length_range(entry.lengths)} tokens reconstructed"


def pool_lengths(entries: Sequence[Reconstruction]) -> list[Comparison]:
    """Average the passages of all lengths of each source, and their intervals with them.

    The mean of the intervals is wider than the interval of the mean.
    """
    return [
        Comparison(
            f"tokens of {source} passages reconstructed",
            *(_pool([getattr(entry, view).accuracy for entry in group]) for view in VIEWS),
        )
        for source, group in by_source(entries).items()
    ]


def _pool(shares: Sequence[Share]) -> Share:
    counted = [share for share in shares if share.count]
    total = sum(share.count for share in counted)

    def mean(bound: str) -> float:
        return sum(getattr(share, bound) * share.count for share in counted) / max(total, 1)

    return Share(mean("value"), mean("low"), mean("high"), total)


def by_source(entries: Sequence[Reconstruction]) -> dict[str, list[Reconstruction]]:
    groups: dict[str, list[Reconstruction]] = {}
    for entry in entries:
        groups.setdefault(entry.source, []).append(entry)
    return groups


def gap_closed(latents: float, text: float, nothing: float) -> float | None:
    """Return how far latents go from nothing to the full text; None where the text does not help.

    Greater is better; pass the negatives of losses.

    >>> gap_closed(latents=0.5, text=0.75, nothing=0.25)
    0.5
    """
    return (latents - nothing) / (text - nothing) if text > nothing else None


def loss_gap_closed(losses: Mapping[str, float]) -> float | None:
    """Return the share of the gap that is closed by the losses of the three views."""
    if len(losses) < len(VIEWS):
        return None
    return gap_closed(*(-losses[view] for view in VIEWS))


def describe_gap(losses: Mapping[str, float]) -> str:
    """Return the share of the gap closed as the cell of a table."""
    if any(finite(losses.get(view)) is None for view in VIEWS):
        return UNKNOWN
    share = loss_gap_closed(losses)
    if share is None:
        return "no gap"
    return "all of it" if share > 1 else percent(share)


def judge_all(evaluation: Evaluation) -> list[str]:
    """Return a sentence about every test in an evaluation."""
    return [
        *(judge(comparison) for comparison in compare(evaluation)),
        *judge_lengths(evaluation.reconstruction),
        *judge_ratios(evaluation.reconstruction),
        *(judge_continuation(entry) for entry in evaluation.continuation),
    ]


def summarise(evaluation: Evaluation) -> tuple[str, list[str]]:
    """Return the verdict on an evaluation in one sentence, and the facts behind it."""
    tested = [comparison for comparison in compare(evaluation) if comparison.latents.count]
    total, better = len(tested), sum(comparison.clearly_better for comparison in tested)
    if not total:
        verdict = "Nothing was tested."
    elif better == total:
        verdict = f"Compression works here: in all {total} tests"
    elif better:
        verdict = f"Compression works in part: in {better} of {total} tests"
    else:
        verdict = f"Compression does not work yet: in none of {total} tests"
    if total:
        verb = "the latents clearly beat" if better else "do the latents clearly beat"
        verdict = f"{verdict} {verb} no context at all."
    pooled = pool_lengths(evaluation.reconstruction) + compare_questions(evaluation.questions)
    facts = [
        f"Every {evaluation.ratio} tokens of a context become one latent, "
        "which the decoder reads in place of the text.",
        *map(judge, pooled),
    ]
    for name, costs in list(evaluation.cost.items())[:1]:
        facts.append(f"Reading with {name}: {describe_cost(costs[-1])}")
    return verdict, facts


def describe_cost(entry: ReadingCost) -> str:
    plain, compressed = entry.plain, entry.compressed
    flops = compressed.flops / plain.flops
    more_work = ", more work than without compression" if flops > 1 else ""
    return (
        f"a context of {entry.tokens:,} tokens takes {compressed.positions:,} decoder positions "
        f"in place of {plain.positions:,}, a cache that is "
        f"{plain.cache_bytes / compressed.cache_bytes:.1f} times smaller, "
        f"and {percent(flops)} of the FLOPs{more_work}."
    )


def judge(comparison: Comparison) -> str:
    """State the result of one test and what follows from it."""
    latents, text, nothing = comparison.latents, comparison.text, comparison.nothing
    if not latents.count:
        return f"{upper_first(comparison.name)}: nothing was tested."
    result = (
        f"{upper_first(comparison.name)}: {percent(latents.value)} from latents, "
        f"{percent(text.value)} from the full text, {percent(nothing.value)} from nothing."
    )
    return f"{result} {_conclude(comparison)}"


def _conclude(comparison: Comparison) -> str:
    values = [getattr(comparison, view).value for view in VIEWS]
    latents, text, nothing = values
    if comparison.clearly_better and latents > text:
        return (
            "The latents clearly beat nothing; "
            "this decoder reads them better than it reads the text itself."
        )
    if not comparison.text_helps:
        return (
            "Even the full text does not help this decoder, "
            "so the test says nothing about compression."
        )
    if latents <= nothing:
        return "The latents are no better than nothing."
    if not comparison.clearly_better:
        return "The intervals of latents and nothing overlap, so the difference may be chance."
    gap = percent(gap_closed(*values))
    return f"The latents clearly beat nothing and close {gap} of the gap to the full text."


def judge_continuation(entry: Continuation) -> str:
    result = (
        f"Continuing {entry.source}: loss {entry.latents:.3f} after latents, "
        f"{entry.text:.3f} after the text, {entry.nothing:.3f} after nothing."
    )
    share = gap_closed(-entry.latents, -entry.text, -entry.nothing)
    if share is None:
        return f"{result} Even the full text does not lower the loss, so there is no gap to close."
    if share <= 0:
        return f"{result} The latents do not help."
    if share > 1:
        return f"{result} The latents help more than the text itself."
    return f"{result} The latents close {percent(share)} of the gap."


def judge_lengths(entries: Sequence[Reconstruction]) -> list[str]:
    """State how accuracy changes from the shortest to the longest passages of each source."""
    sentences = []
    for source, group in by_source(entries).items():
        if len(group) < 2:
            continue
        ascending = sorted(group, key=lambda entry: entry.lengths[0])
        first, last = ascending[0], ascending[-1]
        short, long = first.latents.accuracy, last.latents.accuracy
        change = "hardly changes"
        if long.high < short.low:
            change = "falls"
        elif long.low > short.high:
            change = "rises"
        sentences.append(
            f"Longer passages of {source}: accuracy from latents {change}, "
            f"from {percent(short.value)} at {length_range(first.lengths)} tokens "
            f"to {percent(long.value)} at {length_range(last.lengths)}."
        )
    return sentences


def judge_ratios(entries: Sequence[Reconstruction]) -> list[str]:
    """State how accuracy changes with the ratio, for a model that has several."""
    sentences = []
    for entry in entries:
        by_ratio = ", ".join(
            f"{percent(score.accuracy.value)} at ratio {ratio}"
            for ratio, score in entry.ratios.items()
        )
        if by_ratio:
            nothing = percent(entry.nothing.accuracy.value)
            name = upper_first(name_passages(entry))
            sentences.append(f"{name} by ratio: {by_ratio}; {nothing} from nothing.")
    return sentences

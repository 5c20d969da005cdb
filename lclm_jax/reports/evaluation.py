"""Page of an evaluation: scores by length, ratio and cost, differences, and samples."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lclm_jax.evaluation.paper import (
    DEVICE,
    FAMILIES_OF_ONE_TASK,
    FIRST_TOKENS,
    FIRST_TOKENS_SOURCE,
    SCORES_SOURCE,
    paper_lengths,
    paper_scores,
)
from lclm_jax.evaluation.results import BASELINE, Results, Row
from lclm_jax.evaluation.samples import Sample
from lclm_jax.evaluation.statistics import Difference, Mean
from lclm_jax.files.atomic import write_whole
from lclm_jax.reports.formats import (
    UNKNOWN,
    count,
    difference,
    number,
    plural,
    score,
    short_count,
    verdict,
)
from lclm_jax.reports.pages import Picture, picture, render
from lclm_jax.reports.score_plots import (
    CostPoint,
    plot_by_cost,
    plot_by_length,
    plot_by_ratio,
    plot_costs,
    split_label,
)

FILE_NAME = "index.html"
CONTROLS = ("nothing", "first", "random")  # views that latents must beat
MAX_QUESTIONS = 20  # shown of each task
MAX_ANSWER_CHARACTERS = 300
COSTS = {  # key of a measurement: label of the axis, and its unit
    "first_token_seconds": ("seconds to the first token", 1.0),
    "peak_bytes": ("GB of peak memory", 1e-9),
}


def write_page(directory: str | Path, results: Results | None = None) -> Path:
    """Write index.html into a directory, from the results given or those in it.

    Raises ReportError without matplotlib, and the errors of `Results.read`.
    """
    directory = Path(directory)
    results = results or Results.read(directory)
    rows = results.family_rows()
    content = render(
        "evaluation.html.j2",
        title=_title(results),
        command=results.settings.get("command", ""),
        facts=[*_recommend(results), *_statements(results, rows)],
        counts=_cards(results),
        machine=", ".join(f"{name} {text}" for name, text in results.versions.items()),
        lengths=_draw_lengths(rows),
        ratios=_draw_ratios(rows),
        costs=[_draw_costs(rows, group) for group in _group_costs(results.efficiency)],
        measure=_measure_command(results, directory),
        control_names=CONTROLS,
        controls=_control_rows(results, rows),
        scores=_score_tables(results, rows),
        samples=list(_tasks_with_samples(results)),
        max_questions=MAX_QUESTIONS,
        paper={"scores": SCORES_SOURCE, "costs": FIRST_TOKENS_SOURCE, "device": DEVICE},
        settings=json.dumps(results.settings, indent=2, default=str, ensure_ascii=False),
    )
    path = directory / FILE_NAME
    write_whole(path, content)
    return path


def _title(results: Results) -> str:
    checkpoint = results.settings.get("checkpoint")
    return f"Evaluation of {checkpoint}" if checkpoint else "Evaluation"


def _measure_command(results: Results, directory: Path) -> str:
    """Return the command that measures costs at the lengths of these results.

    It is empty where the evaluation measured them itself, on a question of a family.
    """
    if any(entry.get("family") for entry in results.efficiency):
        return ""
    lengths = sorted({sample.length for sample in results.samples if sample.length})
    checkpoint = results.settings.get("checkpoint") or "CHECKPOINT"
    listed = ",".join(map(str, lengths)) or "LENGTHS"
    return (
        f"python -m launch.efficiency --checkpoint {checkpoint} --lengths {listed} "
        f"--out {directory}"
    )


def _cards(results: Results) -> list[tuple[str, str]]:
    questions = {sample.question for sample in results.samples}
    return [
        (count(len(questions)), "questions"),
        (count(len({sample.task for sample in results.samples})), "tasks and lengths"),
        (count(len(results.views)), "views"),
        (count(len(results.samples)), "answers"),
    ]


# --- Sentences ---


def _recommend(results: Results) -> Sequence[str]:
    """Return a recommendation (`evaluation.tuning`) and its reasons, if the results have any."""
    advice = results.settings.get("recommendation", {})
    return [advice["heading"], *advice["sentences"]] if advice else []


def _statements(results: Results, rows: Sequence[Row]) -> Iterator[str]:
    """Yield what latents score in every family at its longest length, beside text and controls."""
    longest: dict[str, int | None] = {}
    for row in rows:
        longest[row.family] = max(longest.get(row.family) or 0, row.length or 0) or None
    for row in rows:
        is_shown = row.view.startswith("latents") and row.length == longest[row.family]
        if is_shown:
            yield _describe_latents(results, row)
    for failure in results.settings.get("failures", ()):
        yield "left out: {task} in the view {view}: {reason}".format(**failure)


def _describe_latents(results: Results, row: Row) -> str:
    place = f"{row.family} at {short_count(row.length)} tokens" if row.length else row.family
    sentence = f"{place}: {row.view} score {score(row.score, row.is_share)}"
    if row.difference is not None:
        sentence += f", {difference(row.difference, row.is_share)} against {BASELINE}"
    beaten, others = [], []
    for control in _controls_of(results, row.view):
        compared = results.difference(row.view, control, row.length, row.tasks)
        if compared is not None:
            is_better = compared.is_clear and compared.value > 0
            (beaten if is_better else others).append(control)
    if beaten:
        sentence += f"; clearly better than {' and '.join(beaten)}"
    if others:
        sentence += f"; NOT clearly better than {' or '.join(others)}"
    return f"{sentence}."


def _controls_of(results: Results, view: str) -> list[str]:
    """Return the views that latents of this ratio must beat, of those that were evaluated."""
    _, ratio = split_label(view)
    labels = [name if name == "nothing" else f"{name} {ratio}x" for name in CONTROLS]
    return [label for label in labels if label in results.views]


# --- Pictures of scores ---


def _by_view(rows: Iterable[Row]) -> dict[str, Row]:
    return {row.view: row for row in rows if row.is_share}


def _group(rows: Iterable[Row]) -> dict[tuple[str, int | None], list[Row]]:
    """Return rows by family and length."""
    groups: dict[tuple[str, int | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.family, row.length), []).append(row)
    return groups


def _draw_lengths(rows: Sequence[Row]) -> list[Picture]:
    """Draw scores over length for every family that has lengths."""
    pictures = []
    for family in dict.fromkeys(row.family for row in rows if row.length and row.is_share):
        lines: dict[str, dict[int, Mean]] = {}
        for row in rows:
            if row.family == family and row.length and row.is_share:
                lines.setdefault(row.view, {})[row.length] = row.score
        paper: dict[str, dict[int, float]] = {}
        for length in paper_lengths(family):
            for view, value in paper_scores(family, length).items():
                if view in lines:
                    paper.setdefault(view, {})[length] = value
        caption = f"{family}, by length"
        pictures.append(picture(plot_by_length(lines, paper), _read_lines(lines), caption))
    return pictures


def _read_lines(lines: Mapping[str, Mapping[int, Mean]]) -> str:
    """Return the numbers of a picture, for readers who cannot see it."""
    texts = (
        f"{view}: "
        + ", ".join(f"{score(mean)} at {short_count(length)}" for length, mean in line.items())
        for view, line in lines.items()
    )
    return "; ".join(texts)


def _draw_ratios(rows: Sequence[Row]) -> list[Picture]:
    """Draw scores over the ratio for every family and length with several ratios."""
    pictures = []
    for (family, length), group in _group(rows).items():
        scores = {view: row.score for view, row in _by_view(group).items()}
        if len({ratio for view in scores if (ratio := split_label(view)[1])}) > 1:
            paper = paper_scores(family, length, group[0].tasks)
            shown = {view: value for view, value in paper.items() if view in scores}
            description = "; ".join(f"{view}: {score(mean)}" for view, mean in scores.items())
            figure = plot_by_ratio(scores, shown)
            pictures.append(picture(figure, description, _name_group(family, length)))
    return pictures


def _name_group(family: str, length: int | None) -> str:
    return f"{family}, {short_count(length)} tokens" if length else family


# --- Pictures of costs ---


@dataclass(frozen=True)
class _CostGroup:
    """Measurements on one device, or a compiler's estimates for it."""

    device: str
    source: str
    entries: list[Mapping[str, Any]]

    @property
    def name(self) -> str:
        """Heading for the pictures of this group."""
        if self.source == "compiler":
            return f"Estimated by the compiler for {self.device}"
        return f"{self.source.capitalize()} on {self.device}"

    @property
    def question_lengths(self) -> dict[str, int]:
        """Length of the question that was measured, by family; none for random tokens."""
        return {entry["family"]: entry["length"] for entry in self.entries if entry.get("family")}

    def lines(self, key: str, scale: float = 1.0) -> dict[str, dict[int, float]]:
        """Return the known costs by view and length."""
        lines: dict[str, dict[int, float]] = {}
        for entry in sorted(self.entries, key=lambda entry: entry["length"]):
            if entry.get(key):
                lines.setdefault(entry["view"], {})[entry["length"]] = scale * entry[key]
        return lines


def _group_costs(entries: Iterable[Mapping[str, Any]]) -> list[_CostGroup]:
    groups: dict[tuple[str, str], _CostGroup] = {}
    for entry in entries:
        key = str(entry.get("device", "?")), str(entry.get("source", "measured"))
        groups.setdefault(key, _CostGroup(*key, [])).entries.append(entry)
    return list(groups.values())


def _draw_costs(rows: Sequence[Row], group: _CostGroup) -> dict[str, Any]:
    """Draw scores over each cost, then each cost over length."""
    fronts, growth = [], []
    for place, (key, (label, scale)) in enumerate(COSTS.items()):
        costs = group.lines(key, scale)
        paper = {
            view: {length: scale * pair[place] for length, pair in line.items()}
            for view, line in FIRST_TOKENS.items()
        }
        fronts += list(_draw_fronts(rows, costs, paper, label, group.question_lengths))
        if costs:
            shown = {view: line for view, line in paper.items() if view in costs}
            figure = plot_costs(costs, shown, label)
            growth.append(picture(figure, _read_costs(costs), f"{label}, by length"))
    is_bound = any(entry.get("peak_is_exact") is False for entry in group.entries)
    failures = [
        f"{entry['view']} at {short_count(entry['length'])}: {entry['failure']}"
        for entry in group.entries
        if entry.get("failure")
    ]
    return {
        "name": group.name,
        "fronts": fronts,
        "growth": growth,
        "failures": failures,
        "is_bound": is_bound,
    }


def _draw_fronts(
    rows: Sequence[Row],
    costs: Mapping[str, Mapping[int, float]],
    paper: Mapping[str, Mapping[int, float]],
    label: str,
    question_lengths: Mapping[str, int],
) -> Iterator[Picture]:
    """Draw scores over one cost, for every family and length where two views have both.

    `question_lengths` are those of families of which a question was measured.
    """
    for (family, asked_length), group in _group(rows).items():
        length = asked_length or question_lengths.get(family)
        points = [
            CostPoint(view, costs[view][length], row.score)
            for view, row in _by_view(group).items()
            if length is not None and length in costs.get(view, {})
        ]
        if length is None or len(points) < 2:
            continue
        scores = paper_scores(family, length)
        shown = {
            view: (line[length], scores[view])
            for view, line in paper.items()
            if length in line and view in scores
        }
        description = "; ".join(
            f"{point.view}: {score(point.score)} at {number(point.cost)}" for point in points
        )
        caption = f"{_name_group(family, asked_length)}: score against {label}"
        yield picture(plot_by_cost(points, shown, label), description, caption)


def _read_costs(costs: Mapping[str, Mapping[int, float]]) -> str:
    texts = (
        f"{view}: " + ", ".join(f"{number(cost)} at {short_count(n)}" for n, cost in line.items())
        for view, line in costs.items()
    )
    return "; ".join(texts)


# --- Tables ---


def _control_rows(results: Results, rows: Sequence[Row]) -> list[list[str]]:
    """Return for latents of every ratio the differences from the controls of CONTROLS."""
    cells = []
    for row in rows:
        controls = _controls_of(results, row.view)
        if split_label(row.view)[0] == "latents" and controls:
            compared = {
                split_label(control)[0]: results.difference(
                    row.view, control, row.length, row.tasks
                )
                for control in controls
            }
            differences = [_signed(compared.get(name), row.is_share) for name in CONTROLS]
            cells.append([_name_group(row.family, row.length), row.view, *differences])
    return cells


def _signed(value: Difference | None, is_share: bool) -> str:
    """Return a difference after the sign of its verdict."""
    text = difference(value, is_share)
    return text if text == UNKNOWN else f"{verdict(value)[0]} {text}"


def _compare_cells(value: Difference | None, is_share: bool) -> list[str]:
    return [difference(value, is_share), verdict(value)]


def _score_tables(results: Results, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return for every family the rows of its means and those of its tasks."""
    tasks = results.tables()
    return [
        {
            "family": family,
            "means": [_score_row(row) for row in rows if row.family == family],
            "tasks": [_score_row(row) for row in tasks if row.family == family],
        }
        for family in results.families
    ]


def _score_row(row: Row) -> list[str]:
    paper = paper_scores(row.family, row.length, row.tasks).get(row.view)
    is_comparable = len(row.tasks) > 1 or row.family in FAMILIES_OF_ONE_TASK
    return [
        row.name,
        UNKNOWN if row.length is None else short_count(row.length),
        row.view,
        count(row.score.count),
        count(round(row.positions)),
        score(row.score, row.is_share),
        *_compare_cells(None if row.view == BASELINE else row.difference, row.is_share),
        number(paper and 100 * paper, ".1f") if is_comparable else UNKNOWN,
    ]


# --- Samples ---


def _tasks_with_samples(results: Results) -> Iterator[dict[str, Any]]:
    """Yield the first questions of every task, each with its answers in all views."""
    tasks: dict[str, dict[tuple, list[Sample]]] = {}
    for sample in results.samples:
        tasks.setdefault(sample.task, {}).setdefault(sample.question, []).append(sample)
    for task, questions in tasks.items():
        first = sorted(questions.values(), key=lambda samples: samples[0].number)[:MAX_QUESTIONS]
        yield {
            "task": task,
            "total": plural(len(questions), "question", "questions"),
            "questions": [_describe_question(samples) for samples in first],
        }


def _describe_question(samples: Sequence[Sample]) -> dict[str, Any]:
    return {
        "number": samples[0].number,
        "wording": samples[0].wording,
        "references": [_clip(reference) for reference in samples[0].references],
        "answers": [
            {"view": sample.view, "text": _clip(sample.answer), "mark": _mark(sample.score)}
            for sample in samples
        ],
    }


def _mark(value: float) -> tuple[str, str]:
    """Return the style and the text that mark a score."""
    if value in (0, 1):
        return ("right", "✓ right") if value else ("wrong", "✗ wrong")
    return "", f"{100 * value:.0f} %" if 0 < value < 1 else number(value)


def _clip(text: str) -> str:
    return text if len(text) <= MAX_ANSWER_CHARACTERS else f"{text[:MAX_ANSWER_CHARACTERS]}…"

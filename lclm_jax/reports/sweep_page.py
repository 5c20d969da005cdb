"""Page of a sweep: losses, differences, expectations, and how large the encoder should be."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lclm_jax.errors import ConfigError
from lclm_jax.evaluation.statistics import Mean
from lclm_jax.files.atomic import write_whole
from lclm_jax.reports.formats import (
    UNKNOWN,
    count,
    duration,
    number,
    percent,
    plural,
    short_number,
)
from lclm_jax.reports.pages import picture, render
from lclm_jax.reports.records import VIEWS
from lclm_jax.reports.statements import loss_gap_closed
from lclm_jax.reports.sweep_plots import (
    plot_budgets,
    plot_law,
    plot_predictions,
    plot_settings,
)
from lclm_jax.sweeps.analysis.best_encoder import Optimum
from lclm_jax.sweeps.analysis.bootstrap import RESAMPLES, Interval
from lclm_jax.sweeps.analysis.comparisons import Comparison
from lclm_jax.sweeps.analysis.hold_out import Prediction
from lclm_jax.sweeps.cells import Sweep
from lclm_jax.sweeps.findings import (
    LOSS,
    CheckedExpectation,
    Findings,
    SettingScores,
    TrainedCell,
    read_findings,
)
from lclm_jax.sweeps.size_study import SizeStudy, study_sizes, varies_in_size

FILE_NAME, PICTURE_NAME = "index.html", "settings.svg"
SCORES = (  # heading, quantity and view of the columns of the first table
    ("loss from latents", LOSS, "latents"),
    ("as text", LOSS, "text"),
    ("first tokens", LOSS, "first"),
    ("nothing", LOSS, "nothing"),
    ("accuracy from latents", "accuracy", "latents"),
    ("as text", "accuracy", "text"),
    ("nothing", "accuracy", "nothing"),
)


def write_page(file: str, sweep: Sweep, directory: Path) -> Path:
    """Write index.html and settings.svg of a sweep into its directory; return the page's path.

    `file` is that of the sweep. Raises ReportError without matplotlib, and ResultsError where no
    cell is finished.
    """
    findings = read_findings(sweep, directory)
    study, reason = _study(findings)
    settings = _draw_settings(findings, _label_settings(findings))
    content = render(
        "sweep.html.j2",
        title="Sweep: " + ", ".join(findings.factors),
        command=f"python -m launch.ablate --sweep {file} --out {directory} --report",
        facts=[*_facts(findings), *(_size_facts(study) if study else [])],
        cards=_cards(findings),
        settings=settings,
        headings=[*findings.factors, "seeds", *(x for x, _, _ in SCORES), "gap closed", "paper"],
        scores=[_score_row(findings, setting) for setting in findings.settings],
        effects=[_effect_row(comparison) for comparison in findings.effects],
        expectations=[_expectation(x) for x in findings.expectations],
        study=study and _describe_study(findings, study),
        reason=reason,
        unfinished=findings.unfinished,
        outdated=findings.outdated,
    )
    settings.write(directory / PICTURE_NAME)
    path = directory / FILE_NAME
    write_whole(path, content)
    return path


def _study(findings: Findings) -> tuple[SizeStudy | None, str]:
    """Return the study of sizes; where there is none, the reason, empty if sizes do not vary."""
    if not varies_in_size(findings.cells):
        return None, ""
    try:
        return study_sizes(findings.cells), ""
    except ConfigError as error:
        return None, str(error)


# --- Sentences ---


def _facts(findings: Findings) -> Iterable[str]:
    best = findings.settings[0]
    yield (
        f"Lowest loss: {_describe(best.levels)}, {_mean(best.scores(LOSS, 'latents'))} nats per "
        f"token from latents over {plural(len(best.cells), 'seed', 'seeds')}."
    )
    clear = [x for x in findings.effects if x.verdict != "cannot be told"]
    yield (
        f"{len(clear)} of {plural(len(findings.effects), 'difference', 'differences')} from the "
        "baseline can be told from the noise between seeds, after Holm's correction."
    )
    outcomes = [y.outcome for x in findings.expectations for y in x.orderings]
    if outcomes:
        counts = {name: outcomes.count(name) for name in ("holds", "reversed", "cannot be told")}
        yield (
            f"Of {len(outcomes)} orders expected before the run, {counts['holds']} hold, "
            f"{counts['reversed']} are reversed, and {counts['cannot be told']} cannot be told."
        )
    least, most = findings.scored_tokens
    if least != most:
        yield (
            f"Cells were scored on {least:,.0f} to {most:,.0f} held-out tokens, since some "
            "examples do not fit the rows of all; their losses are not quite comparable."
        )


def _size_facts(study: SizeStudy) -> Iterable[str]:
    for decoder, optima in study.optima.items():
        yield _describe_optimum(decoder, optima[-1])


def _describe_optimum(decoder: float | None, optimum: Optimum) -> str:
    best = optimum.encoder
    if decoder is None:
        beside = f"beside a decoder of {short_number(optimum.partner_value)}"
    else:
        beside = (
            f"beside a decoder of {short_number(decoder)} and "
            f"{short_number(optimum.partner_value)} tokens"
        )
    sentence = (
        f"At {optimum.budget:.2g} FLOPs the law's best encoder has {short_number(best.value)} "
        f"parameters ({short_number(best.low)} to {short_number(best.high)}), {beside}"
    )
    if optimum.is_at_edge:
        sentence += "; it is the last one tried, so the law names no best size"
    elif optimum.outside:
        sentence += f"; outside the trained range of {' and '.join(optimum.outside)}"
    return f"{sentence}."


def _cards(findings: Findings) -> list[tuple[str, str]]:
    results = findings.results
    seconds = sum(result.seconds for result in results)
    return [
        (f"{len(results)} of {len(findings.sweep.cells)}", "cells finished"),
        (count(len(findings.settings)), "settings"),
        (f"{sum(result.flops for result in results):.2g}", "FLOPs"),
        (duration(seconds), "of training steps on " + " and ".join(_devices(findings))),
    ]


def _devices(findings: Findings) -> list[str]:
    return sorted({result.device for result in findings.results})


# --- Settings, effects and expectations ---


def _label_settings(findings: Findings) -> dict[str, SettingScores]:
    """Return the settings by the levels that differ from the baseline's."""
    base = findings.baseline
    labels = {}
    for setting in findings.settings:
        changes = {x: y for x, y in setting.levels.items() if base.get(x) != y}
        labels[_describe(changes) if changes else "baseline"] = setting
    return labels


def _draw_settings(findings: Findings, labels: Mapping[str, SettingScores]) -> Any:
    description = "; ".join(
        f"{label}: {_mean(setting.scores(LOSS, 'latents'))}" for label, setting in labels.items()
    )
    caption = f"A point for each seed. Baseline: {_describe(findings.baseline)}"
    return picture(plot_settings(labels, "baseline"), description, caption)


def _describe(levels: Mapping[str, Any]) -> str:
    return ", ".join(f"{factor} {level}" for factor, level in levels.items())


def _mean(values: Sequence[float], form: str = ".4f") -> str:
    """Return a mean and its standard error over seeds."""
    if not values:
        return UNKNOWN
    mean = Mean.of(values)
    text = number(mean.value, form)
    return text if mean.standard_error is None else f"{text} ± {number(mean.standard_error, form)}"


def _score_row(findings: Findings, setting: SettingScores) -> list[str]:
    cells = [str(setting.levels.get(factor, UNKNOWN)) for factor in findings.factors]
    cells.append(count(len(setting.cells)))
    for _, quantity, view in SCORES:
        form = ".4f" if quantity == LOSS else ".1%"
        cells.append(_mean(setting.scores(quantity, view), form))
    gaps = [gap for cell in setting.cells if (gap := gap_closed(cell)) is not None]
    cells.append(percent(float(np.mean(gaps))) if gaps else UNKNOWN)
    cells.append(_published(setting.published))
    return cells


def gap_closed(cell: TrainedCell) -> float | None:
    """Return how far latents take the loss from nothing to that of the control; None without."""
    losses = {view: cell.score(LOSS, view) for view in VIEWS}
    return loss_gap_closed({view: loss for view, loss in losses.items() if loss is not None})


def _published(losses: tuple[float, float] | None) -> str:
    if losses is None:
        return UNKNOWN
    low, high = losses
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _effect_row(comparison: Comparison) -> list[str]:
    (factor, level), *_ = comparison.setting.items()
    return [
        f"{factor}: {level} less {comparison.baseline[factor]}",
        *_comparison_cells(comparison),
        comparison.verdict,
    ]


def _comparison_cells(comparison: Comparison) -> list[str]:
    return [
        number(comparison.difference, "+.4f"),
        UNKNOWN if comparison.low is None else f"{comparison.low:+.4f} to {comparison.high:+.4f}",
        count(comparison.pairs),
        number(comparison.adjusted_p_value, ".2g"),
    ]


def _expectation(checked: CheckedExpectation) -> dict[str, Any]:
    """Return the order, the reason and a row for each pair of neighbours."""
    expectation = checked.expectation
    order = " < ".join(_describe(setting) for setting in expectation.order)
    return {
        "order": f"{order}, where {_describe(expectation.where)}" if expectation.where else order,
        "reason": expectation.reason,
        "rows": [
            [
                f"{_describe(x.comparison.setting)} < {_describe(x.comparison.baseline)}",
                *_comparison_cells(x.comparison),
                x.outcome,
            ]
            for x in checked.orderings
        ],
    }


# --- Sizes ---


def _describe_study(findings: Findings, study: SizeStudy) -> dict[str, Any]:
    encoders = sorted({cell.encoder for cell in study.observations})
    limits = _limits(findings.cells)
    names = {term.factor: term for term in study.law.terms}
    law = "loss = floor + " + " + ".join(_term_text(factor) for factor in names)
    held_out = study.hold_outs
    return {
        "law": law,
        "picture": picture(plot_law(study, limits), law, "Losses of the cells, and the law"),
        "parameters": [
            [name, _interval(value), study.undetermined.get(name.partition(".")[0], "")]
            for name, value in study.parameters.items()
        ],
        "references": ", ".join(
            f"{factor} {short_number(term.reference)}" for factor, term in names.items()
        ),
        "predictions": [_prediction_row(f, x) for f, y in held_out.items() for x in y.predictions],
        "predicted": held_out
        and picture(plot_predictions(held_out), "Predicted over observed losses."),
        "missing": [f"Largest {factor}: {why}" for factor, why in study.missing.items()],
        "flops_error": percent(study.flops.error),
        "budgets": [
            picture(
                plot_budgets(optima, encoders),
                " ".join(_describe_optimum(decoder, optimum) for optimum in optima),
                "The decoder takes the rest of the budget"
                if decoder is None
                else f"A decoder of {short_number(decoder)}; tokens take the rest of the budget",
            )
            for decoder, optima in study.optima.items()
        ],
        "optima": [_optimum_row(x) for optima in study.optima.values() for x in optima],
        "noise": percent(study.law.noise),
        "resamples": RESAMPLES,
    }


def _term_text(factor: str) -> str:
    sign = "" if factor == "ratio" else "-"
    return f"{factor}.coefficient · ({factor} / reference)^{sign}{factor}.exponent"


def _limits(cells: Sequence[TrainedCell]) -> dict[float, float]:
    """Return the mean loss of the uncompressed decoders by their parameters."""
    losses = defaultdict(list)
    for cell in cells:
        if cell.control is not None:
            size = float(cell.control.matrix_parameters["decoder"])
            losses[size].append(cell.control.mean(LOSS, "text"))
    return {size: float(np.mean(values)) for size, values in losses.items()}


def _interval(value: Interval, form: str = ".3g") -> str:
    return f"{value.value:{form}} ({value.low:{form}} to {value.high:{form}})"


def _prediction_row(factor: str, prediction: Prediction) -> list[str]:
    sizes = prediction.configuration
    errors = prediction.error_in_spreads
    return [
        f"largest {factor}",
        *(short_number(sizes[name]) for name in ("encoder", "decoder", "tokens")),
        count(prediction.cells),
        number(prediction.observed, ".4f"),
        _interval(prediction.predicted, ".4f"),
        number(errors, "+.1f"),
        "inside" if prediction.is_within else "outside",
    ]


def _optimum_row(optimum: Optimum) -> list[str]:
    best = optimum.encoder
    ends = f"{short_number(best.low)} to {short_number(best.high)}"
    note = "the last one tried" if optimum.is_at_edge else ", ".join(optimum.outside)
    return [
        f"{optimum.budget:.3g}",
        f"{short_number(best.value)} ({ends})",
        f"{short_number(optimum.partner_value)} {optimum.partner}",
        _interval(optimum.loss, ".4f"),
        note or "none",
    ]

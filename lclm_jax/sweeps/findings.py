"""Findings of a sweep: what its finished cells show, setting by setting."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lclm_jax.config import Config
from lclm_jax.config.values import from_dict
from lclm_jax.errors import UserError
from lclm_jax.files.reading import FileError, read_json
from lclm_jax.sweeps.analysis.comparisons import (
    Comparison,
    Ordering,
    Record,
    check_order,
    compare,
)
from lclm_jax.sweeps.cells import CONTROL, SEED, Cell, Expectation, Level, Setting, Sweep
from lclm_jax.sweeps.results import CellResult
from lclm_jax.sweeps.workers.layout import RESULT, cell_directory

LOSS = "loss"


class ResultsError(UserError):
    """Results of a sweep that are missing or do not belong to it."""


@dataclass(frozen=True)
class TrainedCell:
    """A cell of the sweep, its result, and its control where that has been trained."""

    cell: Cell
    result: CellResult
    control: CellResult | None = None

    def score(self, quantity: str, view: str) -> float | None:
        """Return loss or accuracy in a view; None where it has not been scored.

        Text and the first tokens are read by the control, the latter at its own ratio alone.
        """
        source = self.control if view in ("text", "first") else self.result
        if source is None or (view == "first" and source.ratio != self.result.ratio):
            return None
        return source.mean(quantity, view)


@dataclass(frozen=True)
class SettingScores:
    """The trained cells of one setting, which differ in their seeds."""

    cells: tuple[TrainedCell, ...]

    @property
    def levels(self) -> dict[str, Level]:
        """The level of every factor but the seed."""
        return without_seed(self.cells[0].cell.levels)

    def scores(self, quantity: str, view: str) -> list[float]:
        """Return the scores of all seeds that have one."""
        scores = (cell.score(quantity, view) for cell in self.cells)
        return [score for score in scores if score is not None]

    @property
    def published(self) -> tuple[float, float] | None:
        """The loss that a paper gives for the setting."""
        return self.cells[0].cell.published


@dataclass(frozen=True)
class CheckedExpectation:
    """An expectation, and for each pair of neighbours in its order what the cells say."""

    expectation: Expectation
    orderings: tuple[Ordering, ...]


@dataclass(frozen=True)
class Findings:
    """Results of the finished cells of a sweep, and comparisons between them.

    Attributes:
        sweep: the sweep.
        cells: finished ones that compress.
        controls: results of the finished controls.
        settings: of the cells, the lowest mean loss first.
        effects: comparisons of each level of one factor with the baseline's.
        expectations: those of the sweep.
        unfinished: names of cells without a result.
        outdated: names of cells that were trained with another config than the sweep has now.
    """

    sweep: Sweep
    cells: tuple[TrainedCell, ...]
    controls: tuple[CellResult, ...]
    settings: tuple[SettingScores, ...]
    effects: tuple[Comparison, ...]
    expectations: tuple[CheckedExpectation, ...]
    unfinished: tuple[str, ...]
    outdated: tuple[str, ...]

    @property
    def results(self) -> tuple[CellResult, ...]:
        """Results of all finished cells."""
        return (*(cell.result for cell in self.cells), *self.controls)

    @property
    def factors(self) -> tuple[str, ...]:
        """Factors of all settings, but the seed."""
        return tuple(dict.fromkeys(x for setting in self.settings for x in setting.levels))

    @property
    def baseline(self) -> dict[str, Level]:
        """The setting that others are compared with."""
        return find_baseline(self.sweep)

    @property
    def scored_tokens(self) -> tuple[float, float]:
        """Least and most held-out tokens that a cell was scored on; equal where all fit alike."""
        counts = [
            sum(views["nothing"]["tokens"] for views in result.scores.values())
            for result in self.results
        ]
        return min(counts), max(counts)


def read_findings(sweep: Sweep, directory: Path) -> Findings:
    """Return the findings of the finished cells in the directory of a sweep.

    Raises ResultsError where none is finished, and where a result is of other levels than its cell.
    """
    results = read_results(sweep, directory)
    controls = [result for result in results.values() if result.control]
    cells = [
        TrainedCell(cell, results[cell.name], find_control(cell, controls))
        for cell in sweep.cells
        if cell.name in results and not results[cell.name].control
    ]
    if not cells:
        raise ResultsError(
            f"expected finished cells in {directory}, found none that compress; train some first, "
            "or change --out"
        )
    records = [to_record(cell.result) for cell in cells]
    return Findings(
        sweep=sweep,
        cells=tuple(cells),
        controls=tuple(controls),
        settings=tuple(group_by_setting(cells)),
        effects=tuple(measure_effects(records, find_baseline(sweep))),
        expectations=tuple(check_expectations(records, sweep.expectations)),
        unfinished=tuple(cell.name for cell in sweep.cells if cell.name not in results),
        outdated=tuple(
            cell.name
            for cell in sweep.in_directory(directory).cells
            if cell.name in results and not is_of(results[cell.name], cell)
        ),
    )


def read_results(sweep: Sweep, directory: Path) -> dict[str, CellResult]:
    """Return the results of finished cells by name.

    Raises ResultsError for one that is damaged, and for one of other levels, which an earlier
    version of the sweep has left.
    """
    results = {}
    for cell in sweep.cells:
        file = cell_directory(directory, cell.name) / RESULT
        if file.exists():
            result = read_result(file)
            if result.levels != cell.levels:
                raise ResultsError(
                    f"expected a result of {dict(cell.levels)} in {file}, got one of "
                    f"{dict(result.levels)}; remove the cell's directory to train it again"
                )
            results[cell.name] = result
    return results


def check_results(sweep: Sweep, directory: Path):
    """Raise ResultsError for results that are not of the sweep as it is now."""
    results = read_results(sweep, directory)
    cells = [cell for cell in sweep.cells if cell.name in results]
    if outdated := [cell.name for cell in cells if not is_of(results[cell.name], cell)]:
        raise ResultsError(
            f"expected results of the sweep's own configs in {directory}, got another for "
            f"{len(outdated)} of {len(cells)} cells, such as {outdated[0]}; remove their "
            "directories to train them again, or set --out to another directory"
        )


def read_result(file: Path) -> CellResult:
    """Return the result of a cell. Raises ResultsError for a file that is damaged."""
    try:
        return CellResult.from_dict(read_json(file))
    except (FileError, KeyError, TypeError, ValueError) as error:
        raise ResultsError(
            f"expected the result of a cell in {file}: {error}; remove the cell's directory to "
            "train it again"
        ) from error


def is_of(result: CellResult, cell: Cell) -> bool:
    """Return True where a result is of a cell's config; directories may differ."""
    trained = from_dict(Config, dict(result.config))
    run = replace(trained.run, directory=cell.config.run.directory)
    data = replace(trained.data, directory=cell.config.data.directory)
    return replace(trained, run=run, data=data) == cell.config


def find_control(cell: Cell, controls: Sequence[CellResult]) -> CellResult | None:
    """Return the control with the most levels of those whose levels are all the cell's."""
    matching = [
        control
        for control in controls
        if has_levels(cell.levels, {x: y for x, y in control.levels.items() if x != CONTROL})
    ]
    return max(matching, key=lambda control: len(control.levels), default=None)


def without_seed(levels: Setting) -> dict[str, Level]:
    """Return the levels of all factors but the seed."""
    return {factor: level for factor, level in levels.items() if factor != SEED}


def find_baseline(sweep: Sweep) -> dict[str, Level]:
    """Return the setting that others are compared with: by default that of the first cell."""
    return without_seed(sweep.baseline or sweep.cells[0].levels)


def group_by_setting(cells: Sequence[TrainedCell]) -> list[SettingScores]:
    """Return the cells by what was chosen beside the seed, the lowest mean loss first."""
    groups = defaultdict(list)
    for cell in cells:
        groups[frozenset(without_seed(cell.cell.levels).items())].append(cell)
    settings = [SettingScores(tuple(group)) for group in groups.values()]
    return sorted(settings, key=lambda setting: np.mean(setting.scores(LOSS, "latents")))


def to_record(result: CellResult) -> Record:
    """Return the levels of a cell and its loss from latents."""
    return Record(result.levels, {LOSS: result.mean(LOSS, "latents")})


def measure_effects(records: Sequence[Record], baseline: Setting) -> list[Comparison]:
    """Return comparisons of every level that differs from the baseline's with that.

    The correction for many comparisons is over all of them.
    """
    contrasts = []
    for factor, base in baseline.items():
        levels = dict.fromkeys(record.tags.get(factor, base) for record in records)
        for level in levels:
            if level != base and any(record.tags.get(factor) == base for record in records):
                contrasts.append(({factor: level}, {factor: base}))
    return compare(records, contrasts, LOSS)


def check_expectations(
    records: Sequence[Record], expectations: Sequence[Expectation]
) -> Iterator[CheckedExpectation]:
    """Yield for each expectation what the cells say; one without cells has no orderings."""
    for expectation in expectations:
        chosen = [record for record in records if has_levels(record.tags, expectation.where)]
        known = all(
            any(has_levels(record.tags, setting) for record in chosen)
            for setting in expectation.order
        )
        orderings = check_order(chosen, expectation.order, LOSS) if known else []
        yield CheckedExpectation(expectation, tuple(orderings))


def has_levels(tags: Mapping, setting: Setting) -> bool:
    """Return True where tags include the levels of a setting."""
    return all(tags.get(factor) == level for factor, level in setting.items())

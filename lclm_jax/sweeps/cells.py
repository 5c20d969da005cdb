"""Cells of a sweep: one training run each, at one level of every factor.

A sweep is a Python file in `configs/ablations` with a function `sweep()`:

    def sweep() -> Sweep:
        return Sweep(grid(cell_config, pooling=("mean", "concat"), seed=(0, 1, 2)))
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lclm_jax.config import Config, ConfigError
from lclm_jax.config.settings import FileName, parse
from lclm_jax.experiment import load_object
from lclm_jax.sweeps.workers.layout import cell_directory

Level = str | int | float  # of a factor
Setting = Mapping[str, Level]  # levels of one or several factors
SEED = "seed"  # the factor of repetitions
CONTROL = "control"  # the factor of controls
RUN = "run"  # the directory of a cell's training, in that of the cell
DATA = "data"  # the directory of a sweep's data, and the job that prepares it


@dataclass(frozen=True)
class Cell:
    """A training run of a sweep.

    Attributes:
        name: of its directory; unique in the sweep.
        config: of its run; its directories are set by `Sweep.in_directory`.
        levels: the level of every factor, by name.
        published: the lowest and the highest loss that a paper gives for it, equal where it gives
            one; None where it gives none.
    """

    name: FileName
    config: Config
    levels: Setting
    published: tuple[float, float] | None = None

    def __post_init__(self):
        parse(FileName, self.name, "Cell.name")

    @property
    def is_control(self) -> bool:
        """True where the decoder reads every context as plain text, the limit of compression."""
        return not any(stage.has_latents for stage in self.config.stages)


@dataclass(frozen=True)
class Expectation:
    """An order of settings that is expected before the run, the lowest loss first.

    Attributes:
        order: settings of the same factors.
        reason: for the order, or its source.
        where: levels of other factors, for an order that is expected of cells with these alone.
    """

    order: tuple[Setting, ...]
    reason: str
    where: Setting = field(default_factory=dict)

    def __post_init__(self):
        ordered = {factor for setting in self.order for factor in setting}
        if both := ordered & self.where.keys():
            raise ConfigError(
                f"expected `where` to have other factors than the order, got {min(both)!r} in both"
            )


@dataclass(frozen=True)
class Sweep:
    """The cells of an ablation, the data that they share, and what they are to show.

    Attributes:
        cells: in the order in which workers try them.
        prepare: writes the data that all cells share, reusing what is there; None where it is
            prepared already.
        baseline: the level of every factor that others are compared with; by default that of the
            first cell.
        expectations: orders that the report checks.
    """

    cells: tuple[Cell, ...]
    prepare: Callable[[Config], None] | None = None
    baseline: Setting = field(default_factory=dict)
    expectations: tuple[Expectation, ...] = ()

    def __post_init__(self):
        names = [cell.name for cell in self.cells]
        if not names:
            raise ConfigError("a sweep needs at least one cell, got none")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"cells need different names, got {repeated[0]} more than once")
        if DATA in names:
            raise ConfigError(f"expected cells of other names than {DATA!r}, which the data has")
        self._check_levels()
        self._check_settings()

    def _check_levels(self):
        """Raise ConfigError for levels that JSON cannot hold, or that two cells share."""
        names: dict[frozenset, str] = {}
        for cell in self.cells:
            for factor, level in cell.levels.items():
                if type(level) not in (str, bool, int, float) or level != level:
                    raise ConfigError(
                        f"cell {cell.name}: expected text or a number as the level of {factor}, "
                        f"got {level!r} ({type(level).__name__})"
                    )
            levels = frozenset(cell.levels.items())
            if levels in names:
                raise ConfigError(
                    f"expected cells of different levels, got those of {names[levels]} again in "
                    f"{cell.name}; give them a factor that tells them apart, such as {SEED}"
                )
            names[levels] = cell.name

    def _check_settings(self):
        """Raise ConfigError for a baseline, or an expectation, that no cell has."""
        settings = {"baseline": self.baseline}
        for number, expectation in enumerate(self.expectations):
            for place, setting in enumerate(expectation.order):
                name = f"expectations[{number}].order[{place}]"
                settings[name] = {**expectation.where, **setting}
        for name, setting in settings.items():
            if not any(setting.items() <= cell.levels.items() for cell in self.cells):
                raise ConfigError(
                    f"{name}: expected levels of a cell, got {dict(setting)}; the first cell has "
                    f"{dict(self.cells[0].levels)}"
                )

    def in_directory(self, directory: Path) -> "Sweep":
        """Return the sweep with all it writes in one directory, prepared data included."""
        return replace(self, cells=tuple(self._placed(cell, directory) for cell in self.cells))

    def _placed(self, cell: Cell, directory: Path) -> Cell:
        config = cell.config
        run = replace(config.run, directory=str(cell_directory(directory, cell.name) / RUN))
        config = replace(config, run=run)
        if self.prepare is not None:
            data = replace(config.data, directory=str(directory / DATA))
            config = replace(config, data=data)
        return replace(cell, config=config)

    def cell(self, name: str) -> Cell:
        """Return a cell by name. Raises ConfigError for an unknown one."""
        for cell in self.cells:
            if cell.name == name:
                return cell
        names = ", ".join(cell.name for cell in self.cells[:8])
        raise ConfigError(f"the sweep has no cell {name!r}; its first cells are {names}")


def load_sweep(path: str) -> Sweep:
    """Return the sweep of a Python file with a function `sweep()`.

    Raises FileNotFoundError for a path that is no file, and ConfigError for whatever its code
    raises.
    """
    return load_object(path, "sweep", Sweep)


def grid(config: Callable[..., Config], **factors: tuple[Level, ...]) -> tuple[Cell, ...]:
    """Return a cell for every combination of levels, the first factor varying slowest.

    `config` is called with one level of every factor.

    >>> [cell.name for cell in grid(make, window=(256, 1024), seed=(0, 1))]  # doctest: +SKIP
    ['window-256.seed-0', 'window-256.seed-1', 'window-1024.seed-0', 'window-1024.seed-1']
    """
    combinations = itertools.product(*factors.values())
    return tuple(
        cell_at(config, dict(zip(factors, chosen, strict=True))) for chosen in combinations
    )


def cell_at(config: Callable[..., Config], levels: Mapping[str, Any]) -> Cell:
    """Return the cell at one level of every factor, named after them."""
    return Cell(name_of(levels), config(**levels), dict(levels))


def control_of(cell: Cell, **levels: Level) -> Cell:
    """Return the control of a cell: all its contexts are plain text.

    `levels` are those that a control depends on, such as the decoder and the seed.
    """
    stages = tuple(
        replace(stage, streams=tuple(replace(x, plain_contexts=1.0) for x in stage.streams))
        for stage in cell.config.stages
    )
    levels = {CONTROL: "text", **levels}
    return Cell(name_of(levels), replace(cell.config, stages=stages), levels)


def name_of(levels: Setting) -> str:
    """Return the name of a cell.

    >>> name_of({"pooling": "mean", "seed": 1})
    'pooling-mean.seed-1'
    """
    return ".".join(f"{factor}-{level}" for factor, level in levels.items())

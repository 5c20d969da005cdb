"""Cells of a sweep: one training run each, at one level of every factor.

A sweep is a Python file in `configs/ablations` with a function `sweep()`:

    def sweep() -> Sweep:
        return Sweep(grid(cell_config, pooling=("mean", "concat"), seed=(0, 1, 2)))
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lclm_jax.config import Config, ConfigError
from lclm_jax.config.settings import FileName, parse
from lclm_jax.experiment import load_object
from lclm_jax.sweeps.workers.layout import cell_directory

Level = str | int | float  # of a factor
RUN = "run"  # the directory of a cell's training, in that of the cell
DATA = "data"  # the directory of a sweep's data, and the job that prepares it


@dataclass(frozen=True)
class Cell:
    """A training run of a sweep.

    Attributes:
        name: of its directory; unique in the sweep.
        config: of its run; its directories are set by `Sweep.in_directory`.
        levels: the level of every factor, by name.
    """

    name: FileName
    config: Config
    levels: Mapping[str, Level]

    def __post_init__(self):
        parse(FileName, self.name, "Cell.name")

    @property
    def is_control(self) -> bool:
        """True where the decoder reads every context as plain text, the limit of compression."""
        return not any(stage.has_latents for stage in self.config.stages)


@dataclass(frozen=True)
class Sweep:
    """The cells of an ablation, and the data that they share.

    Attributes:
        cells: in the order in which workers try them.
        prepare: writes the data that all cells share, reusing what is there; None where it is
            prepared already.
    """

    cells: tuple[Cell, ...]
    prepare: Callable[[Config], None] | None = None

    def __post_init__(self):
        names = [cell.name for cell in self.cells]
        if not names:
            raise ConfigError("a sweep needs at least one cell, got none")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"cells need different names, got {repeated[0]} more than once")
        if DATA in names:
            raise ConfigError(f"expected cells of other names than {DATA!r}, which the data has")

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


def name_of(levels: Mapping[str, Level]) -> str:
    """Return the name of a cell.

    >>> name_of({"pooling": "mean", "seed": 1})
    'pooling-mean.seed-1'
    """
    return ".".join(f"{factor}-{level}" for factor, level in levels.items())

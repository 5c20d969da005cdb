"""The files and patterns that every source of a recipe reads."""

from collections.abc import Sequence
from pathlib import Path

from lclm_jax.config import ConfigError, Recipe
from lclm_jax.config.settings import expand_home


def find_inputs(
    assignments: Sequence[str], recipe: Recipe, directory: Path | None = None
) -> dict[str, list[str]]:
    """Return the paths and patterns that every source of a recipe reads.

    A source without a `NAME=PATH` assignment reads what has its name in `directory`. Raises
    ConfigError for a source that the recipe lacks, or that has no input.
    """
    names = [source.name for source in recipe.sources]
    inputs: dict[str, list[str]] = {}
    for assignment in assignments:
        name, pattern = _parse_assignment(assignment, recipe)
        inputs.setdefault(name, []).append(expand_home(pattern))

    if directory is not None:
        for name in names:
            files = [*directory.glob(name), *directory.glob(f"{name}.*")]
            if files and name not in inputs:
                inputs[name] = sorted(map(str, files))

    missing = [name for name in names if name not in inputs]
    if missing:
        options = " ".join(f"--input {name}=PATH" for name in missing)
        raise ConfigError(
            f"recipe {recipe.name} also reads {', '.join(missing)}; say where they lie by "
            f"{options}, or leave one out by --without NAME"
        )
    return {name: inputs[name] for name in names}


def _parse_assignment(assignment: str, recipe: Recipe) -> tuple[str, str]:
    """Return the source and the pattern of `NAME=PATH`."""
    name, equals, pattern = assignment.partition("=")
    if not equals or not pattern:
        raise ConfigError(f"expected --input NAME=PATH, got {assignment!r}")
    names = [source.name for source in recipe.sources]
    if name not in names:
        raise ConfigError(
            f"recipe {recipe.name} has no source {name!r}; its sources are {', '.join(names)}"
        )
    return name, pattern

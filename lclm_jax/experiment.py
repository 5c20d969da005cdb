"""Experiments: a config together with its data recipe, its data and its evaluation.

A run config is a Python file with one function:

    def experiment() -> Experiment:
        return Experiment(config(), recipe(), prepare=prepare)

A file that defines only `config()` or only `recipe()` is an experiment with nothing else.
"""

import runpy
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lclm_jax.config import Config, ConfigError, Recipe
from lclm_jax.config.settings import Directory, parse
from lclm_jax.config.values import override
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.errors import UserError
from lclm_jax.evaluation.held_out.evaluator import EvaluationConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Experiment:
    """A config and what else a run of it needs.

    Attributes:
        config: settings of the model, its data, its stages and the run.
        recipe: sources and streams of the data, where the experiment defines them.
        prepare: writes prepared data to `config.data.directory`, reusing what is there; None where
            the data comes from `launch.prepare`.
        evaluation: sources and lengths that the trained model is evaluated on.
        prepare_held_out: writes only the held-out documents, in the tokens of a trained model.
    """

    config: Config
    recipe: Recipe | None = None
    prepare: Callable[[Config], None] | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    prepare_held_out: Callable[[Config, Tokenizer], None] | None = None


def load_experiment(path: str, assignments: Sequence[str] = ()) -> Experiment:
    """Return the experiment of a Python file, its config changed by `KEY=VALUE` assignments.

    Raises FileNotFoundError for a path that is no file, and ConfigError for a file without
    `experiment()` or `config()`, for an unknown setting, and for whatever the file's own code
    raises, with the line that raised it.
    """
    names = _run_file(path, "experiment() or config()")
    if "experiment" in names:
        experiment = _call(path, names, "experiment", Experiment)
    else:
        experiment = Experiment(_call(path, names, "config", Config))
        _refuse_unused(path, names)
    return replace(experiment, config=override(experiment.config, *assignments))


def load_recipe(path: str, assignments: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a Python file, changed by `KEY=VALUE` assignments.

    The file defines `recipe()`, or an `experiment()` that has one. Raises as `load_experiment`.
    """
    names = _run_file(path, "recipe()")
    if "recipe" in names or "experiment" not in names:
        return override(_call(path, names, "recipe", Recipe), *assignments)
    recipe = _call(path, names, "experiment", Experiment).recipe
    if recipe is None:
        raise ConfigError(f"{path}: its experiment has no recipe; expected Experiment(recipe=...)")
    return override(recipe, *assignments)


def load_object(path: str, name: str, kind: type[T]) -> T:
    """Return what the function `name` of a Python file returns, an instance of `kind`.

    Raises as `load_experiment`.
    """
    return _call(path, _run_file(path, f"{name}()"), name, kind)


def _run_file(path: str, expected: str) -> dict[str, Any]:
    """Return the global names that a Python file defines."""
    file = parse(Directory, path, "the config's path")
    if not Path(file).is_file():
        raise FileNotFoundError(
            f"{path}: no such config; expected a Python file with a function {expected}"
        )
    return _locate_errors(file, lambda: runpy.run_path(file))


def _call(path: str, names: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """Call a function of a config file and check the class of its result."""
    file = parse(Directory, path, "the config's path")
    function = names.get(name)
    if not callable(function):
        raise ConfigError(
            f"{path} has no function {name}(); expected one that returns a lclm_jax {kind.__name__}"
        )
    result = _locate_errors(file, function)
    if not isinstance(result, kind):
        raise ConfigError(
            f"{path}: {name}() must return a {kind.__name__}, got {type(result).__name__}"
        )
    return result


def _refuse_unused(path: str, names: Mapping[str, Any]):
    """Raise ConfigError for a file whose data preparation would never run."""
    for name in ("prepare", "prepare_held_out"):
        if callable(names.get(name)):
            raise ConfigError(
                f"{path} has a function {name}() that nothing calls; expected a function "
                f"experiment() that returns Experiment(config(), {name}={name}), as in "
                "configs/small.py"
            )


def _locate_errors(file: str, call: Callable[[], Any]) -> Any:
    """Call a user's code. Raises ConfigError with the file and line of whatever it raises."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == file]
        line = lines[-1] if lines else getattr(error, "lineno", None)
        place = f"{file}, line {line}" if line else file

        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        message = (str(error).strip() or "no message").splitlines()[0]
        raise ConfigError(f"{place}: {kind}{message}") from error

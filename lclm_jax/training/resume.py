"""The position of a run, and the check that a config can continue from it.

A position is the number of a step and the state of the data's iterator: indices of examples in an
order that follows from seed, streams, lengths and the prepared data. If one of those changed,
examples would be repeated or left out, or a step would be saved under a number already in use.
"""

import json
from collections.abc import Mapping
from typing import Any

from lclm_jax.config import Config, ConfigError, StageConfig
from lclm_jax.config.values import differences, from_dict, to_dict, with_current_names
from lclm_jax.training.optim import assign_groups

Position = dict[str, Any]  # stage, stage_step, data, sources, config, code
# Settings of data that do not affect the order of examples. The content of `directory` is compared
# by its fingerprint.
FREE_DATA_SETTINGS = ("data.directory", "data.batch_rows", "data.packing_lookahead")
# Settings of a stage that affect that order.
ORDERING_STAGE_SETTINGS = ("streams", "row_windows", "compress")


def check_position(config: Config, position: Position, step: int, paths: list[str], where: str):
    """Raise ConfigError, with old and new values, if a config cannot continue from a position.

    `step` is the checkpoint's number, `paths` are those of all parameters, and
    `where` names the checkpoint in the message.
    """
    stages = {stage.name: stage for stage in config.stages}
    if position.get("stage") not in stages:
        raise ConfigError(
            f"{where} was saved in stage {position.get('stage')!r}, this config has "
            f"{', '.join(stages)}; use the config it was trained with, or another run.directory"
        )
    stage, trained = stages[position["stage"]], position["stage_step"]
    changed: dict[str, list[Any]] = {}
    if old := _config_of(position):
        changed |= _changed_order(old, config, stage.name)
        if not changed and trained < stage.steps:
            changed |= _changed_examples(old, config, stage)
            changed |= _changed_groups(old, stage, paths)
    if not changed and trained > stage.steps:
        changed[f"stages.{stage.name}.steps"] = [trained, stage.steps]
    if not changed and config.run_step(stage.name, trained) != step:
        changed[f"the step of the run after step {trained} of stage {stage.name}"] = [
            step,
            config.run_step(stage.name, trained),
        ]
    if changed:
        listed = ", ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in changed.items())
        raise ConfigError(
            f"{where} holds step {trained} of stage {stage.name}, from which these settings cannot "
            f"change: {listed}; set them as they were, or run.directory to a new place"
        )


def changed_settings(old: Mapping[str, Any], config: Config) -> dict[str, list[Any]]:
    """Return [old, new] of every setting that differs from an earlier config, by its path."""
    before = with_current_names(Config, dict(old))
    return differences(*(json.loads(json.dumps(values)) for values in (before, to_dict(config))))


def _config_of(position: Position) -> Config | None:
    """Return the config of a position, or None if unreadable; newer settings get defaults."""
    try:
        return from_dict(Config, position["config"])
    except (ConfigError, KeyError):
        return None


def _changed_order(old: Config, config: Config, stage: str) -> dict[str, list[Any]]:
    """Return the differences in the stages up to one, which number the steps of the run."""
    done, now = ([(part.name, part.steps) for part in _until(x, stage)] for x in (old, config))
    if [name for name, _ in done] != [name for name, _ in now]:
        return {"stages": [[name for name, _ in x] for x in (done, now)]}
    return {
        f"stages.{name}.steps": [steps, new]
        for (name, steps), (_, new) in zip(done[:-1], now[:-1], strict=True)
        if steps != new
    }


def _until(config: Config, name: str) -> tuple[StageConfig, ...]:
    """Return the stages up to the named one, or all if there is no such stage."""
    names = [stage.name for stage in config.stages]
    return config.stages[: names.index(name) + 1 if name in names else None]


def _changed_examples(old: Config, config: Config, stage: StageConfig) -> dict[str, list[Any]]:
    """Return the differences that reorder a stage's examples or shrink the rows for queued ones."""
    own = tuple(f"stages.{stage.name}.{name}" for name in ORDERING_STAGE_SETTINGS)
    return {
        name: values
        for name, values in changed_settings(to_dict(old), config).items()
        if (name.startswith("data.") and name not in FREE_DATA_SETTINGS) or name.startswith(own)
    }


def _changed_groups(old: Config, stage: StageConfig, paths: list[str]) -> dict[str, list[Any]]:
    """Return the groups of a stage if they train other parameters, or group them in another way."""
    before = next(part for part in old.stages if part.name == stage.name)
    members = [
        {label: sorted(group) for label, group in assign_groups(paths, version).items()}
        for version in (before, stage)
    ]
    if members[0] == members[1]:
        return {}
    patterns = [
        [(group.pattern, group.learning_rate) for group in version.groups]
        for version in (before, stage)
    ]
    return {f"stages.{stage.name}.groups": patterns}


def check_sources(saved: Mapping[str, Any] | None, current: Mapping[str, Any], directory: str):
    """Raise ConfigError if a stage's prepared data are not those that a checkpoint was trained on.

    Checkpoints of earlier versions have no fingerprints; they pass.
    """
    changed = {
        name: (mark, current.get(name))
        for name, mark in (saved or {}).items()
        if mark != current.get(name)
    }
    if changed:
        listed = ", ".join(
            f"source {name} {_describe(old)} -> {_describe(new)}"
            for name, (old, new) in changed.items()
        )
        raise ConfigError(
            f"the prepared data in {directory} are not those the run was trained on: {listed}; "
            "bring them back, set data.directory to where they are, or run.directory to a new place"
        )


def _describe(mark: Mapping[str, Any] | None) -> str:
    if mark is None:
        return "none"
    return f"{mark['examples']} examples in {mark['shards']} shards, sha256 {mark['sha256'][:12]}"

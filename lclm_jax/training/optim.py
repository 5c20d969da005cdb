"""The optimizer of a stage: a table of path patterns sets each parameter's rate and decay.

Trained and frozen parameters are two flat dicts, path -> array; only the first is differentiated
and has moments.
"""

import re
from typing import cast

import jax
import jax.numpy as jnp
import optax

from lclm_jax.config import ConfigError, OptimizerConfig, ParameterGroup, StageConfig
from lclm_jax.model.params import Flat, component, flatten, unflatten
from lclm_jax.typing import Array, Bool, Params

# Components that a batch without contexts must leave untouched.
CONTEXT_COMPONENTS = ("encoder", "adapter")


def assign_groups(paths: list[str], stage: StageConfig) -> dict[str, dict[str, ParameterGroup]]:
    """Return the trained parameters by label, "component/index of the group".

    The first matching pattern decides; frozen parameters have no label. Raises ConfigError for a
    parameter that no pattern matches, and for a pattern that matches no parameter.
    """
    assigned: dict[str, dict[str, ParameterGroup]] = {}
    for path in paths:
        number = next(
            (i for i, group in enumerate(stage.groups) if re.fullmatch(group.pattern, path)), None
        )
        if number is None:
            raise ConfigError(
                f"stage {stage.name}: no group matches parameter {path}; add a pattern "
                "(learning_rate=none freezes it)"
            )
        if stage.groups[number].learning_rate is not None:
            assigned.setdefault(f"{component(path)}/{number}", {})[path] = stage.groups[number]
    unused = [
        group.pattern
        for group in stage.groups
        if not any(re.fullmatch(group.pattern, path) for path in paths)
    ]
    if unused:
        raise ConfigError(
            f"stage {stage.name}: patterns {unused} match no parameter; "
            f"parameters begin {paths[:3]}"
        )
    return assigned


def split_trained(params: Params, stage: StageConfig) -> tuple[Flat, Flat]:
    """Return (trained, frozen) parameters of a stage."""
    flat = flatten(params)
    names = {path for group in assign_groups(list(flat), stage).values() for path in group}
    trained = {path: array for path, array in flat.items() if path in names}
    frozen = {path: array for path, array in flat.items() if path not in names}
    return trained, frozen


def schedule(stage: StageConfig, rate: float) -> optax.Schedule:
    """Return the learning rate of an update as a function of the number of updates before it.

    Rises linearly to `rate` at step `warmup_steps`, then falls as a cosine to
    `final_learning_rate` at the last step. Warm-up takes at most half of the steps; without it
    step 1 has the full rate, as has a stage's only step.

    >>> stage = StageConfig(
    ...     "short", steps=4, warmup_steps=2, final_learning_rate=0.0, groups=(), streams=()
    ... )
    >>> [round(float(schedule(stage, 1.0)(updates)), 6) for updates in range(4)]
    [0.5, 1.0, 0.5, 0.0]
    """
    warmup = max(1, min(stage.warmup_steps, stage.steps // 2))
    steps = max(stage.steps, warmup + 1)
    final = min(stage.final_learning_rate, rate)
    rate_of_step = optax.warmup_cosine_decay_schedule(0.0, rate, warmup, steps, final)
    return lambda updates: rate_of_step(updates + 1)


def optimizers(
    paths: list[str], stage: StageConfig, config: OptimizerConfig
) -> dict[str, optax.GradientTransformation]:
    """Return AdamW for every label of `assign_groups`."""
    made = {}
    for label, members in assign_groups(paths, stage).items():
        group = next(iter(members.values()))
        rate = schedule(stage, group.learning_rate or 0.0)
        made[label] = optax.adamw(
            rate, config.beta1, config.beta2, config.eps, weight_decay=group.weight_decay
        )
    return made


def init_moments(
    params: Params, stage: StageConfig, config: OptimizerConfig
) -> dict[str, optax.OptState]:
    """Return fresh optimizer state, for trained parameters only."""
    flat = flatten(params)
    groups = assign_groups(list(flat), stage)
    made = optimizers(list(flat), stage, config)
    return {
        label: made[label].init({path: flat[path] for path in members})
        for label, members in groups.items()
    }


def learning_rates(moments: dict[str, optax.OptState], stage: StageConfig) -> dict[str, Array]:
    """Return the rate of the next update by component, that of its first group."""
    rates: dict[str, Array] = {}
    for label in sorted(moments):
        rate = stage.groups[int(label.partition("/")[2])].learning_rate or 0.0
        adam, *_ = cast(tuple[optax.OptState, ...], moments[label])  # one for each part
        count = optax.tree.get(adam, "count")
        rates.setdefault(component(label), jnp.asarray(schedule(stage, rate)(count)))
    return rates


def update(
    params: Params,
    moments: dict[str, optax.OptState],
    gradients: Flat,
    stage: StageConfig,
    config: OptimizerConfig,
    finite: Bool[Array, ""],
    has_contexts: Bool[Array, ""],
) -> tuple[Params, dict[str, optax.OptState]]:
    """Return parameters and moments after one clipped AdamW step.

    Nothing changes unless `finite`. The encoder, the adapter, and their moments and counts change
    only with `has_contexts`, too.
    """
    flat = flatten(params)
    made = optimizers(list(flat), stage, config)
    scale = 1.0
    if config.clip is not None:
        scale = jnp.minimum(1.0, config.clip / (optax.tree.norm(gradients) + 1e-6))
    new_moments = {}
    for label, members in assign_groups(list(flat), stage).items():
        old = {path: flat[path] for path in members}
        clipped = {path: gradients[path] * scale for path in members}
        updates, state = made[label].update(clipped, moments[label], old)
        moves = finite & has_contexts if component(label) in CONTEXT_COMPONENTS else finite
        new = optax.apply_updates(old, updates)
        new, new_moments[label] = jax.tree.map(
            lambda after, before, moves=moves: jnp.where(moves, after, before),
            (new, state),
            (old, moments[label]),
        )
        flat |= new
    return unflatten(flat), new_moments

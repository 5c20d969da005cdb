"""Files and parameters that a run of training leaves behind."""

import json
from dataclasses import replace

import jax
import numpy as np

from lclm_jax.checkpoint.steps import Checkpoints
from lclm_jax.distributed.sharding import make_mesh
from lclm_jax.model.params import flatten
from lclm_jax.training.state import abstract_state


def saved(config, directory, step):
    """Parameters, moments and counters of a step, on the host."""
    stage = config.stages[0] if step <= config.stages[0].steps else config.stages[1]
    state = abstract_state(config, stage, make_mesh(config.mesh, jax.devices()[:1]))
    training = {
        "moments": state.moments,
        "step": state.step,
        "skipped": state.skipped,
        "failing": state.failing,
    }
    with Checkpoints(directory, keep=9) as checkpoints:
        return jax.device_get(
            checkpoints.restore(step, {"params": state.params, "training": training})
        )


def lines_of(directory, name):
    return [
        json.loads(line)
        for line in (directory / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def log_of(directory):
    return lines_of(directory, "log")


def events_of(directory, event):
    return [line for line in lines_of(directory, "events") if line["event"] == event]


def moved(config, directory, **changes):
    """The config of a run in another directory."""
    return replace(config, run=replace(config.run, directory=str(directory), **changes))


def assert_equal(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def changed(after, before):
    """Paths of the arrays that differ."""
    return {
        path for path, x in flatten(after).items() if not np.array_equal(x, flatten(before)[path])
    }

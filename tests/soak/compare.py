"""Comparison of a disturbed run with the undisturbed one: parameters, losses and batches."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lclm_jax.checkpoint.steps import Checkpoints
from lclm_jax.config import Config
from lclm_jax.distributed.sharding import make_mesh
from lclm_jax.files.run_layout import EVENTS, LOG
from lclm_jax.training.state import abstract_state
from tests.soak.child import Line, Session
from tests.soak.faults import BATCHES, poisoned_steps
from tests.soak.tries import Outcome

# Fields of a line of the log that must be equal in both runs.
COMPARED_FIELDS = ("loss", "gradient_norm", "trained_tokens", "skipped", "streams")
Place = tuple[str, int]  # stage, and step within it


def compare(
    config: Config, undisturbed: Path, disturbed: Path, sessions: Sequence[Session]
) -> dict[str, Outcome]:
    """Compare two finished runs; return an outcome for everything that must be equal, by name."""
    return {
        "checkpoints": same_checkpoints(config, undisturbed, disturbed),
        "loss curve": same_losses(
            config, read_lines(undisturbed / LOG), read_lines(disturbed / LOG)
        ),
        "batches": same_batches(
            config, read_lines(undisturbed / BATCHES), read_lines(disturbed / BATCHES)
        ),
        "not finite": same_skipped(
            config, read_lines(undisturbed / EVENTS), read_lines(disturbed / EVENTS)
        ),
        "nothing lost or repeated": whole_sessions(config, sessions),
    }


def read_lines(file: Path) -> list[Line]:
    """Return the lines of a journal, without those that a full disk cut short."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def _places(config: Config) -> list[Place]:
    return [(stage.name, step) for stage in config.stages for step in range(1, stage.steps + 1)]


def _place(line: Line) -> Place:
    return line["stage"], line["step"]


def same_checkpoints(config: Config, undisturbed: Path, disturbed: Path) -> Outcome:
    """Compare the last checkpoint of every stage bit for bit.

    It has parameters, moments, counters and the position in the data.
    """
    differing, count, mesh = [], 0, make_mesh(config.mesh, jax.devices()[:1])
    for stage in config.stages:
        step = config.run_step(stage.name, stage.steps)
        state = abstract_state(config, stage, mesh)
        abstract = {
            name: getattr(state, name) for name in ("moments", "step", "skipped", "failing")
        }
        restored = []
        for directory in (undisturbed, disturbed):
            with Checkpoints(directory) as checkpoints:
                trees = checkpoints.restore(step, {"params": state.params, "training": abstract})
                restored.append((bits(trees), checkpoints.metadata(step)["data"]))
        (expected, position), (actual, its_position) = restored
        count += len(expected)
        differing += [
            f"step {step} {path}" for path in expected if expected[path] != actual.get(path)
        ]
        differing += [f"step {step} position in the data"] if position != its_position else []
    return _all_same(
        differing,
        f"{count} arrays of {len(config.stages)} checkpoints and their positions in the data, "
        "bit for bit",
    )


def bits(tree: Any) -> dict[str, bytes]:
    """Return the bytes of every array by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def same_losses(config: Config, undisturbed: Iterable[Line], disturbed: Iterable[Line]) -> Outcome:
    """Compare the metrics of every step bit for bit; of a repeated step the last line counts."""
    expected, actual = (
        {_place(line): figures(line) for line in lines} for lines in (undisturbed, disturbed)
    )
    return _all_same(_differing(config, expected, actual), f"{len(expected)} steps, bit for bit")


def figures(line: Line) -> str:
    """Return the compared fields of a line, as text: exact for floats, and NaN equals NaN."""
    return json.dumps([line[name] for name in COMPARED_FIELDS])


def same_batches(config: Config, undisturbed: Iterable[Line], disturbed: Iterable[Line]) -> Outcome:
    """Compare the batch and records of every step, every repetition of a step included."""
    expected = {_place(line): (line["sha256"], line["records"]) for line in undisturbed}
    lines = list(disturbed)
    actual = {_place(line): (line["sha256"], line["records"]) for line in lines}
    wrong = [
        _place(line)
        for line in lines
        if expected.get(_place(line)) != (line["sha256"], line["records"])
    ]
    records = sum(len(row) for _, rows in expected.values() for row in rows)
    summary = (
        f"{len(lines)} batches read for {len(expected)} steps, {records} records, "
        "each as in the undisturbed run"
    )
    return _all_same([*_differing(config, expected, actual), *map(str, wrong)], summary)


def _differing(config: Config, expected: dict[Place, Any], actual: dict[Place, Any]) -> list[str]:
    """Return the steps that differ, or are missing from one of the runs."""
    places = dict.fromkeys([*_places(config), *expected, *actual])
    return [
        f"{stage} {step}"
        for stage, step in places
        if _missing_or_other(expected, actual, (stage, step))
    ]


def _missing_or_other(expected: dict[Place, Any], actual: dict[Place, Any], place: Place) -> bool:
    return place not in expected or place not in actual or expected[place] != actual[place]


def same_skipped(config: Config, undisturbed: Iterable[Line], disturbed: Iterable[Line]) -> Outcome:
    """Check that both runs skipped the planned steps and no other, with the same records."""
    planned = {
        (stage.name, step) for stage in config.stages for step in poisoned_steps(stage.steps)
    }
    expected, actual = (
        {_place(line): line["records"] for line in lines if line["event"] == "skipped"}
        for lines in (undisturbed, disturbed)
    )
    differing = [
        f"{stage} {step}"
        for stage, step in planned | expected.keys() | actual.keys()
        if (stage, step) not in planned
    ]
    differing += [
        f"{stage} {step}"
        for stage, step in planned
        if _missing_or_other(expected, actual, (stage, step))
    ]
    return _all_same(
        differing,
        f"{len(planned)} steps skipped in both runs, "
        f"named with {sum(map(len, actual.values()))} records",
    )


def whole_sessions(config: Config, sessions: Sequence[Session]) -> Outcome:
    """Check that every child resumed from the newest good checkpoint and missed no step."""
    wrong, reached, repeated = [], 0, 0
    for number, session in enumerate(sessions):
        aside = [event["checkpoint"] for event in session.events if event["event"] == "damaged"]
        first = next(
            (
                event.get("from", 0)
                for event in session.events
                if event["event"] in ("started", "resumed")
            ),
            None,
        )
        steps = [config.run_step(line["stage"], line["step"]) for line in session.log]
        if first is None:
            wrong += [f"child {number} trained and did not say from where"] if steps else []
            continue
        if first != (session.newest or 0) and not (aside and first < min(aside)):
            wrong.append(
                f"child {number} found checkpoint {session.newest} and went on from {first}"
            )
        if steps != list(range(first + 1, first + 1 + len(steps))):
            wrong.append(
                f"child {number} went on from {first} with steps {steps[:3]} to {steps[-1:]}"
            )
        if first > reached:
            wrong.append(
                f"child {number} went on from {first}, but only {reached} had been written"
            )
        repeated += sum(step <= reached for step in steps)
        reached = max([reached, *steps])
    total = sum(stage.steps for stage in config.stages)
    wrong += [f"{reached} of {total} steps were written"] if reached != total else []
    return _all_same(
        wrong,
        f"{len(sessions)} children, {repeated} steps repeated, "
        "all after the checkpoint gone on from",
    )


def _all_same(differing: Sequence[str], summary: str) -> Outcome:
    more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
    return Outcome(
        not differing, f"differing: {', '.join(differing[:5])}{more}" if differing else summary
    )

"""The soak: its plan, a short one that passes, and planted discrepancies that it must report."""

import json
import time
from collections import Counter

import jax
import numpy as np
import pytest

from lclm_jax.checkpoint.steps import Checkpoints
from lclm_jax.distributed.sharding import make_mesh
from lclm_jax.files.run_layout import EVENTS, LOG
from lclm_jax.model.params import flatten, unflatten
from lclm_jax.training.journal import Journal, JournalError
from lclm_jax.training.state import abstract_state
from tests.soak import __main__ as module
from tests.soak.__main__ import Row, Try, soak, summary
from tests.soak.child import Session
from tests.soak.compare import (
    read_lines,
    same_batches,
    same_checkpoints,
    same_losses,
    same_skipped,
    whole_sessions,
)
from tests.soak.faults import BATCHES
from tests.soak.plan import KILLS, KINDS, Fault, make_plan
from tests.soak.tries import Outcome
from tests.soak.work import soak_config

STEPS = 6
SECONDS = 1200  # for both runs; a machine may be busy with other tests
KILL = Fault("kill: in a step", STEPS + 2, 0.5)


@pytest.fixture(scope="module")
def soaked(tmp_path_factory):
    """(directory, rows, tries) of a run of two stages that is killed once, in the second."""
    directory = tmp_path_factory.mktemp("soak")
    return directory, *soak(directory, [KILL], STEPS, time.monotonic() + SECONDS)


@pytest.fixture
def config(soaked):
    return soak_config(soaked[0] / "data", soaked[0] / "disturbed", STEPS)


@pytest.fixture
def journals(soaked):
    """`journals(name)` are the lines of a journal in both runs."""
    return lambda name: [read_lines(soaked[0] / run / name) for run in ("undisturbed", "disturbed")]


def test_a_killed_run_equals_the_undisturbed_one(soaked):
    _, rows, (attempt,) = soaked
    assert [row for row in rows if not row.passed] == []
    assert (attempt.fault, attempt.outcome) == (KILL, Outcome(True, "in a step"))
    observations = {row.what: row.observation for row in rows}
    assert observations["loss curve"] == "12 steps, bit for bit"
    assert observations["nothing lost or repeated"].startswith("2 children, ")
    assert observations["not finite"].startswith("4 steps skipped in both runs")


def test_another_loss_is_found(config, journals):
    expected, actual = journals(LOG)
    assert same_losses(config, expected, actual).passed
    actual[-1]["loss"] = float(np.nextafter(actual[-1]["loss"], 9))
    assert same_losses(config, expected, actual) == Outcome(False, "differing: all 6")
    assert (
        same_losses(config, expected, [line for line in expected if line["step"] != 3]).observation
        == "differing: adapter 3, all 3"
    )


def test_another_batch_is_found(config, journals):
    """Another batch counts even if the step was repeated with the right one."""
    expected, actual = journals(BATCHES)
    assert same_batches(config, expected, actual).passed
    assert not same_batches(config, expected, [actual[0] | {"sha256": "other"}, *actual]).passed
    assert not same_batches(config, expected, [*actual, actual[-1] | {"records": []}]).passed


def test_another_skipped_step_is_found(config, journals):
    expected, actual = journals(EVENTS)
    more = actual + [{"event": "skipped", "stage": "all", "step": 5, "records": []}]
    assert same_skipped(config, expected, actual).passed
    assert same_skipped(config, expected, more) == Outcome(False, "differing: all 5")
    assert not same_skipped(
        config, expected, [line for line in actual if line["event"] != "skipped"]
    ).passed


def test_another_bit_of_a_checkpoint_is_found(soaked, config):
    directory, stage = soaked[0], config.stages[1]
    state = abstract_state(config, stage, make_mesh(config.mesh, jax.devices()[:1]))
    training = {name: getattr(state, name) for name in ("moments", "step", "skipped", "failing")}
    with Checkpoints(directory / "disturbed") as checkpoints:
        trees = checkpoints.restore(2 * STEPS, {"params": state.params, "training": training})
        position = checkpoints.metadata(2 * STEPS)
        params = flatten(trees["params"])
        params["adapter/norm/scale"] = np.nextafter(
            np.asarray(params["adapter/norm/scale"]), np.float32(9)
        )
    with (
        Checkpoints(directory / "planted", keep=9) as planted,
        Checkpoints(directory / "disturbed") as checkpoints,
    ):
        first = abstract_state(config, config.stages[0], make_mesh(config.mesh, jax.devices()[:1]))
        training = {
            name: getattr(first, name) for name in ("moments", "step", "skipped", "failing")
        }
        planted.save(
            STEPS,
            checkpoints.restore(STEPS, {"params": first.params, "training": training}),
            checkpoints.metadata(STEPS) | {"data": {}},
        )
        planted.save(2 * STEPS, {**trees, "params": jax.device_put(unflatten(params))}, position)
    outcome = same_checkpoints(config, directory / "undisturbed", directory / "planted")
    assert not outcome.passed
    assert f"step {STEPS} position in the data" in outcome.observation
    assert "adapter" in outcome.observation and outcome.observation.count("step 12") == 1


def logged(*steps):
    return [
        {"stage": "adapter" if step <= STEPS else "all", "step": (step - 1) % STEPS + 1}
        for step in steps
    ]


@pytest.mark.parametrize(
    ("newest", "began", "steps", "message"),
    [
        (6, 6, range(7, 13), None),
        (6, 4, range(5, 13), "found checkpoint 6 and went on from 4"),
        (6, 6, [7, 7, *range(8, 13)], "went on from 6 with steps"),
        (6, 6, [*range(7, 10), *range(11, 13)], "went on from 6 with steps"),
        (9, 9, range(10, 13), "only 8 had been written"),
        (6, 6, range(7, 12), "11 of 12 steps were written"),
    ],
)
def test_a_step_lost_or_repeated_is_found(config, newest, began, steps, message):
    first = Session(None, [{"event": "started"}], logged(*range(1, 9)))
    second = Session(newest, [{"event": "resumed", "from": began}], logged(*steps))
    outcome = whole_sessions(config, [first, second])
    assert (outcome.passed, True) == (
        message is None,
        message is None or message in outcome.observation,
    )


def test_a_line_that_cannot_be_written_says_what_to_do(config, tmp_path):
    (tmp_path / LOG).mkdir()
    with pytest.raises(
        JournalError,
        match="could not write to .*log.jsonl: .*free some space, then start again to continue",
    ):
        Journal(tmp_path, config).log({"stage": "all", "step": 1})


def test_nothing_but_a_soak_is_removed(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileExistsError, match="holds checkpoints, which is of no soak"):
        soak(tmp_path, [KILL], STEPS, time.monotonic())
    assert (tmp_path / "data").exists()
    (tmp_path / "checkpoints").rmdir()
    with pytest.raises(FileExistsError, match="holds data, which is of no soak"):
        soak(tmp_path, [KILL], STEPS, time.monotonic())
    assert (tmp_path / "data").exists()


def test_the_plan_has_everything_and_leaves_room():
    plan = make_plan(3, 30, 240)
    counts = Counter(fault.kind for fault in plan)
    assert {kind: counts[kind] for kind in KINDS} == {
        kind: 10 if kind in KILLS else 1 for kind in KINDS
    }
    steps = [fault.step for fault in plan]
    assert steps == sorted(steps) and steps[-1] < 240 - 14
    assert make_plan(3, 30, 240) == plan != make_plan(4, 30, 240)


def test_a_fault_that_is_not_tried_in_time_does_not_pass(tmp_path):
    rows, tries = soak(tmp_path, [KILL], STEPS, time.monotonic())
    assert [(row.what, row.passed) for row in rows] == [(KILL.kind, False), ("the same run", False)]
    assert tries == [Try(KILL, None)] and rows[0].observation == "1 not tried: out of time"


def test_one_failure_among_many_is_reported():
    tries = [Try(KILL, Outcome(True, "in a step"))] * 3 + [Try(KILL, Outcome(False, "hung"))]
    assert summary(KILL.kind, tries) == Row(KILL.kind, 4, "hung", False)
    assert summary(KILL.kind, tries[:3]).observation == "3 in a step"


def test_the_exit_status_says_if_all_passed(command, tmp_path, monkeypatch, capsys):
    rows = [
        Row("kill: saving", 1, "left whole", True),
        Row("loss curve", 1, "differing: all 6", False),
    ]
    for shown, status in ((rows[:1], 0), (rows, 1)):
        monkeypatch.setattr(module, "soak", lambda *_, shown=shown: (shown, [Try(KILL, None)]))
        assert command(module, tmp_path) == status
        assert json.loads((tmp_path / "soak.json").read_text(encoding="utf-8"))["passed"] == (
            status == 0
        )
    assert "differing: all 6" in capsys.readouterr().out

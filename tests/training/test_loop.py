"""The training loop: two stages, interruptions, frozen parameters and invalid configs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from lclm_jax.config import ConfigError, ParameterGroup, StageConfig
from lclm_jax.data.loading import PackedBatches, StageData, prefetch_batches
from lclm_jax.distributed.sharding import batch_sharding
from lclm_jax.model.params import flatten, unflatten
from lclm_jax.training import Interrupted, train
from lclm_jax.training.optim import assign_groups
from lclm_jax.training.state import begin_stage
from lclm_jax.training.step import train_step
from tests.support.paths import ROOT
from tests.support.trained_runs import (
    assert_equal,
    changed,
    log_of,
    saved,
)


def test_log_has_a_line_a_step_and_every_stream(finished):
    config, directory = finished
    lines = log_of(directory)
    assert [(line["stage"], line["step"]) for line in lines] == [
        (name, n) for name in ("adapter", "all") for n in (1, 2, 3, 4)
    ]
    for stage in config.stages:
        trained = {
            name for line in lines if line["stage"] == stage.name for name in line["streams"]
        }
        assert trained == {"reconstruction/docs", "interleaved/docs", "sft/tasks"}
    for line in lines:
        streams = line["streams"].values()
        assert line["trained_tokens"] == sum(stream["tokens"] for stream in streams)
        assert all(
            np.isfinite(stream["loss"]) and 0 <= stream["accuracy"] <= 1 for stream in streams
        )
        assert 0 < line["fill"] <= 1 and line["skipped"] == 0 and line["positions_per_second"] > 0
        assert 0 <= line["waiting"] <= 1 and line["left_out"] == {}


class Late:
    """Batches that come late, of a stream that left examples out."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def __iter__(self):
        return self

    def __next__(self):
        time.sleep(0.05)
        return next(self.batches)

    def get_state(self):
        return self.batches.get_state() | {"left_out": {"0": {"too long": 2}}}


def test_log_has_how_long_the_loop_waited_and_what_was_left_out(
    config, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(
        "lclm_jax.training.stage.prefetch_batches",
        lambda *arguments: Late(prefetch_batches(*arguments)),
    )
    directory = train(
        replace(config, stages=config.stages[:1], run=replace(config.run, directory=str(tmp_path)))
    )
    for line in log_of(directory):
        seconds = config.data.batch_rows * config.data.row_positions / line["positions_per_second"]
        assert 0.05 / seconds <= line["waiting"] <= 1
        assert line["left_out"] == {config.stages[0].streams[0].name: {"too long": 2}}
    assert f"left out examples of {config.stages[0].streams[0].name}: 2 too long" in caplog.text


def test_frozen_components_do_not_change_by_a_bit(finished, params):
    first = saved(*finished, 4)
    assert {path.split("/")[0] for path in changed(first["params"], params)} == {"adapter"}
    assert first["training"]["moments"].keys() == {"adapter/0"}
    last = saved(*finished, 8)
    assert {path.split("/")[0] for path in changed(last["params"], first["params"])} == {
        "adapter",
        "encoder",
        "decoder",
    }
    assert last["training"]["moments"].keys() == {"adapter/0", "encoder/1", "decoder/1"}


def test_a_finished_run_returns_at_once(finished):
    config, directory = finished
    lines = log_of(directory)
    assert train(config, hooks=[lambda info: pytest.fail("a step was taken")]) == directory
    assert log_of(directory) == lines


def test_killed_and_interrupted_equals_uninterrupted(finished, tmp_path):
    """Killed after the first stage, then stopped by Ctrl-C between checkpoints of the second."""
    config, directory = finished
    again = tmp_path / "again"
    shutil.copytree(directory, again)
    for step in (6, 8):
        shutil.rmtree(again / "checkpoints" / str(step))
    interrupted = replace(config, run=replace(config.run, directory=str(again)))
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(info):
        if info.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(
        Interrupted, match="stopped in stage all after step 3 of 4; saved, run again to continue"
    ):
        train(interrupted, hooks=[interrupt])
    assert signal.getsignal(signal.SIGINT) is handler
    assert train(interrupted) == again
    assert_equal(saved(config, again, 8), saved(config, directory, 8))
    losses = {line["step"]: line["loss"] for line in log_of(again)[-4:]}
    assert losses == {line["step"]: line["loss"] for line in log_of(directory)[-4:]}


@pytest.fixture
def steady(config, once, tokenizer, params, one_device):
    """(step, state, batch, loss) of the second stage after two steps on one batch.

    The state is on the host. Residual branches start at zero; with noise on every parameter, no
    gradient is zero from the first step on.
    """
    if "steady" not in once:
        stage, rng = config.stages[1], np.random.default_rng(0)
        noisy = jax.tree.map(
            lambda x: np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(np.float32), params
        )
        state = begin_stage(noisy, config, stage, one_device)
        where = jax.tree.map(lambda x: x.sharding, state)
        compiled = jax.jit(partial(train_step, config=config, stage=stage), donate_argnums=0)

        def step(state, batch):
            with jax.set_mesh(one_device):
                return jax.device_get(
                    compiled(
                        jax.device_put(state, where),
                        jax.device_put(batch, batch_sharding(one_device)),
                    )
                )

        batch = next(iter(PackedBatches(StageData(config, stage, tokenizer).mix_streams())))
        state, metrics = step(step(state, batch)[0], batch)
        once["steady"] = step, state, batch, metrics["loss"]
    return once["steady"]


def test_loss_falls_on_one_batch(steady):
    step, state, batch, before = steady
    for _ in range(20):
        state, metrics = step(state, batch)
    assert metrics["loss"] < before - 1
    assert state.step == 22 and state.skipped == 0


def test_a_batch_without_contexts_moves_only_the_decoder(steady):
    """Not a parameter, moment or count of encoder and adapter changes, not even by weight decay."""
    step, state, batch, _ = steady
    after, metrics = step(state, batch.replace(slots=np.full_like(batch.slots, -1)))
    assert {path.split("/")[0] for path in changed(after.params, state.params)} == {"decoder"}
    for label in ("adapter/0", "encoder/1"):
        assert_equal(after.moments[label], state.moments[label])
        assert all(np.any(moment) for moment in state.moments[label][0].mu.values())
    assert after.moments["decoder/1"][0].count == 3
    assert after.skipped == 0 and np.isfinite(metrics["loss"])


@pytest.mark.parametrize(
    ("factors", "finite_loss"),
    [
        ({"decoder/norm/scale": np.nan}, False),
        ({"encoder/norm/scale": 1e-24, "adapter/norm/scale": 1e24}, True),
    ],
    ids=["loss", "gradient only"],
)
def test_what_is_not_finite_skips_the_step_everywhere(steady, factors, finite_loss):
    """A tiny scale that the next norm makes up for: a finite loss, a gradient beyond float32."""
    step, state, batch, _ = steady
    poisoned = unflatten(
        {path: np.float32(factors.get(path, 1)) * x for path, x in flatten(state.params).items()}
    )
    after, metrics = step(state.replace(params=poisoned), batch)
    assert np.isfinite(metrics["loss"]) == finite_loss and not np.isfinite(metrics["gradient_norm"])
    assert_equal(after.params, poisoned)
    assert_equal(after.moments, state.moments)
    assert after.step == 3 and after.skipped == metrics["skipped"] == 1


PATHS = ["adapter/fc1", "encoder/table", "encoder/layers/mlp/up"]


def stage_of(*groups):
    return StageConfig("warm", 10, tuple(groups), ())


def test_first_matching_group_decides():
    table, rest = ParameterGroup("encoder/table", 1e-4), ParameterGroup("encoder/.*", 1e-3)
    assigned = assign_groups(PATHS, stage_of(ParameterGroup("adapter/.*", None), table, rest))
    assert assigned == {
        "encoder/1": {"encoder/table": table},
        "encoder/2": {"encoder/layers/mlp/up": rest},
    }


def test_every_parameter_needs_a_group():
    with pytest.raises(
        ConfigError, match=r"stage warm: no group matches parameter encoder/table; add a pattern"
    ):
        assign_groups(PATHS, stage_of(ParameterGroup("adapter/.*", 1e-3)))


def test_every_pattern_needs_a_parameter():
    with pytest.raises(
        ConfigError, match=r"stage warm: patterns \['decodr/\.\*'\] match no parameter"
    ):
        assign_groups(
            PATHS,
            stage_of(
                ParameterGroup("(adapter|encoder)/.*", 1e-3), ParameterGroup("decodr/.*", None)
            ),
        )


def test_encoder_begins_as_the_decoders_first_layers(config, params, one_device):
    model = replace(config.model, encoder=replace(config.model.decoder, layers=2))
    stage = replace(config.stages[1], encoder_from_decoder=True)
    state = begin_stage(params, replace(config, model=model), stage, one_device)
    encoder, decoder = state.params["encoder"], params["decoder"]
    assert_equal(encoder["layers"], jax.tree.map(lambda x: x[:2], decoder["layers"]))
    assert_equal((encoder["table"], encoder["norm"]), (decoder["table"], decoder["norm"]))
    assert_equal(state.params["decoder"], decoder)


def test_encoder_of_another_width_cannot_begin_as_the_decoder(config, params, one_device):
    with pytest.raises(ConfigError, match=r"needs equal encoder\.width and decoder\.width"):
        begin_stage(
            params, config, replace(config.stages[1], encoder_from_decoder=True), one_device
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["missing.py"],
            "error: missing.py: no such config; expected a Python file with a function "
            "experiment() or config()",
        ),
        (
            ["configs/tiny.py", "--set", "data.row=1"],
            "error: unknown setting data.row: did you mean data.batch_rows?",
        ),
    ],
)
def test_command_line_mistakes_are_one_line(arguments, message):
    command = [sys.executable, "-m", "launch.train", "--config", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 2
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
    assert not done.stdout

"""The positions from which a config can continue, and the settings that decide it."""

import json
from dataclasses import replace

import pytest

from lclm_jax.config import ConfigError, ParameterGroup, StageConfig
from lclm_jax.config.values import override, to_dict
from lclm_jax.training.resume import check_position, check_sources

PATHS = ["adapter/fc1", "encoder/table", "decoder/table"]
MARK = {"shards": 2, "examples": 40, "sha256": "ab" * 32}


def position_of(config, stage="all", step=2):
    """Return the position of a checkpoint in the middle of the second stage, as it is read back."""
    return json.loads(json.dumps({"stage": stage, "stage_step": step, "config": to_dict(config)}))


def check(config, position, step=6):
    check_position(config, position, step, PATHS, "runs/x/checkpoints/6")


def with_stages(config, *stages):
    return replace(config, stages=stages)


@pytest.mark.parametrize(
    "setting",
    [
        "data.batch_rows=16",
        "data.packing_lookahead=7",
        "data.directory=elsewhere",
        "stages.all.steps=9",
        "stages.all.steps=2",
        "stages.all.warmup_steps=0",
        "stages.all.final_learning_rate=1e-5",
        "stages.adapter.warmup_steps=3",
        "optimizer.beta1=0.5",
        "run.save_every=1",
        "run.keep=1",
        "run.log_every=3",
        "run.step_timeout=none",
        "run.seed=5",
        "run.micro_batches=2",
        "mesh.fsdp=2",
        "model.remat=full",
    ],
)
def test_a_setting_that_leaves_the_examples_alone_may_change(config_once, setting):
    check(override(config_once, setting), position_of(config_once))


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("data.seed=3", "data.seed 0 -> 3"),
        ("data.row_positions=80", "data.row_positions 96 -> 80"),
        ("data.row_windows=9", "data.row_windows 4 -> 9"),
        ("data.spare_latents=0.5", "data.spare_latents 0.125 -> 0.5"),
        ("data.request_wordings=2", "data.request_wordings 1 -> 2"),
        ("data.crop_length=none", r"data.crop_length \[24, 60\] -> None"),
        ("stages.all.row_windows=6", "stages.all.row_windows None -> 6"),
        ("stages.all.compress=false", "stages.all.compress True -> False"),
        ("stages.all.streams.0.share=0.9", r"stages.all.streams.0.share 0.5 -> 0.9"),
        ("stages.adapter.steps=2", "stages.adapter.steps 4 -> 2"),
        ("stages.adapter.steps=40", "stages.adapter.steps 4 -> 40"),
        ("stages.all.steps=1", "stages.all.steps 2 -> 1"),
        ("stages.all.groups.0.learning_rate=none", "stages.all.groups"),
    ],
)
def test_a_setting_that_decides_the_examples_or_the_steps_is_named(config_once, setting, named):
    with pytest.raises(ConfigError, match=named):
        check(override(config_once, setting), position_of(config_once))


@pytest.mark.parametrize(
    "change",
    ["reordered", "first removed", "inserted before", "first renamed", "first made longer"],
)
def test_stages_that_are_done_cannot_change(config_once, change):
    first, second = config_once.stages
    third = replace(second, name="third")
    stages = {
        "reordered": (second, first),
        "first removed": (second,),
        "inserted before": (third, first, second),
        "first renamed": (replace(first, name="other"), second),
        "first made longer": (replace(first, steps=5), second),
    }[change]
    with pytest.raises(ConfigError, match=r"holds step 2 of stage all.*stages"):
        check(with_stages(config_once, *stages), position_of(config_once))


def test_a_stage_that_is_gone_is_named(config_once):
    only = with_stages(config_once, config_once.stages[0])
    with pytest.raises(ConfigError, match="was saved in stage 'all', this config has adapter"):
        check(only, position_of(config_once))


def test_what_comes_after_a_finished_stage_is_free(config_once):
    """Its examples are all read: the next stages may have other data, lengths and order."""
    first, second = config_once.stages
    position = position_of(config_once, "adapter", 4)
    later = with_stages(override(config_once, "data.seed=3"), first, replace(second, name="new"))
    check(override(later, "data.row_positions=80"), position, 4)
    check(with_stages(config_once, first), position, 4)


def test_a_stage_that_is_done_may_be_made_longer_before_the_next_begins(config_once):
    position = position_of(config_once, "adapter", 4)
    longer = override(config_once, "stages.adapter.steps=9")
    check(longer, position, 4)
    with pytest.raises(ConfigError, match="data.seed 0 -> 3"):
        check(override(longer, "data.seed=3"), position, 4)


def test_a_checkpoint_whose_number_is_not_its_position_is_refused(config_once):
    """The number alone says that stages have changed if the checkpoint kept no config."""
    position = position_of(config_once)
    del position["config"]
    check(config_once, position, 6)
    with pytest.raises(ConfigError, match="step of the run after step 2 of stage all 22 -> 6"):
        check(config_once, position, 22)


def test_a_setting_that_is_newer_than_the_checkpoint_has_its_default(config_once):
    position = position_of(config_once)
    del position["config"]["data"]["spare_latents"]
    check(config_once, position)


def test_groups_written_in_another_way_are_the_same(config_once):
    first, second = config_once.stages
    groups = (ParameterGroup("adapter/.+", 5e-4), ParameterGroup("(encoder|decoder)/.+", 1e-3))
    check(with_stages(config_once, first, replace(second, groups=groups)), position_of(config_once))


def test_other_data_are_named_and_the_same_data_may_move():
    check_sources({"docs": MARK}, {"docs": dict(MARK), "more": MARK}, "here")
    check_sources(None, {"docs": MARK}, "an earlier version kept none")
    other = MARK | {"sha256": "cd" * 32, "examples": 39}
    message = "source docs 40 examples in 2 shards, sha256 abababababab -> 39 examples in 2 shards"
    with pytest.raises(ConfigError, match=message):
        check_sources({"docs": MARK}, {"docs": other}, "here")
    with pytest.raises(ConfigError, match="source docs .* -> none"):
        check_sources({"docs": MARK}, {}, "here")


def test_a_stage_of_no_name_in_common_is_refused_before_anything_else(config_once):
    strange = StageConfig("strange", 1, (), ())
    with pytest.raises(ConfigError, match="use the config it was trained with"):
        check(with_stages(config_once, strange), {"stage": None})

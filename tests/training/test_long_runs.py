"""Long runs: separate stages, token counts, held-out figures and traces."""

import json
import operator
import shutil
import types
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.lclm_0p6b_4b_16x import config as published_config
from lclm_jax.checkpoint.model_files import save_model
from lclm_jax.config import AdapterConfig, ConfigError
from lclm_jax.config.values import differences
from lclm_jax.costs.chips import find_chip
from lclm_jax.data.loading import (
    PackedBatches,
    PreparedSource,
    StageData,
    batch_at,
    batch_origins,
)
from lclm_jax.inference.language_model import load
from lclm_jax.model.params import flatten, init_params
from lclm_jax.scoring import Score, score
from lclm_jax.training import loop
from lclm_jax.training import stage as training_stage
from lclm_jax.training.loop import train
from lclm_jax.training.metrics import MetricsReader
from lclm_jax.training.optim import assign_groups, split_trained
from lclm_jax.training.step import gradients_of
from lclm_jax.training.validation import held_out_records
from tests.support.trained_runs import assert_equal, events_of, lines_of, log_of, moved, saved


def test_two_runs_are_equal_bit_for_bit(finished, tmp_path):
    config, directory = finished
    again = train(moved(config, tmp_path))
    for step in (4, 8):
        assert_equal(saved(config, again, step), saved(config, directory, step))
    assert [line["loss"] for line in log_of(again)] == [line["loss"] for line in log_of(directory)]


def test_a_stage_is_compiled_once(finished):
    _, directory = finished
    assert [event["stage"] for event in events_of(directory, "compiled")] == ["adapter", "all"]
    assert [event["stage"] for event in events_of(directory, "started")] == ["adapter"]
    assert [event["stage"] for event in events_of(directory, "entered")] == ["all"]


def test_a_batch_of_another_shape_is_an_error_not_another_program(config, tmp_path, monkeypatch):
    calls, whole = [], training_stage.global_batch

    def wider(*arguments):
        calls.append(1)
        batch = whole(*arguments)
        return batch if len(calls) < 3 else jax.tree.map(lambda x: jnp.concatenate([x, x]), batch)

    monkeypatch.setattr(training_stage, "global_batch", wider)
    with pytest.raises(TypeError, match="compiled"):
        train(moved(config, tmp_path))
    assert len(calls) == 3


def test_stages_one_by_one_are_the_whole(finished, tmp_path):
    config, directory = finished
    apart = moved(config, tmp_path / "apart")
    with pytest.raises(
        ConfigError,
        match=r"stage all begins where stage adapter ends, and .*apart is empty; "
        "run the stages before",
    ):
        train(apart, "all")
    train(apart, "0")
    assert [(line["stage"], line["step"]) for line in log_of(tmp_path / "apart")] == [
        ("adapter", n) for n in (1, 2, 3, 4)
    ]
    with pytest.raises(ConfigError, match="expected one of the stages 0 adapter, 1 all, got 'al'"):
        train(apart, "al")
    train(apart, "all")
    assert_equal(saved(config, tmp_path / "apart", 8), saved(config, directory, 8))
    lines = log_of(tmp_path / "apart")
    assert train(apart, "adapter") == tmp_path / "apart" and log_of(tmp_path / "apart") == lines


def test_a_stage_waits_for_the_end_of_the_one_before(config, tmp_path):
    def interrupt(info):
        if info.step == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(moved(config, tmp_path), hooks=[interrupt])
    with pytest.raises(ConfigError, match="is at step 2 of 4 of stage adapter; run that first"):
        train(moved(config, tmp_path), "all")


def test_the_first_stage_begins_with_a_checkpoint(config, tmp_path, noisy, tokenizer):
    save_model(tmp_path / "base", config.model, tokenizer, noisy)
    child = moved(config, tmp_path / "run", init_from=str(tmp_path / "base"))
    train(child, "adapter")
    after = flatten(saved(config, tmp_path / "run", 4)["params"])
    for path, x in flatten(noisy).items():
        assert np.array_equal(after[path], x) != path.startswith("adapter"), path


def test_a_checkpoint_of_another_tokenizer_is_no_beginning(config, tmp_path, noisy, tokenizer):
    save_model(
        tmp_path / "base",
        config.model,
        type(tokenizer)(tokenizer.definition + "\n", tokenizer.template),
        noisy,
    )
    with pytest.raises(
        ConfigError, match=r"base \(run.init_from\) and .* to have one tokenizer, got two"
    ):
        train(moved(config, tmp_path / "run", init_from=str(tmp_path / "base")))


def test_changed_settings_are_logged(finished, tmp_path, caplog):
    config, directory = finished
    longer = replace(config, stages=(*config.stages[:1], replace(config.stages[1], warmup_steps=2)))
    train(longer)
    (event,) = events_of(directory, "changed")
    assert event["settings"] == {"stages.all.warmup_steps": [1, 2]}
    assert (
        "settings have changed since the checkpoint: stages.all.warmup_steps 1 -> 2" in caplog.text
    )


def test_differences_of_settings():
    old = {"a": 1, "stages": [{"name": "x", "steps": 1}, {"name": "y", "steps": 2}], "list": [1, 2]}
    new = {"a": 1, "stages": [{"name": "y", "steps": 3}, {"name": "x", "steps": 1}], "list": [1, 3]}
    assert differences(old, new) == {"stages.y.steps": [2, 3], "list": [[1, 2], [1, 3]]}


@pytest.mark.parametrize("kind", ["mlp_attn", "attn_mlp"])
def test_attention_in_the_adapter_trains_at_its_rate(config, one_device, kind):
    model = replace(config.model, adapter=AdapterConfig(kind))
    paths = list(flatten(init_params(model, one_device, 0)))
    inside = [path for path in paths if path.startswith("adapter/") and "/attention/" in path]
    assert inside
    for stage in published_config().stages:
        groups = assign_groups(paths, stage)
        assert {groups["adapter/0"][path].learning_rate for path in inside} == {
            stage.groups[0].learning_rate
        }


def gradients(config, params, batch, mesh):
    with jax.set_mesh(mesh):
        run = jax.jit(partial(gradients_of, config=config, stage=config.stages[1]))
        return jax.device_get(run(*split_trained(params, config.stages[1]), batch))


def assert_same_gradients(actual, expected):
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), actual[1:], expected[1:]
    )


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_each_trained_token_counts_the_same_however_the_batch_is_cut(
    config, noisy, one_batch, one_device, parts
):
    """Rows have different numbers of trained tokens: a mean of means would differ."""
    uneven = one_batch.replace(weights=one_batch.weights * (np.arange(8)[:, None] % 3 > 0))
    cut = replace(config, run=replace(config.run, micro_batches=parts))
    assert_same_gradients(
        gradients(cut, noisy, uneven, one_device), gradients(config, noisy, uneven, one_device)
    )


def test_padding_counts_nothing(config, noisy, one_batch, one_device):
    padded = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x)]), one_batch)
    padded = padded.replace(
        slots=np.concatenate([one_batch.slots, np.full_like(one_batch.slots, -1)])
    )
    groups = np.concatenate([one_batch.windows.groups, np.full_like(one_batch.windows.groups, -1)])
    padded = padded.replace(windows=padded.windows.replace(groups=groups))
    assert_same_gradients(
        gradients(config, noisy, padded, one_device),
        gradients(config, noisy, one_batch, one_device),
    )


def test_records_of_a_batch_are_those_it_was_made_of(config, tokenizer):
    """The text of a batch in the middle stands in the raw records that are named."""
    mixture = StageData(config, config.stages[1], tokenizer).mix_streams()
    batches = iter(PackedBatches(mixture))
    for _ in range(3):
        next(batches)
    before = batches.get_state()
    batch = next(batches)
    assert_equal(batch_at(mixture, before), batch)
    named = batch_origins(mixture, before)
    sources = {name: [] for row in named for name in row}
    assert all(
        name.split(" ")[0] in {stream.name for stream in config.stages[1].streams}
        for name in sources
    )
    shares = {
        source: PreparedSource(config.data.directory, source, "train", tokenizer)
        for source in ("docs", "tasks")
    }
    for row, names in enumerate(named):
        assert len(names) == batch.segments[row].max()
        for number, name in enumerate(names, start=1):
            stream, where = name.split(" ")
            source = shares[stream.split("/")[1]]
            i = next(i for i in range(len(source)) if source.where(i) == where)
            trained = batch.targets[row][(batch.segments[row] == number) & (batch.weights[row] > 0)]
            answer = tokenizer.decode(trained, control=False).strip()
            assert answer and answer[:20] in json.dumps(
                source.raw(i), ensure_ascii=False
            ).encode().decode("unicode_escape")


def test_metrics_are_read_one_step_late():
    reads: list[int] = []
    log = types.SimpleNamespace(add=lambda info, _: reads.append(info.step), write=lambda: None)
    watch = types.SimpleNamespace(add=lambda *_: None)
    reader = MetricsReader(log, watch)
    for step in range(1, 7):
        reader(types.SimpleNamespace(step=step, metrics={}))
        assert reads == list(range(1, step))
    reader.flush()
    assert reads == [1, 2, 3, 4, 5, 6]


def test_the_host_waits_for_the_step_before_and_no_other(config, tmp_path, monkeypatch):
    awaited, started = [], []
    waits = types.SimpleNamespace(block_until_ready=awaited.append)
    monkeypatch.setattr(loop, "jax", waits)
    train(moved(config, tmp_path), "adapter", hooks=[lambda info: started.append(info.metrics)])
    assert len(started) == len(awaited) == 4 and awaited[0] is None
    assert all(map(operator.is_, awaited[1:], started[:-1]))


def test_held_out_examples_are_read_in_three_views(config, tmp_path, tokenizer):
    run = moved(config, tmp_path, validate_every=3, validation_examples=7)
    directory = train(run)
    lines = lines_of(directory, "validation")
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("adapter", 3),
        ("adapter", 4),
        ("all", 3),
        ("all", 4),
    ]
    for line in lines:
        assert line["streams"].keys() == {stream.name for stream in config.stages[0].streams}
        for views in line["streams"].values():
            assert (
                views["latents"]["tokens"]
                == views["text"]["tokens"]
                >= views["nothing"]["tokens"]
                > 0
            )
    for views in lines[-1]["streams"].values():
        assert len({figures["loss"] for figures in views.values()}) == 3
    assert_equal(
        saved(run, directory, 8),
        saved(
            run,
            train(
                replace(
                    run, run=replace(run.run, directory=str(tmp_path / "not"), validate_every=0)
                )
            ),
            8,
        ),
    )

    model, stage = load(directory), config.stages[1]
    records = held_out_records(StageData(run, stage, tokenizer), 7)
    for number, stream in enumerate(stage.streams):
        own = [record for at, record in records if at == number]
        for view, scores in score(model.weights, own, model.config, tokenizer.memory).items():
            assert len(scores) == 7
            total, line = sum(scores, Score()), lines[-1]["streams"][stream.name][view]
            np.testing.assert_allclose(
                [line["loss"], line["accuracy"]], [total.loss, total.accuracy], rtol=1e-4
            )


def test_a_trace_is_made_while_training(config, tmp_path, monkeypatch):
    (tmp_path / "profile").write_text("2\n", encoding="utf-8")
    directory = train(moved(config, tmp_path), "adapter")
    (event,) = events_of(directory, "profiled")
    assert event["directory"] == str(tmp_path / "profiles" / "adapter-1") and event["step"] == 2
    assert (
        list((tmp_path / "profiles" / "adapter-1").rglob("*.xplane.pb"))
        and not (tmp_path / "profile").exists()
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("cpu", None),
    ],
)
def test_a_chip_by_what_it_reports(kind, name):
    chip = find_chip(kind)
    assert (chip and chip.name) == name


def test_a_damaged_checkpoint_is_told_and_the_run_ends_as_it_would_have(finished, tmp_path, caplog):
    config, directory = finished
    again = tmp_path / "again"
    shutil.copytree(directory, again)
    for step, name in ((8, "params"), (6, "training")):
        file = max(
            (again / "checkpoints" / str(step) / name).rglob("*"),
            key=lambda path: path.stat().st_size * path.is_file(),
        )
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    train(moved(config, again))
    events = events_of(again, "damaged")
    assert [(event["checkpoint"], event["stage"], event["step"]) for event in events] == [
        (8, "adapter", 4),
        (6, "adapter", 4),
    ]
    assert "checkpoint 8 is damaged and was moved to" in caplog.text
    assert_equal(saved(config, again, 8), saved(config, directory, 8))

"""Steps that are not finite: skipped, reported, limited in number and replayed."""

import json

import numpy as np
import pytest

from launch import replay as launch_replay
from lclm_jax.checkpoint.model_files import save_model
from lclm_jax.config.values import to_dict
from lclm_jax.data.loading import PackedBatches, StageData
from lclm_jax.model.params import flatten, unflatten
from lclm_jax.training import NotFinite, stage, train
from lclm_jax.training.replay import keep_batch, read_batch, replay
from tests.support.trained_runs import events_of, log_of, moved, saved


@pytest.fixture(scope="module")
def poisoned(config_once, tokenizer, noisy):
    """(parameters, token): the encoder's embedding of the token is not finite.

    Some rows of each of the first two batches have the token, not all.
    """
    batches = iter(
        PackedBatches(StageData(config_once, config_once.stages[0], tokenizer).mix_streams())
    )
    first = [next(batches).windows for _ in range(2)]

    def rows(token):
        return [
            np.any((windows.tokens == token) & (windows.segments > 0), axis=(1, 2)).sum()
            for windows in first
        ]

    token = next(token for token in range(512) if all(0 < count < 6 for count in rows(token)))
    flat = {path: np.array(x) for path, x in flatten(noisy).items()}
    flat["encoder/table"][token] = np.nan
    return unflatten(flat), token


@pytest.fixture
def failing(config, tmp_path, poisoned, tokenizer, monkeypatch, one_device):
    """A run that begins with such parameters, and stops at the second such step in a row."""
    monkeypatch.setattr("lclm_jax.training.replay.make_mesh", lambda _: one_device)
    save_model(tmp_path / "base", config.model, tokenizer, poisoned[0])
    return moved(
        config,
        tmp_path / "run",
        init_from=str(tmp_path / "base"),
        max_skipped_steps=2,
        save_every=100,
    )


def test_too_many_steps_that_are_not_finite_stop_with_what_made_them(
    failing, poisoned, tmp_path, command, caplog
):
    directory = tmp_path / "run"
    with pytest.raises(
        NotFinite,
        match=r"2 steps in a row up to step \d of stage adapter .*python -m launch.replay",
    ):
        train(failing)
    skipped = events_of(directory, "skipped")
    assert len(skipped) >= 2 and all(
        np.isnan(event["loss"]) and event["records"] for event in skipped
    )
    assert skipped[0]["records"][0] in caplog.text
    first = skipped[-2]["step"]
    batch, origin = read_batch(directory / "skipped" / f"adapter-{first}.npz")
    assert [record for row in origin["records"] for record in row] == skipped[-2]["records"]
    after = saved(failing, directory, origin["checkpoint"])
    for path, x in flatten(poisoned[0]).items():
        if not path.startswith("adapter"):
            np.testing.assert_array_equal(flatten(after["params"])[path], x)
    assert after["training"]["failing"] >= 2
    result = replay(directory)
    rows = np.unique(
        np.nonzero((batch.windows.tokens == poisoned[1]) & (batch.windows.segments > 0))[0]
    )
    blamed = {row for record, row, loss in result.examples if not np.isfinite(loss)}
    assert (
        np.isnan(result.loss)
        and blamed == set(rows.tolist())
        and 0 < len(result.suspects) < len(result.examples)
    )


def test_replay_is_a_command(failing, tmp_path, command, caplog, capsys):
    assert command(launch_replay, tmp_path) == 2
    with pytest.raises(NotFinite):
        train(failing)
    caplog.clear()
    assert command(launch_replay, tmp_path / "run") == 0
    assert "record" in capsys.readouterr().out


def test_gradients_alone_are_traced_to_rows(
    config, tmp_path, noisy, one_batch, tokenizer, monkeypatch, one_device
):
    """Losses are finite; a gradient is not, but in the rows that read no context."""
    monkeypatch.setattr("lclm_jax.training.replay.make_mesh", lambda _: one_device)
    factors = {"encoder/norm/scale": 1e-24, "adapter/norm/scale": 1e24}
    flat = {path: np.float32(factors.get(path, 1)) * x for path, x in flatten(noisy).items()}
    save_model(tmp_path, config.model, tokenizer, unflatten(flat))
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)), encoding="utf-8")
    batch = one_batch.replace(slots=np.where(np.arange(8)[:, None] < 5, one_batch.slots, -1))
    records = [
        [f"{row}/{number}" for number in range(row_segments.max())]
        for row, row_segments in enumerate(batch.segments)
    ]
    keep_batch(tmp_path, batch, {"stage": "all", "step": 1, "checkpoint": 0, "records": records})
    result = replay(tmp_path)
    assert np.isfinite(result.loss) and not np.isfinite(result.norms["encoder"])
    assert [np.isfinite(norm) for _, norm in result.rows] == [False] * 5 + [True] * 3
    assert result.suspects == [name for row in records[:5] for name in row]


def test_a_step_that_is_not_finite_is_skipped_and_training_goes_on(config, tmp_path, monkeypatch):
    calls, whole = [], stage.global_batch

    def poison(*arguments):
        calls.append(1)
        batch = whole(*arguments)
        return (
            batch.replace(weights=batch.weights.at[0, np.argmax(batch.weights[0])].set(3e38))
            if len(calls) == 2
            else batch
        )

    monkeypatch.setattr(stage, "global_batch", poison)
    directory = train(moved(config, tmp_path), "adapter")
    assert [event["step"] for event in events_of(directory, "skipped")] == [2]
    lines = log_of(directory)
    assert [line["skipped"] for line in lines] == [0, 1, 1, 1]
    assert [line["trained_tokens"] > 0 and np.isfinite(line["loss"]) for line in lines] == [
        True,
        False,
        True,
        True,
    ]
    training = saved(config, directory, 4)["training"]
    assert (
        training["skipped"] == 1
        and training["failing"] == 0
        and training["moments"]["adapter/0"][0].count == 3
    )
    moves = [line["update_norm/adapter"] > 0 for line in log_of(directory)]
    assert moves == [True, False, True, True]

"""The journal of a run, and the other places its records are sent to."""

import sys
import types

import pytest

from lclm_jax.config import ConfigError
from lclm_jax.training.journal import Journal, numbers
from lclm_jax.training.loop import train
from tests.support.trained_runs import moved


def test_figures_go_to_tensorboard(config, tmp_path):
    directory = train(moved(config, tmp_path, tensorboard=True), "adapter")
    (file,) = (directory / "tensorboard").iterdir()
    for name in (
        b"loss",
        b"streams/reconstruction/docs/accuracy",
        b"gradient_norm/adapter",
        b"tokens_per_second",
    ):
        assert file.read_bytes().count(name) >= 4


def test_figures_go_to_wandb(config, tmp_path, monkeypatch):
    lines, made = [], []
    run = types.SimpleNamespace(
        log=lines.append,
        define_metric=lambda *_, **__: None,
        finish=lambda: made.append("finished"),
    )
    monkeypatch.setitem(
        sys.modules, "wandb", types.SimpleNamespace(init=lambda **given: made.append(given) or run)
    )
    train(moved(config, tmp_path, wandb="lclm"), "adapter")
    assert (
        made[0]["project"] == "lclm" and made[0]["resume"] == "allow" and made[1:] == ["finished"]
    )
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["streams/sft/tasks/loss"] > 0 for line in lines)


@pytest.mark.parametrize(("setting", "value"), [("tensorboard", True), ("wandb", "lclm")])
def test_a_sink_that_is_not_installed_is_named(config, tmp_path, monkeypatch, setting, value):
    for name in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"run\.{setting} needs .*pip install -e '\.\[watch\]'"):
        train(moved(config, tmp_path, **{setting: value}))


def test_a_line_that_was_cut_short_stays_by_itself(config, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"stage": "adapter", "st', encoding="utf-8")
    Journal(tmp_path, config).log({"stage": "adapter", "step": 1})
    assert (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()[
        1
    ] == '{"stage": "adapter", "step": 1}'


def test_numbers_of_a_line():
    assert dict(numbers({"a": 1, "b": {"c": 2.5, "d": "x"}, "e": None, "f": True})) == {
        "a": 1.0,
        "b/c": 2.5,
    }

"""The committed trained models reach their documented results."""

import pytest

from launch import show
from lclm_jax.data.synthetic import pairs
from lclm_jax.evaluation.held_out import evaluator
from tests.support.paths import MODELS


@pytest.fixture
def shown(monkeypatch, tmp_path, command):
    """Measurements of `launch.show` for a committed model, on a few held-out documents."""
    monkeypatch.setattr(pairs, "COUNTS", {"": 2000, "_short": 100})
    monkeypatch.setattr(pairs, "TOKENIZER_DOCUMENTS", 100)
    monkeypatch.setattr(evaluator, "MAX_EXAMPLES", 16)
    monkeypatch.setattr(show, "MAX_QUESTIONS", 32)
    measured = {}

    def run(name: str) -> dict:
        monkeypatch.setattr(show, "show_evaluation", measured.update)
        arguments = (
            "--config",
            f"configs/{name}.py",
            "--checkpoint",
            MODELS / name,
            "--out",
            tmp_path / name,
        )
        assert command(show, *arguments) == 0
        return measured

    return run


def test_the_small_model_writes_back_and_looks_up(shown):
    evaluation = shown("small")
    for entry in evaluation["reconstruction"]:
        assert (
            entry["latents"]["accuracy"]["value"]
            > 0.85
            > 0.4
            > entry["nothing"]["accuracy"]["value"]
        ), entry
    questions = evaluation["questions"]
    assert questions["questions"] >= 16
    assert questions["latents"]["value"] > 0.6 > questions["nothing"]["value"]


def test_the_model_of_several_ratios_falls_gently(shown):
    for entry in shown("small_ratios")["reconstruction"]:
        shares = [entry["ratios"][ratio]["accuracy"]["value"] for ratio in ("2", "4", "8", "16")]
        assert shares[0] > 0.95 and shares[1] > 0.9 and shares[2] > 0.7 and shares[3] > 0.45, entry
        assert shares == sorted(shares, reverse=True)
        assert entry["nothing"]["accuracy"]["value"] < 0.1
